package group

import "time"

func (e Sync) apply(c *Coordinator, now time.Time) {
	refuse := func(code Code) { c.answer(e.Ticket, e.Group, SyncResponse{Code: code}) }
	if e.Group == "" {
		refuse(InvalidGroupID)
		return
	}
	g := c.groups[e.Group]
	if g == nil {
		refuse(UnknownMemberID)
		return
	}
	m, code := g.identify(e.MemberID, e.InstanceID)
	switch {
	case code != None:
		refuse(code)
	case e.Generation != g.generation:
		refuse(IllegalGeneration)
	case differs(e.ProtocolType, g.protocolType), differs(e.Protocol, g.protocol):
		refuse(InconsistentProtocol)
	case g.state == PreparingRebalance:
		refuse(RebalanceInProgress)
	case g.state == CompletingRebalance:
		c.syncCompleting(g, m, e, now)
	default:
		c.synced(g, m)
		c.extend(g, m, now.Add(m.session))
		c.answer(e.Ticket, g.id, g.syncResponse(m))
	}
}

// differs tells whether something was said and is not what it should be.
func differs(said, is string) bool { return said != "" && said != is }

// syncCompleting parks a member's SyncGroup until the leader's brings the assignments.
func (c *Coordinator) syncCompleting(g *group, m *member, e Sync, now time.Time) {
	if g.leader == m.id && assignmentBytes(e.Assignments) > c.config.GroupBytes {
		c.answer(e.Ticket, g.id, SyncResponse{Code: UnknownServerError})
		return
	}
	if m.sync != 0 {
		c.answer(m.sync, g.id, SyncResponse{Code: RebalanceInProgress})
	}
	m.sync = e.Ticket
	c.synced(g, m)
	if g.leader != m.id {
		return
	}
	for _, m := range g.members {
		m.assignment = e.Assignments[m.id]
	}
	c.transition(g, Stable, now)
	c.stats.Rebalances++
	c.writeGroup(g)
	for _, m := range g.members {
		if m.sync != 0 {
			c.answer(m.sync, g.id, g.syncResponse(m))
			m.sync = 0
			c.extend(g, m, now.Add(m.session))
		}
	}
}

func assignmentBytes(assignments map[string][]byte) int {
	n := 0
	for id, a := range assignments {
		n += len(id) + len(a)
	}
	return n
}

// synced notes that the member has asked for its assignment of this generation.
func (c *Coordinator) synced(g *group, m *member) {
	delete(g.syncPending, m.id)
	if len(g.syncPending) == 0 {
		c.timers.stop(g.syncTimer)
	}
}

func (g *group) syncResponse(m *member) SyncResponse {
	return SyncResponse{ProtocolType: g.protocolType, Protocol: g.protocol, Assignment: m.assignment}
}

func (e Heartbeat) apply(c *Coordinator, now time.Time) {
	c.answer(e.Ticket, e.Group, HeartbeatResponse{c.heartbeat(e, now)})
}

func (c *Coordinator) heartbeat(e Heartbeat, now time.Time) Code {
	if e.Group == "" {
		return InvalidGroupID
	}
	g := c.groups[e.Group]
	if g == nil {
		return UnknownMemberID
	}
	m, code := g.identify(e.MemberID, e.InstanceID)
	if code != None {
		return code
	}
	if e.Generation != g.generation {
		return IllegalGeneration
	}
	c.alive(g, m, now)
	if g.state == PreparingRebalance {
		return RebalanceInProgress
	}
	return None
}

// alive begins the member's session anew. A new member that waits for its first generation has
// none yet: its longer deadline stays.
func (c *Coordinator) alive(g *group, m *member, now time.Time) {
	if !m.isNew {
		c.extend(g, m, now.Add(m.session))
	}
}

func (e Leave) apply(c *Coordinator, now time.Time) {
	r := LeaveResponse{Codes: make([]Code, len(e.Members))}
	if e.Group == "" {
		r.Code = InvalidGroupID
		c.answer(e.Ticket, e.Group, r)
		return
	}
	g := c.groups[e.Group]
	left := false
	for i, m := range e.Members {
		if g == nil {
			r.Codes[i] = UnknownMemberID
			continue
		}
		r.Codes[i] = c.leave(g, m)
		left = left || r.Codes[i] == None
	}
	if left {
		c.afterRemoval(g, now)
	}
	c.answer(e.Ticket, e.Group, r)
}

// leave takes one member out. An administrator names a static member by its instance id alone.
func (c *Coordinator) leave(g *group, who LeaveMember) Code {
	if who.MemberID == "" && who.InstanceID != "" {
		m := g.byID[g.static[who.InstanceID]]
		if m == nil {
			return UnknownMemberID
		}
		c.remove(g, m)
		return None
	}
	if _, ok := g.pending[who.MemberID]; ok {
		c.dropPending(g, who.MemberID)
		return None
	}
	m, code := g.identify(who.MemberID, who.InstanceID)
	if code == None {
		c.remove(g, m)
	}
	return code
}
