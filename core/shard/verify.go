package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// verifier shares checks of leadership: everybody who asks before a check begins gets its answer.
type verifier struct {
	mu      sync.Mutex
	next    *check // will begin
	running bool
	last    time.Time
	idle    chan struct{}
}

type check struct {
	done chan struct{}
	term uint64
	err  error
}

// Verify confirms with a majority that this replica leads and serves now, and waits until it has
// applied what was committed when it was asked: whatever it answers from its state after Verify has
// returned nil is not older than the call. Checks are shared and at least verifyInterval apart. It
// returns an error wrapping ErrNotLeader when it does not lead.
func (g *Group) Verify(ctx context.Context) error {
	term, ok := g.Serving()
	if !ok {
		return ErrNotLeader
	}
	// A follower hears what is committed and may have applied it, and shown it to its clients,
	// before the leader has: one that reads there and asks here must not see the log go back.
	committed := g.CommitIndex()
	c := g.verify.join(g)
	if c == nil {
		return ErrNotLeader
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("verify leadership of shard %d: %w", g.id, ctx.Err())
	case <-g.gone:
		return ErrNotLeader
	}
	if c.err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeader, c.err)
	}
	if err := g.shows(ctx, committed); err != nil {
		return fmt.Errorf("verify leadership of shard %d: %w", g.id, err)
	}
	if now, ok := g.Serving(); !ok || now != term || c.term != term {
		return ErrNotLeader
	}
	return nil
}

// shows waits until everything up to an index has been applied.
func (g *Group) shows(ctx context.Context, index uint64) error {
	if g.shown(index) {
		return nil
	}
	tick := time.NewTicker(appliedPoll)
	defer tick.Stop()
	for !g.shown(index) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-g.gone:
			return ErrNotLeader
		}
	}
	return nil
}

// shown tells whether everything up to an index has been applied. The entry at the index may be of
// a kind that the state machine does not see.
func (g *Group) shown(index uint64) bool {
	if g.AppliedIndex() >= index {
		return true
	}
	var l raft.Log
	if err := g.log.GetLog(index, &l); err != nil {
		return errors.Is(err, raft.ErrLogNotFound) // a checkpoint has taken its place
	}
	return g.hasApplied(l)
}

// join returns the check that begins next, and lets it begin when none does.
func (v *verifier) join(g *Group) *check {
	v.mu.Lock()
	defer v.mu.Unlock()
	if g.stopping.Load() {
		return nil
	}
	if v.next == nil {
		v.next = &check{done: make(chan struct{})}
	}
	if !v.running {
		v.running = true
		v.idle = make(chan struct{})
		go v.run(g)
	}
	return v.next
}

// run makes checks as long as somebody waits for one.
func (v *verifier) run(g *Group) {
	for {
		if wait := verifyInterval - time.Since(v.last); wait > 0 {
			pause(g.ctx, wait)
		}
		v.mu.Lock()
		c := v.next
		v.next = nil
		if c == nil {
			v.running = false
			close(v.idle)
			v.mu.Unlock()
			return
		}
		v.mu.Unlock()
		v.last = time.Now()
		r := g.cur.Load()
		c.term = r.raft.CurrentTerm()
		done := func() {}
		c.err = r.verify(func() { done = g.beats.hurry() })
		done()
		close(c.done)
	}
}

// drain waits until no check runs.
func (v *verifier) drain(ctx context.Context) {
	v.mu.Lock()
	running, idle := v.running, v.idle
	v.mu.Unlock()
	if !running {
		return
	}
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
