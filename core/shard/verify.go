package shard

import (
	"context"
	"fmt"
	"sync"
	"time"
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

// Verify confirms with a majority that this replica leads and serves now: whatever it answers from
// its state after Verify has returned nil is not older than the call. Checks are shared and at
// least verifyInterval apart. It returns an error wrapping ErrNotLeader otherwise.
func (g *Group) Verify(ctx context.Context) error {
	term, ok := g.Serving()
	if !ok {
		return ErrNotLeader
	}
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
	if now, ok := g.Serving(); !ok || now != term || c.term != term {
		return ErrNotLeader
	}
	return nil
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
		r := g.raft()
		c.term = r.CurrentTerm()
		c.err = r.VerifyLeader().Error()
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
