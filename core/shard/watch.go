package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// watchInterval is how often the watcher looks without being told: for what nobody tells (missing
// data that has come) and as a net below the library's observations, which may be dropped.
// At whole multiples of Moment an idle process is awake anyway.
const watchInterval = 2 * Moment

// view is what a group tells others about itself.
type view struct {
	leader  meta.NodeID
	term    uint64
	serving uint64 // the term in which it serves, 0: it does not
	members string // of the latest configuration, with their votes
	barrier uint64 // the term of the last barrier that was passed
}

// commit is a commit index that a leader of a term has told.
type commit struct{ term, index uint64 }

// watch turns the library's observations into changes of the view. Leadership is compared by term:
// edges may be lost, and leaving and regaining it between two looks is a change as well.
func (g *Group) watch() {
	tick := time.NewTimer(UntilEven(watchInterval))
	defer tick.Stop()
	failed, logFailed := g.failed, g.log.Failed()
	passed := make(chan uint64, 1)
	asked := uint64(0)
	for {
		r := g.cur.Load()
		select {
		case <-g.ctx.Done():
			return
		case <-r.events:
		case <-r.raft.LeaderCh():
		case <-tick.C:
			tick.Reset(UntilEven(watchInterval))
			if asked != 0 && asked == g.raft().CurrentTerm() && g.barrier() != asked {
				asked = 0 // the barrier failed, or is late: ask again
			}
		case term := <-passed:
			g.setBarrier(term)
		case <-g.again:
			g.startAnew()
		case <-logFailed:
			logFailed = nil
			g.fail(g.log.Err())
		case <-failed:
			failed = nil
			g.stopFailed()
		}
		g.pace(time.Now())
		if term := g.refresh(); term != asked && term != 0 {
			asked = term
			g.wg.Go(func() { g.passBarrier(term, passed) })
		}
	}
}

// stopFailed ends Raft after a failure. What waits is answered first, as far as the library still
// does.
func (g *Group) stopFailed() {
	ctx, cancel := context.WithTimeout(g.ctx, quickTimeout)
	defer cancel()
	g.queue.close()
	g.queue.drain(ctx)
	g.cur.Load().stop()
}

// refresh renews the view. It returns the term in which this replica leads without having passed a
// barrier, 0 otherwise.
func (g *Group) refresh() (needsBarrier uint64) {
	g.keepMark()
	g.keepBoot()
	v := view{barrier: g.barrier(), leader: meta.NoNode}
	v.leader, v.term, _ = g.Leader()
	v.serving, _ = g.Serving()
	for _, s := range g.raft().GetConfiguration().Configuration().Servers {
		v.members += fmt.Sprintf("%s %d ", s.ID, s.Suffrage)
	}
	g.checkCurrent()
	if term, leads := g.leads(); leads && term != v.barrier {
		needsBarrier = term
	}
	g.mu.Lock()
	old := g.mu.view
	g.mu.view = v
	g.mu.Unlock()
	if old == v {
		return needsBarrier
	}
	if old.leader != v.leader || old.term != v.term {
		g.metrics.leaderChanges.Inc()
		g.slog.Info("leader", "leader", int(v.leader), "term", v.term)
	}
	g.broadcast()
	return needsBarrier
}

func (g *Group) broadcast() {
	g.mu.Lock()
	close(g.mu.changed)
	g.mu.changed = make(chan struct{})
	g.mu.Unlock()
}

// Changed returns a channel that is closed at the next change of leader, term, serving or members.
// Fetch it before looking, and anew after each change.
func (g *Group) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.changed
}

// leads returns the term in which this replica leads at this moment.
func (g *Group) leads() (term uint64, ok bool) {
	r := g.raft()
	term = r.CurrentTerm()
	return term, r.State() == raft.Leader && r.CurrentTerm() == term && g.Err() == nil
}

// Leader is the leader of the newest term that this replica knows, and that term. Ok is false when
// it knows none.
func (g *Group) Leader() (node meta.NodeID, term uint64, ok bool) {
	r := g.raft()
	for {
		term = r.CurrentTerm()
		_, id := r.LeaderWithID()
		if r.CurrentTerm() != term {
			continue // an election between the two: the leader may be of either term
		}
		s, ok := parseServer(string(id))
		if !ok {
			return meta.NoNode, term, false
		}
		return s.Node, term, true
	}
}

// Serving tells whether this replica leads, has applied everything that was committed before it
// led, lacks no data and can write its log; and in which term. Another leader may have been elected
// that this one has not heard of yet: see Verify.
func (g *Group) Serving() (term uint64, ok bool) {
	term, ok = g.leads()
	if !ok || g.barrier() != term || !g.servable() || g.log.Busy() > g.heartbeat {
		return 0, false
	}
	return term, true
}

func (g *Group) servable() bool {
	if s, ok := g.sm.(Servable); ok {
		return s.Servable()
	}
	return g.sm.Complete()
}

func (g *Group) barrier() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.view.barrier
}

func (g *Group) setBarrier(term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.view.barrier = max(g.mu.view.barrier, term)
}

// passBarrier proposes a barrier in a term and reports the term when everything before it has been
// applied. If the term is the same before and after, the barrier was appended in it.
func (g *Group) passBarrier(term uint64, passed chan<- uint64) {
	held, err := g.queue.acquire(g.ctx, FlowNone, 0)
	if err != nil {
		return
	}
	p := g.queue.follow(g.raft().Barrier(0), held)
	if _, err := p.Wait(g.ctx); err != nil {
		return
	}
	if now, ok := g.leads(); !ok || now != term {
		return
	}
	select {
	case passed <- term:
	case <-g.ctx.Done():
	}
}

// learned notes what a leader said to be committed, until the replica is known to be current.
func (g *Group) learned(term, index uint64) {
	if index == 0 {
		return
	}
	select {
	case <-g.current:
		return
	default:
	}
	g.mu.Lock()
	g.mu.learned = commit{term, index}
	g.mu.Unlock()
}

// Current is closed once this replica has applied an entry that was committed in the term of a
// leader it has heard of since its start, and with it everything that was committed before that
// leader was elected. Until then its state may be that of its last checkpoint: nothing may be
// concluded from what is absent (guard 7 in DESIGN.md).
func (g *Group) Current() <-chan struct{} { return g.current }

func (g *Group) checkCurrent() {
	select {
	case <-g.current:
		return
	default:
	}
	g.mu.Lock()
	c := g.mu.learned
	g.mu.Unlock()
	if term, ok := g.leads(); ok && g.barrier() == term {
		close(g.current)
		return
	}
	if c.index == 0 || c.index > g.raft().CommitIndex() {
		return
	}
	var l raft.Log
	if err := g.log.GetLog(c.index, &l); err == nil && l.Term == c.term && g.hasApplied(l) {
		close(g.current)
	}
}

// hasApplied tells whether the state machine has applied everything up to a committed entry. It
// sees commands and configurations only, so the last of those counts: above the applied index there
// are few others.
func (g *Group) hasApplied(l raft.Log) bool {
	applied := g.fsm.applied.Load()
	for l.Index > applied {
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			return false
		}
		if err := g.log.GetLog(l.Index-1, &l); err != nil {
			return errors.Is(err, raft.ErrLogNotFound) // the checkpoint ends there
		}
	}
	return true
}
