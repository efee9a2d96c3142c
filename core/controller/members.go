package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sluice/core/meta"
	"sluice/core/shard"
)

const (
	// membersInterval is how often the members of a group are compared with the wanted ones.
	membersInterval = 500 * time.Millisecond
	// changeTimeout bounds one change of a group's members.
	changeTimeout = 10 * time.Second
	// votersMax: more voters of the metadata make every command slower and nothing safer.
	votersMax = 7
)

// metadataVoters is how many of n nodes vote: an odd number, since an even one survives no more
// failures than the odd one below it.
func metadataVoters(n int) int { return min(n-(n+1)%2, votersMax) }

// membership is what a group's leader wants of its members.
type membership struct {
	want   []meta.Server // all members
	voters int           // how many of them vote
	usable func(meta.Server) bool
}

// step makes at most one change towards the wanted members and tells whether it made one. The
// order keeps the group safe: a new member copies what there is before it votes, and what it
// replaces goes when it is there.
func (m *membership) step(ctx context.Context, g *shard.Group, self meta.Server) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	have := g.Replicas()
	for _, s := range m.want {
		if !slices.ContainsFunc(have, func(r shard.Replica) bool { return r.Server == s }) && m.usable(s) {
			return true, named("add", s, g.AddNonvoter(ctx, s))
		}
	}
	if s, ok := m.promotable(have); ok {
		return true, named("promote", s, g.AddVoter(ctx, s))
	}
	if s, ok := m.removable(have); ok && s != self {
		return true, named("remove", s, g.RemoveServer(ctx, s))
	}
	return false, nil
}

func named(what string, s meta.Server, err error) error {
	if err != nil {
		return fmt.Errorf("%s member %s: %w", what, s, err)
	}
	return nil
}

// wantedVoters counts the members that vote and shall stay.
func (m *membership) wantedVoters(have []shard.Replica) int {
	n := 0
	for _, r := range have {
		if r.Voter && slices.Contains(m.want, r.Server) {
			n++
		}
	}
	return n
}

func (m *membership) promotable(have []shard.Replica) (meta.Server, bool) {
	if m.wantedVoters(have) >= m.voters {
		return meta.Server{}, false
	}
	for _, s := range m.want {
		at := slices.IndexFunc(have, func(r shard.Replica) bool { return r.Server == s })
		if at >= 0 && !have[at].Voter && have[at].InSync && m.usable(s) {
			return s, true
		}
	}
	return meta.Server{}, false
}

// removable returns a member that is not wanted, once all that should vote do.
func (m *membership) removable(have []shard.Replica) (meta.Server, bool) {
	if m.wantedVoters(have) < m.voters {
		return meta.Server{}, false
	}
	for _, r := range have {
		if !slices.Contains(m.want, r.Server) {
			return r.Server, true
		}
	}
	return meta.Server{}, false
}

// members keeps the metadata group's members: all registered nodes, the first of them with a vote.
type members struct {
	c  *Controller
	ch chan struct{}
}

func newMembers(c *Controller) *members { return &members{c: c, ch: make(chan struct{}, 1)} }

// poke has the members looked at now.
func (m *members) poke() {
	select {
	case m.ch <- struct{}{}:
	default:
	}
}

func (m *members) run(ctx context.Context) {
	tick := time.NewTicker(membersInterval)
	defer tick.Stop()
	for {
		for m.c.lead.serving() == nil && ctx.Err() == nil {
			changed, err := m.pass(ctx)
			if err != nil {
				m.c.log.Warn("could not change the members of the metadata group", "err", err)
			}
			if !changed || err != nil {
				break
			}
		}
		select {
		case <-tick.C:
		case <-m.ch:
		case <-ctx.Done():
			return
		}
	}
}

func (m *members) pass(ctx context.Context) (changed bool, err error) {
	nodes := m.c.Image().Nodes()
	if len(nodes) == 0 {
		return false, nil
	}
	want := membership{voters: metadataVoters(len(nodes)), usable: func(s meta.Server) bool { return m.c.lead.live(s.Node) }}
	for _, n := range nodes {
		want.want = append(want.want, n.Server())
	}
	changed, err = want.step(ctx, m.c.group(), m.c.id.server())
	if changed && err == nil {
		m.c.log.Info("changed the members of the metadata group", "members", len(m.c.group().Replicas()))
	}
	return changed, err
}
