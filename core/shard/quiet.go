package shard

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// What follows makes idle groups cheap. What a machine pays for them is not the bytes of their
// messages but how often its processes are woken: a message costs three wake-ups in two processes,
// and each of those more processor time than everything that is done with it.

// told is all that a request without entries says. One that says the same again tells a follower
// nothing.
type told struct{ term, last, commit uint64 }

func sayings(a *raft.AppendEntriesRequest) told {
	return told{term: a.Term, last: a.PrevLogEntry + uint64(len(a.Entries)), commit: a.LeaderCommitIndex}
}

// repeats tells whether a request need not be sent: the last one on this connection, not long ago,
// said the same, and since then no heartbeat has failed. One that failed may mean that the follower
// has been started anew and knows nothing of what is committed, or that this connection is gone
// and nobody has noticed.
func (p *pipeline) repeats(a *raft.AppendEntriesRequest, now time.Time) bool {
	say := sayings(a)
	if len(a.Entries) == 0 && say == p.told && now.Sub(p.at) < repeatAfter && !p.t.g.peers.lostSince(p.to, p.at) {
		return true
	}
	p.told, p.at = say, now
	return false
}

// pace lets the heartbeats of a group wait for each other that has been led without a new entry for
// quietAfter, until there is one. It belongs to the watcher.
func (g *Group) pace(now time.Time) {
	_, leads := g.leads()
	g.beats.quiet.Store(g.idle.longSince(leads, g.raft().LastIndex(), now))
}

func (g *Group) quietBeat() time.Duration { return time.Duration(float64(g.heartbeat) * quietPart) }

// beats has the heartbeats of idle groups sent at the same moments: to all followers, by all groups
// of a process. The library sends each 50 to 100 ms after the answer to the one before, so that a
// process is woken for every one of them and for every answer.
type beats struct {
	quiet atomic.Bool
	mu    struct {
		sync.Mutex
		asked int           // checks of leadership that wait for heartbeats
		now   chan struct{} // closed when there is one; nil while nobody waits
	}
}

// wait returns at the next moment for heartbeats, at once when one is wanted, or when ctx ends.
func (b *beats) wait(ctx context.Context, every time.Duration) {
	b.mu.Lock()
	if b.mu.asked > 0 {
		b.mu.Unlock()
		return
	}
	if b.mu.now == nil {
		b.mu.now = make(chan struct{})
	}
	now := b.mu.now
	b.mu.Unlock()
	moment := time.NewTimer(UntilEven(every))
	defer moment.Stop()
	select {
	case <-moment.C:
	case <-now:
	case <-ctx.Done():
	}
}

// hurry has heartbeats sent at once, those that wait and those to come, until done is called.
func (b *beats) hurry() (done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.asked++
	if b.mu.now != nil {
		close(b.mu.now)
		b.mu.now = nil
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mu.asked--
	}
}

// idle is since when a leader's log has ended where it ends.
type idle struct {
	last  uint64
	since time.Time
}

// longSince takes a look at the log's last index and tells whether the group counts as idle.
func (i *idle) longSince(leads bool, last uint64, now time.Time) bool {
	switch {
	case !leads:
		*i = idle{}
	case i.since.IsZero() || last != i.last:
		*i = idle{last: last, since: now}
	default:
		return now.Sub(i.since) >= quietAfter
	}
	return false
}

// UntilEven is the time until the next whole multiple of d: what looks regularly does so at the
// same moments in all groups of a process, and wakes it once for all of them.
func UntilEven(d time.Duration) time.Duration {
	return d - time.Duration(time.Now().UnixNano()%int64(d))
}
