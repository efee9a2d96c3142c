package controller

import (
	"context"
	"time"

	"sluice/core/meta"
)

const (
	// changeTimeout bounds one change of a group's members.
	changeTimeout = 10 * time.Second
	// votersMax: more voters of the metadata make every command slower and nothing safer.
	votersMax = 7
)

// metadataVoters is how many of n nodes vote: an odd number, since an even one survives no more
// failures than the odd one below it.
func metadataVoters(n int) int { return min(n-(n+1)%2, votersMax) }

// members keeps the metadata group's members: all registered nodes, an odd number of them with a vote.
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
	for {
		beat := m.c.beat.wait()
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
		case <-beat:
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
	r := &roster{have: m.c.group().Replicas(), self: m.c.id.server(), usable: m.usable}
	next := r.towardsQuorum(m.quorum())
	if next.what == actNothing {
		return false, nil
	}
	if err := next.apply(ctx, m.c.group()); err != nil {
		return false, err
	}
	m.c.log.Info("changed the members of the metadata group", "change", actionNames[next.what], "server", next.who, "members", len(m.c.group().Replicas()))
	return true, nil
}

func (m *members) usable(s meta.Server) bool {
	return m.c.lead.live(s.Node) && !m.c.heals.isHeld(meta.MetadataShard, s)
}

// quorum says who shall vote. A node that drains counts, and keeps its vote where nobody can take it, until it has no replicas
// any more and is about to go.
func (m *members) quorum() *quorum {
	image := m.c.Image()
	q := &quorum{bad: func(s meta.Server) bool {
		n, ok := image.Node(s.Node)
		return !ok || n.Draining || m.c.lead.longDead(s)
	}}
	staying := 0
	for _, n := range image.Nodes() {
		q.nodes = append(q.nodes, n.Server())
		staying += boolToInt(!n.Draining || holdsReplicas(image, n.Server()))
	}
	q.target = metadataVoters(max(staying, 1))
	return q
}

// holdsReplicas tells whether a server has replicas, or has still to delete some.
func holdsReplicas(image *meta.Image, s meta.Server) bool { return replicaCount(image, s) > 0 }

// replicaCount counts the replicas that a server has as far as the metadata knows.
func replicaCount(image *meta.Image, s meta.Server) int {
	n := len(image.ReplicaRemovals(s))
	for _, sh := range image.Shards() {
		n += boolToInt(!sh.Lost && sh.Has(s) || leaves(sh, s))
	}
	return n
}

func leaves(sh *meta.Shard, s meta.Server) bool {
	for _, x := range sh.Leaving {
		if x == s {
			return true
		}
	}
	return false
}
