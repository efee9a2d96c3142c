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
	stored  func() // called when there are new entries; it must not block
}

// StoreLogs implements raft.LogStore.
func (s *guardedStore) StoreLogs(logs []*raft.Log) error {
	err := s.Store.StoreLogs(logs)
	if err == nil {
		s.stored()
	}
	return err
}

// unloaded marks an entry whose data was not read. The library reads entries long before it needs them: 128 for a request to a follower that is behind,
// of which 8 MiB are sent (guard 11), and after a start all since the checkpoint, of every group at once. So commands that are no longer in memory are
// read when they are sent (transport.load) or applied (fsm.load); nothing else looks at their data. The mark never leaves this package.
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
	err := s.get(index, l)
	if err != nil && err != raft.ErrLogNotFound && s.running.Load() {
		s.die(err)
	}
	return err
}

func (s *guardedStore) get(index uint64, l *raft.Log) error {
	if !s.running.Load() {
		return s.Store.GetLog(index, l)
	}
	whole, err := s.Store.GetHead(index, l)
	switch {
	case err != nil || whole:
		return err
	case l.Type != raft.LogCommand:
		return s.Store.GetLog(index, l)
	}
	l.Extensions = unloaded
	return nil
}

// SetUint64 implements raft.StableStore.
func (s *guardedStore) SetUint64(key []byte, val uint64) error {
	err := s.Store.SetUint64(key, val)
	if err != nil && s.running.Load() && string(key) == "CurrentTerm" {
		s.die(err)
	}
	return err
}
