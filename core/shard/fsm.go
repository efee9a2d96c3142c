package shard

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// fsm stands between Raft and the state machine. It is a raft.BatchingFSM, because with a plain one
// no checkpoint can be taken after a change of membership until the next command.
type fsm struct {
	sm       StateMachine
	fail     func(error)
	err      func() error
	applied  atomic.Uint64 // index of the last entry that the state machine has seen
	entries  atomic.Uint64 // how many since the start
	bytes    atomic.Uint64
	progress chan struct{} // something was applied
	// load reads an entry whose data was left on disk (see unloaded).
	load func(index uint64, l *raft.Log) error
}

var _ raft.BatchingFSM = (*fsm)(nil)

// failed is the result of an entry that was not applied because the replica has stopped.
type failed struct{ err error }

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. A replica that failed applies nothing more, but its
// futures must be answered. Entries whose data is on disk are read as they are needed, up to
// maxAppendBytes at a time: after a start the library hands over everything since the checkpoint at
// once, of every group.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, 0, len(logs))
	for len(logs) > 0 {
		n, err := f.loadSome(logs)
		if err != nil {
			f.fail(err)
		}
		results = append(results, f.applySome(logs[:n])...)
		logs = logs[n:]
	}
	return results
}

// loadSome returns how many of the entries are to be applied together: all, or those before the one with which more than
// maxAppendBytes would be read from disk.
func (f *fsm) loadSome(logs []*raft.Log) (n int, err error) {
	bytes := 0
	for i, l := range logs {
		if !isUnloaded(l) {
			continue
		}
		if bytes >= maxAppendBytes {
			return i, nil
		}
		if f.err() != nil {
			return len(logs), nil // nothing is applied any more
		}
		if err := f.load(l.Index, l); err != nil {
			return len(logs), fmt.Errorf("load entry %d to apply it: %w", l.Index, err)
		}
		bytes += len(l.Data)
	}
	return len(logs), nil
}

func (f *fsm) applySome(logs []*raft.Log) []any {
	if err := f.err(); err != nil {
		return allFailed(len(logs), err)
	}
	results := f.sm.ApplyBatch(logs)
	if len(results) != len(logs) {
		panic(fmt.Sprintf("BUG: state machine returned %d results for %d entries", len(results), len(logs)))
	}
	if err := f.sm.Err(); err != nil {
		f.fail(err)
		return allFailed(len(logs), err)
	}
	var n uint64
	for _, l := range logs {
		n += uint64(len(l.Data))
		l.Data = nil // the library holds the entries of a call until its end
	}
	f.entries.Add(uint64(len(logs)))
	f.bytes.Add(n)
	f.applied.Store(logs[len(logs)-1].Index)
	select {
	case f.progress <- struct{}{}:
	default:
	}
	return results
}

func allFailed(n int, err error) []any {
	results := make([]any, n)
	for i := range results {
		results[i] = failed{err}
	}
	return results
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	c, err := f.sm.Capture()
	if err != nil {
		return nil, fmt.Errorf("capture state: %w", err)
	}
	return &captured{f: f, checkpoint: c}, nil
}

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	inner := r
	if w, ok := r.(raft.ReadCloserWrapper); ok {
		inner = w.WrappedReadCloser()
	}
	c, ok := inner.(*checkpointReader)
	if !ok {
		panic("BUG: restoring something that is not our checkpoint")
	}
	if err := f.sm.Restore(c.meta.Index, r); err != nil {
		err = fmt.Errorf("restore state at %d: %w", c.meta.Index, err)
		f.fail(err)
		return err
	}
	f.applied.Store(c.meta.Index)
	return nil
}

// Durable may be implemented by a Checkpoint: it is called once after the checkpoint can no longer
// be lost and before Release. What only older checkpoints name may go from then on.
type Durable interface{ Durable() }

type captured struct {
	f          *fsm
	checkpoint Checkpoint
}

// Persist implements raft.FSMSnapshot.
func (c *captured) Persist(s raft.SnapshotSink) error {
	if err := c.checkpoint.Persist(s); err != nil {
		if smErr := c.f.sm.Err(); smErr != nil {
			c.f.fail(smErr)
		}
		return fmt.Errorf("persist state: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if d, ok := c.checkpoint.(Durable); ok {
		d.Durable()
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (c *captured) Release() { c.checkpoint.Release() }
