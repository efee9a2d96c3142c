package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// proposals are the entries of one group that wait for their commit, bounded in number and bytes.
type proposals struct {
	g       *Group
	pending chan *proposal

	mu     sync.Mutex
	room   sync.Cond // proposals were answered, or the queue was closed
	closed bool
	count  int
	bytes  int64
}

// proposal is a Future.
type proposal struct {
	g      *Group
	f      raft.Future
	bytes  int64
	done   chan struct{}
	result any
	err    error
}

// refused is the Future of an entry that was not given to Raft.
type refused struct{ err error }

// Wait implements Future.
func (r refused) Wait(context.Context) (any, error) { return nil, r.err }

func newProposals(g *Group) *proposals {
	q := &proposals{g: g, pending: make(chan *proposal, maxInFlightEntries)}
	q.room.L = &q.mu
	return q
}

// Propose appends an entry to the log if this replica leads. Entries of one caller are appended in
// the order of its calls. The entry belongs to Raft from then on. It blocks while maxInFlightBytes
// or maxInFlightEntries wait for their commit. An entry larger than MaxEntryBytes is refused.
func (g *Group) Propose(entry []byte) Future {
	if len(entry) > MaxEntryBytes {
		return refused{fmt.Errorf("propose %d bytes to shard %d: %w", len(entry), g.id, ErrTooLarge)}
	}
	r := g.raft()
	if r.State() != raft.Leader {
		return refused{ErrNotLeader}
	}
	if !g.queue.acquire(int64(len(entry))) {
		return refused{ErrNotLeader}
	}
	return g.queue.follow(r.Apply(entry, 0), int64(len(entry)))
}

// acquire waits for room. It returns false when the group is closed.
func (q *proposals) acquire(bytes int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && q.count > 0 && (q.bytes+bytes > maxInFlightBytes || q.count >= maxInFlightEntries) {
		q.room.Wait()
	}
	if q.closed {
		return false
	}
	q.count++
	q.bytes += bytes
	return true
}

// follow makes a Future of one of the library's, which can only be waited for without a context.
func (q *proposals) follow(f raft.Future, bytes int64) *proposal {
	p := &proposal{g: q.g, f: f, bytes: bytes, done: make(chan struct{})}
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
	q.count--
	q.bytes -= p.bytes
	q.mu.Unlock()
	q.room.Broadcast()
}

// close lets no further proposals in.
func (q *proposals) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.room.Broadcast()
}

// drain waits until everything is answered. Raft must still run.
func (q *proposals) drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, q.room.Broadcast)
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count > 0 && ctx.Err() == nil {
		q.room.Wait()
	}
}

// inFlight returns what waits now.
func (q *proposals) inFlight() (count int, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count, q.bytes
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
func (q *proposals) aside(call func() raft.Future) *proposal {
	p := &proposal{g: q.g, done: make(chan struct{})}
	go func() {
		p.f = call()
		q.answer(p)
	}()
	return p
}
