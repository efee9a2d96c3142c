package controller

import (
	"bufio"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/shard"
)

// machine is the metadata group's state machine: it feeds meta.State and publishes each image.
// Its methods are called by the group's goroutine; image and changed are for everybody.
type machine struct {
	state   *meta.State
	image   atomic.Pointer[meta.Image]
	changed *notifier
	applied atomic.Uint64 // commands
	failed  atomic.Pointer[error]
}

var _ shard.StateMachine = (*machine)(nil)

func newMachine() *machine {
	m := &machine{state: meta.NewState(nil), changed: newNotifier()}
	m.image.Store(m.state.Image())
	return m
}

// ApplyBatch applies commands and publishes one image for all of them. The results are
// meta.Result, or an error once an entry could not be read.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		switch err := m.Err(); {
		case err != nil:
			out[i] = err
		case l.Type != raft.LogCommand:
			m.state.Advance(l.Index)
		default:
			out[i] = m.apply(l)
		}
	}
	m.publish()
	return out
}

func (m *machine) apply(l *raft.Log) any {
	r, err := m.state.Apply(l.Index, l.Data)
	if err != nil {
		m.failed.Store(&err)
		return err
	}
	m.applied.Add(1)
	return r
}

// rewind lets a group that is opened anew begin at its beginning. The image that was published stays until the state is as
// new. It is called while no group uses the machine.
func (m *machine) rewind() {
	m.state = meta.NewState(nil)
	m.failed.Store(nil)
}

func (m *machine) publish() {
	if m.state.Image().Index() < m.image.Load().Index() {
		return
	}
	m.image.Store(m.state.Image())
	m.changed.notify()
}

// Capture costs nothing: an image does not change.
func (m *machine) Capture() (shard.Checkpoint, error) { return captured{m.state.Image()}, nil }

// Restore replaces the state.
func (m *machine) Restore(index uint64, r io.Reader) error {
	image, err := meta.ReadSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore metadata at %d: %w", index, err)
	}
	m.state = meta.NewState(image)
	m.state.Advance(index)
	m.publish()
	return nil
}

// Complete is always true: a snapshot holds all there is.
func (m *machine) Complete() bool { return true }

// Err is non-nil after an entry that this release cannot read.
func (m *machine) Err() error {
	if err := m.failed.Load(); err != nil {
		return *err
	}
	return nil
}

type captured struct{ image *meta.Image }

func (c captured) Persist(w io.Writer) error {
	b := bufio.NewWriterSize(w, 64<<10)
	if err := c.image.WriteSnapshot(b); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write metadata snapshot: %w", err)
	}
	return nil
}

func (c captured) Release() {}

// notifier tells any number of waiters that something changed: they fetch the channel, look at
// the state, and wait for the channel to be closed.
type notifier struct{ ch atomic.Pointer[chan struct{}] }

func newNotifier() *notifier {
	n := &notifier{}
	ch := make(chan struct{})
	n.ch.Store(&ch)
	return n
}

func (n *notifier) wait() <-chan struct{} { return *n.ch.Load() }

func (n *notifier) notify() {
	ch := make(chan struct{})
	close(*n.ch.Swap(&ch))
}
