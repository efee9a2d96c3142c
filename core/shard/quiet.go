package shard

import (
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

// pace slows the heartbeats of a group down that has been led without a new entry for quietAfter,
// and takes them up again when there is one. A leader's heartbeat timeout means nothing but how
// often it sends; as soon as it leads no more it has the others' again.
//
// It belongs to the watcher.
func (g *Group) pace(now time.Time) {
	_, leads := g.leads()
	want := g.heartbeat
	if g.idle.longSince(leads, g.raft().LastIndex(), now) {
		want = quietFactor * g.heartbeat
	}
	if have := g.raft().ReloadableConfig().HeartbeatTimeout; have == want {
		return
	}
	err := g.reload(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout, c.ElectionTimeout = want, want })
	if err != nil {
		g.slog.Warn("heartbeats stay as they are", "err", err)
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

// reload changes what the library lets change while it runs.
func (g *Group) reload(change func(*raft.ReloadableConfig)) error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	r := g.raft()
	c := r.ReloadableConfig()
	change(&c)
	return r.ReloadConfig(c)
}

// UntilEven is the time until the next whole multiple of d: what looks regularly does so at the
// same moments in all groups of a process, and wakes it once for all of them.
func UntilEven(d time.Duration) time.Duration {
	return d - time.Duration(time.Now().UnixNano()%int64(d))
}
