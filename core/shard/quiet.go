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
	quiet := g.idle.look(leads, g.raft().LastIndex(), now) >= g.node.o.quietAfter
	if g.beats.quiet.Swap(quiet) && !quiet {
		g.news.tell()
	}
}

// rest keeps the library's goroutine that sends to a follower while there is nothing to send: otherwise it looks every 150 to 300 ms, at
// times of its own, and wakes the process for it. It rests only when the follower has been told that everything is committed that there is,
// and until there is a new entry, a heartbeat has failed, the group is not idle any more or the replica ends, none of which the library's
// goroutine would need to hear of sooner. Meanwhile the follower is told the same again about once a second, by all groups at the same
// moment; when that has been done restMost times the library looks by itself.
func (p *pipeline) rest(a *raft.AppendEntriesRequest) error {
	for range restMost {
		if !p.sleeps() {
			return nil
		}
		if !p.t.sendsTo(p.to, a.Term) {
			return nil
		}
		again := *a // the one before belongs to who waits for its answer
		p.at = time.Now()
		if _, err := p.AppendPipeline.AppendEntries(&again, new(raft.AppendEntriesResponse)); err != nil {
			return err
		}
	}
	return nil
}

// sleeps waits until it is time to say the same again. It returns false when there is something else to do, or may be.
func (p *pipeline) sleeps() bool {
	g := p.t.g
	news := g.news.wait() // before looking: what happens after this look ends the rest
	last, err := g.log.LastIndex()
	if !g.beats.quiet.Load() || err != nil || last != p.told.last || p.told.commit != last || p.t.g.peers.lostSince(p.to, p.at) {
		return false
	}
	every := g.node.moments.every
	t := time.NewTimer(UntilEven((repeatAfter + every - 1) / every * every))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-news:
	case <-p.t.stream.done:
	case <-g.ctx.Done():
	}
	return false
}

// news wakes those that wait for something to send.
type news struct {
	mu sync.Mutex
	is chan struct{} // closed when there is some; nil while nobody waits
}

func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.is == nil {
		n.is = make(chan struct{})
	}
	return n.is
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.is != nil {
		close(n.is)
		n.is = nil
	}
}

// moments are those at which the idle groups of a node send their heartbeats: whole multiples of an interval, with one timer for all groups.
type moments struct {
	every time.Duration
	send  func(turn uint64) // what goes together; nil in tests
	mu    struct {
		sync.Mutex
		turn uint64        // of the next moment
		next chan struct{} // closed at the next moment; nil while nobody waits
	}
}

// wait returns a channel that is closed at the next moment, and the moment's number, which is above 0.
func (m *moments) wait() (next <-chan struct{}, turn uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.next == nil {
		m.mu.turn++
		m.mu.next = make(chan struct{})
		time.AfterFunc(UntilEven(m.every), m.come)
	}
	return m.mu.next, m.mu.turn
}

func (m *moments) come() {
	m.mu.Lock()
	close(m.mu.next)
	m.mu.next = nil
	turn := m.mu.turn
	m.mu.Unlock()
	if m.send != nil {
		m.send(turn)
	}
}

// beats has the heartbeats of idle groups sent at the same moments: to all followers, by all groups
// of a process. The library sends each 50 to 100 ms after the answer to the one before, so that a
// process is woken for every one of them and for every answer.
type beats struct {
	quiet atomic.Bool
	turn  atomic.Uint64 // the last moment at which heartbeats were sent
	mu    struct {
		sync.Mutex
		asked int           // checks of leadership that wait for heartbeats
		now   chan struct{} // closed when there is one; nil while nobody waits
	}
}

// wanted returns a channel that is closed when a heartbeat is wanted at once; asked is true when one is now.
func (b *beats) wanted() (now <-chan struct{}, asked bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.asked > 0 {
		return nil, true
	}
	if b.mu.now == nil {
		b.mu.now = make(chan struct{})
	}
	return b.mu.now, false
}

// wait returns at the next moment for heartbeats, at once when one is wanted, or when ctx ends. It returns true to the first of a group's
// heartbeats that is sent at a moment.
func (b *beats) wait(ctx context.Context, m *moments) (first bool) {
	now, asked := b.wanted()
	if asked {
		return false
	}
	moment, turn := m.wait()
	select {
	case <-moment:
		return b.turn.Swap(turn) != turn
	case <-now:
	case <-ctx.Done():
	}
	return false
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

// look takes a look at the log's last index and tells for how long it has been the same.
func (i *idle) look(leads bool, last uint64, now time.Time) time.Duration {
	switch {
	case !leads:
		*i = idle{}
	case i.since.IsZero() || last != i.last:
		*i = idle{last: last, since: now}
	default:
		return now.Sub(i.since)
	}
	return 0
}

// UntilEven is the time until the next whole multiple of d: what looks regularly does so at the
// same moments in all groups of a process, and wakes it once for all of them.
func UntilEven(d time.Duration) time.Duration {
	return d - time.Duration(time.Now().UnixNano()%int64(d))
}
