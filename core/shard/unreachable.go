package shard

import (
	"time"

	"github.com/hashicorp/raft"
)

// unreachablePoll is how often a leader looks whether a member that it could not reach answers again.
const unreachablePoll = 50 * time.Millisecond

// awaitReachable is called after entries could not be sent to a member. It waits until a heartbeat
// reaches it again, or until there is no reason to send it anything.
//
// The library waits after each failure twice as long as after the one before, up to ten seconds, and
// nothing ends that wait: a member that was away for five seconds is left alone for five more, and
// when another one dies meanwhile the group has no majority although enough of it is up. Waiting
// here, one outage is one failure.
func (t *transport) awaitReachable(id raft.ServerID, term uint64, since time.Time) {
	tick := time.NewTicker(unreachablePoll)
	defer tick.Stop()
	for !t.g.peers.answeredSince(id, since) && t.sendsTo(id, term) {
		select {
		case <-tick.C:
		case <-t.g.ctx.Done():
			return
		}
	}
}

// answeredSince tells whether a follower has answered anything after that time.
func (p *peers) answeredSince(id raft.ServerID, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.byID[id]
	return f != nil && f.answered.After(since)
}

// sendsTo tells whether this replica still leads in that term and the member belongs to the group.
func (t *transport) sendsTo(id raft.ServerID, term uint64) bool {
	if t.mayLead() != nil || t.g.stopping.Load() {
		return false
	}
	r := t.g.raft()
	if r.State() != raft.Leader || r.CurrentTerm() != term {
		return false
	}
	f := r.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	for _, s := range f.Configuration().Servers {
		if s.ID == id {
			return true
		}
	}
	return false
}
