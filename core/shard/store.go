package shard

import (
	"runtime"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"sluice/core/raftlog"
)

// logOptions bound what the log of a shard keeps in memory and prepares on disk.
var logOptions = raftlog.Options{}

// guardedStore is the log as Raft sees it. The library panics when it cannot read a committed entry
// or store a term, which would end the process with all its shards. Here the replica fails instead,
// and only the goroutine that asked ends: its deferred calls run, nothing wrong is ever returned.
type guardedStore struct {
	*raftlog.Store
	running atomic.Bool // before, errors are returned: they end NewRaft
	fail    func(error)
	// applied, when this replica leads, is the index up to which Raft reads entries only to send them; otherwise 0.
	applied func() uint64
}

// unloaded marks an entry whose data was not read. A leader reads 128 entries for a request to a follower that is behind, and 8 MiB of them are sent
// (guard 11): the rest would be read from disk, and held in memory, for nothing. So entries that are no longer in memory are read when they are
// sent. The mark never leaves this package: what is marked is applied already, so that Raft reads it for nothing else, and every request passes
// through transport.load.
var unloaded = []byte("unloaded")

func isUnloaded(l *raft.Log) bool {
	return len(l.Data) == 0 && len(l.Extensions) == len(unloaded) && &l.Extensions[0] == &unloaded[0]
}

func (s *guardedStore) die(err error) {
	s.fail(err)
	runtime.Goexit()
}

// GetLog implements raft.LogStore.
func (s *guardedStore) GetLog(index uint64, l *raft.Log) error {
	var err error
	if s.running.Load() && s.applied != nil && index <= s.applied() {
		var whole bool
		if whole, err = s.Store.GetHead(index, l); err == nil && !whole {
			l.Extensions = unloaded
		}
	} else {
		err = s.Store.GetLog(index, l)
	}
	if err != nil && err != raft.ErrLogNotFound && s.running.Load() {
		s.die(err)
	}
	return err
}

// SetUint64 implements raft.StableStore.
func (s *guardedStore) SetUint64(key []byte, val uint64) error {
	err := s.Store.SetUint64(key, val)
	if err != nil && s.running.Load() && string(key) == "CurrentTerm" {
		s.die(err)
	}
	return err
}
