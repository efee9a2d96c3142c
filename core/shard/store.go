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
}

func (s *guardedStore) die(err error) {
	s.fail(err)
	runtime.Goexit()
}

// GetLog implements raft.LogStore.
func (s *guardedStore) GetLog(index uint64, l *raft.Log) error {
	err := s.Store.GetLog(index, l)
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
