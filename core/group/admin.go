package group

import (
	"maps"
	"slices"
	"time"
)

// ids returns the groups in order, so that what is done to all of them is done alike every time.
func (c *Coordinator) ids() []string { return slices.Sorted(maps.Keys(c.groups)) }

// create adds an empty group, of which nothing is recorded yet.
func (c *Coordinator) create(id string, now time.Time) *group {
	g := newGroup(id, now)
	c.groups[id] = g
	c.stats.Groups[Empty]++
	return g
}

// bury forgets a group for good: its offsets, its members' ids, and its record.
func (c *Coordinator) bury(g *group) {
	for _, p := range g.partitions() {
		c.dropOffset(g, p)
		c.buryOffset(g.id, p)
	}
	if g.recorded {
		c.buryGroup(g.id)
	}
	c.forget(g)
}

func (c *Coordinator) forget(g *group) {
	for id := range g.pending {
		c.dropPending(g, id)
	}
	c.stats.Groups[g.state]--
	delete(c.groups, g.id)
}

func (e Delete) apply(c *Coordinator, _ time.Time) {
	g := c.groups[e.Group]
	code := None
	switch {
	case g == nil:
		code = GroupIDNotFound
	case g.state != Empty:
		code = NonEmptyGroup
	default:
		c.bury(g)
	}
	c.answer(e.Ticket, e.Group, DeleteResponse{code})
}

func (e Describe) apply(c *Coordinator, _ time.Time) {
	g := c.groups[e.Group]
	if g == nil {
		c.answer(e.Ticket, e.Group, DescribeResponse{Code: GroupIDNotFound, State: Dead})
		return
	}
	r := DescribeResponse{State: g.state, ProtocolType: g.protocolType, Generation: g.generation}
	if g.state == Stable {
		r.Protocol = g.protocol
	}
	for _, m := range g.members {
		d := DescribeMember{MemberID: m.id, InstanceID: m.instanceID, ClientID: m.clientID, ClientHost: m.clientHost}
		if g.state == Stable {
			d.Metadata, _ = m.metadata(g.protocol)
			d.Assignment = m.assignment
		}
		r.Members = append(r.Members, d)
	}
	c.answer(e.Ticket, e.Group, r)
}

func (e List) apply(c *Coordinator, _ time.Time) {
	r := ListResponse{Groups: make([]Listed, 0, len(c.groups))}
	for _, id := range c.ids() {
		g := c.groups[id]
		r.Groups = append(r.Groups, Listed{id, g.protocolType, g.state})
	}
	c.answer(e.Ticket, "", r)
}

func (Tick) apply(c *Coordinator, now time.Time) {
	for t := c.timers.due(now); t != nil; t = c.timers.due(now) {
		t.fire(now)
	}
}
