package shard

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// proposals are the entries of one group that wait for their commit, bounded in number and bytes.
type proposals struct {
	g       *Group
	pending chan *proposal

	mu     sync.Mutex
	empty  sync.Cond // nothing is in flight any more
	closed bool
	admission
}

// proposal is a Future.
type proposal struct {
	g      *Group
	f      raft.Future
	room   room
	began  time.Time
	done   chan struct{}
	result any
	err    error
}

// refused is the Future of an entry that was not given to Raft.
type refused struct{ err error }

// Wait implements Future.
func (r refused) Wait(context.Context) (any, error) { return nil, r.err }

func newProposals(g *Group) *proposals {
	q := &proposals{g: g, pending: make(chan *proposal, maxInFlightEntries), admission: newAdmission()}
	q.empty.L = &q.mu
	return q
}

// Propose is ProposeFor the node itself.
func (g *Group) Propose(entry []byte) Future {
	return g.ProposeFor(context.Background(), FlowNone, entry)
}

// ProposeFor appends an entry to the log if this replica leads. Entries of one caller are appended in
// the order of its calls. The entry belongs to Raft from then on. It blocks while too much waits for
// its commit (see admission) and ctx has not ended; the end of ctx is answered with ErrNotLeader, as
// nothing was appended. Entries that wait get their turns by the bytes of their flows. An entry
// larger than MaxEntryBytes is refused.
func (g *Group) ProposeFor(ctx context.Context, flow Flow, entry []byte) Future {
	if len(entry) > MaxEntryBytes {
		return refused{fmt.Errorf("propose %d bytes to shard %d: %w", len(entry), g.id, ErrTooLarge)}
	}
	if g.raft().State() != raft.Leader {
		return refused{ErrNotLeader}
	}
	held, err := g.queue.acquire(ctx, flow, int64(len(entry)))
	if err != nil {
		return refused{err}
	}
	return g.queue.follow(g.raft().Apply(entry, 0), held)
}

// acquire waits for room. Its errors wrap ErrNotLeader: the group is closed, does not lead any more,
// or ctx has ended.
func (q *proposals) acquire(ctx context.Context, flow Flow, bytes int64) (room, error) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return room{}, ErrNotLeader
	}
	held, w := q.enter(flow, bytes)
	q.mu.Unlock()
	if w == nil {
		return held, nil
	}
	began := time.Now()
	defer func() { q.g.metrics.waitSeconds.Update(time.Since(began).Seconds()) }()
	select {
	case ok := <-w.ready:
		return held, admitted(ok)
	case <-ctx.Done():
	}
	return held, q.giveUp(ctx, w)
}

func admitted(ok bool) error {
	if !ok {
		return ErrNotLeader
	}
	return nil
}

// giveUp takes a waiter out of the queue, unless its turn has come meanwhile.
func (q *proposals) giveUp(ctx context.Context, w *waiter) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case ok := <-w.ready:
		return admitted(ok)
	default:
	}
	i := slices.Index(q.waiting, w)
	heap.Remove(&q.waiting, i)
	return fmt.Errorf("%w: gave up waiting for room: %w", ErrNotLeader, ctx.Err())
}

// follow makes a Future of one of the library's, which can only be waited for without a context.
func (q *proposals) follow(f raft.Future, held room) *proposal {
	p := &proposal{g: q.g, f: f, room: held, began: time.Now(), done: make(chan struct{})}
	q.pending <- p // has room for all that acquire admits
	return p
}

// run answers the proposals, in the order in which the library answers them, until the queue is
// closed and empty or Raft has stopped.
func (q *proposals) run() {
	for {
		select {
		case p := <-q.pending:
			q.answer(p)
		case <-q.g.gone:
			return
		}
	}
}

// answer waits for one proposal. The library leaves some unanswered for ever when it is shut down
// with them: Wait does not depend on it, and neither does stopping.
func (q *proposals) answer(p *proposal) {
	p.err = p.f.Error()
	if a, ok := p.f.(raft.ApplyFuture); ok && p.err == nil {
		p.result = a.Response()
	}
	if f, ok := p.result.(failed); ok {
		p.result, p.err = nil, f.err
	}
	close(p.done)
	q.mu.Lock()
	defer q.mu.Unlock()
	if now := time.Now(); p.err == nil && p.room.bytes > 0 {
		took := now.Sub(p.began)
		q.committed(now, took, p.room.bytes)
		q.g.metrics.commitSeconds.Update(took.Seconds())
		q.g.node.spare.saw(now, sawCommit, took, p.room.bytes)
	}
	if q.leave(p.room); q.count == 0 {
		q.empty.Broadcast()
	}
}

// close lets no further proposals in.
func (q *proposals) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.dismiss()
}

// drain waits until everything is answered. Raft must still run.
func (q *proposals) drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, q.empty.Broadcast)
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count > 0 && ctx.Err() == nil {
		q.empty.Wait()
	}
}

// inFlight returns what waits now.
func (q *proposals) inFlight() (count int, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count, q.bytes + q.light
}

func (q *proposals) windowBytes() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.window
}

// InFlightBytes are those of this replica's proposals that wait for their commit.
func (g *Group) InFlightBytes() int64 {
	_, bytes := g.queue.inFlight()
	return bytes
}

// Wait implements Future.
func (p *proposal) Wait(ctx context.Context) (any, error) {
	select {
	case <-p.done:
		return p.result, outcome(p.err)
	default:
	}
	select {
	case <-p.done:
		return p.result, outcome(p.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	case <-p.g.gone:
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ErrClosed)
	}
}

// outcome maps the library's errors. Only three mean that the entry was certainly not appended; any
// other may have been, and may still be committed.
func outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// aside follows a call that may block before it has a future, beside the queue. Acquire must have
// admitted it.
func (q *proposals) aside(held room, call func() raft.Future) *proposal {
	p := &proposal{g: q.g, room: held, began: time.Now(), done: make(chan struct{})}
	go func() {
		p.f = call()
		q.answer(p)
	}()
	return p
}
