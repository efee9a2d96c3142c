package group

import "time"

func (e Join) apply(c *Coordinator, now time.Time) {
	if e.Rebalance <= 0 {
		e.Rebalance = e.Session
	}
	if e.Group == "" {
		c.refuseJoin(e, e.MemberID, InvalidGroupID)
		return
	}
	if e.Session < c.config.MinSession || e.Session > c.config.MaxSession {
		c.refuseJoin(e, e.MemberID, InvalidSessionTimeout)
		return
	}
	g := c.groups[e.Group]
	if g == nil {
		if e.MemberID != "" {
			c.refuseJoin(e, e.MemberID, UnknownMemberID)
			return
		}
		g = c.create(e.Group, now)
	}
	c.joinGroup(g, e, now)
	c.completeJoinIfReady(g, now)
	c.forgetUnrecorded(g) // made for a member that was turned away
}

func (c *Coordinator) refuseJoin(e Join, memberID string, code Code) {
	c.answer(e.Ticket, e.Group, JoinResponse{Code: code, Generation: -1, MemberID: memberID})
}

func (c *Coordinator) joinGroup(g *group, e Join, now time.Time) {
	if !c.hasRoom(g, e.MemberID) {
		if m := g.byID[e.MemberID]; m != nil {
			c.remove(g, m)
		}
		c.dropPending(g, e.MemberID)
		c.refuseJoin(e, "", GroupMaxSizeReached)
		return
	}
	if !g.supports(e.ProtocolType, e.Protocols) {
		c.refuseJoin(e, e.MemberID, InconsistentProtocol)
		return
	}
	if g.bytesWith(e) > c.config.GroupBytes {
		c.refuseJoin(e, e.MemberID, GroupMaxSizeReached)
		return
	}
	_, pending := g.pending[e.MemberID]
	if c.tooMuch(g, e) {
		c.refuseJoin(e, e.MemberID, GroupMaxSizeReached)
		return
	}
	switch {
	case e.MemberID == "" && e.InstanceID != "" && g.static[e.InstanceID] != "":
		c.replaceStatic(g, e, now)
	case e.MemberID == "" && e.InstanceID == "" && e.RequireMemberID:
		c.handOutID(g, e, now)
	case e.MemberID == "":
		c.addMember(g, e, c.memberID(e), now)
	case pending && e.InstanceID == "":
		c.dropPending(g, e.MemberID)
		c.addMember(g, e, e.MemberID, now)
	default:
		c.rejoin(g, e, now)
	}
}

// tooMuch tells whether the coordinator holds so much that this member cannot be taken, or cannot say more than it has said.
func (c *Coordinator) tooMuch(g *group, e Join) bool {
	more := memberOverhead + metadataBytes(e.Protocols)
	if m := g.byID[e.MemberID]; m != nil {
		more -= m.weight
	}
	return more > 0 && c.full(more)
}

// hasRoom tells whether the group can take this member. While a group rebalances, those that wait
// are counted, not those it had: so the last to come are turned away when the limit was lowered.
func (c *Coordinator) hasRoom(g *group, memberID string) bool {
	limit := c.config.MaxSize
	m := g.byID[memberID]
	switch {
	case limit <= 0 || g.state == Empty:
		return true
	case g.state == PreparingRebalance:
		return m != nil && m.join != 0 || g.joining < limit
	default:
		return m != nil || len(g.members) < limit
	}
}

// memberID makes the id of a new member: of its client's name, or of its instance id if it is static.
func (c *Coordinator) memberID(e Join) string {
	if e.InstanceID != "" {
		return e.InstanceID + "-" + c.config.NewID()
	}
	return e.ClientID + "-" + c.config.NewID()
}

// handOutID tells a new dynamic member its id and lets it join again with it (KIP-394), so that a
// member whose JoinGroup is lost on the way leaves nothing behind but this id, for one session.
func (c *Coordinator) handOutID(g *group, e Join, now time.Time) {
	id := c.memberID(e)
	c.handed++
	g.pending[id] = c.timers.schedule(now.Add(e.Session), func(now time.Time) {
		c.handed--
		delete(g.pending, id)
		c.completeJoinIfReady(g, now)
		c.forgetUnrecorded(g)
	})
	c.answer(e.Ticket, e.Group, JoinResponse{Code: MemberIDRequired, Generation: -1, MemberID: id})
}

func (c *Coordinator) dropPending(g *group, id string) {
	if t, ok := g.pending[id]; ok {
		c.timers.stop(t)
		c.handed--
		delete(g.pending, id)
	}
}

func (c *Coordinator) addMember(g *group, e Join, id string, now time.Time) {
	m := &member{
		id: id, instanceID: e.InstanceID, clientID: e.ClientID, clientHost: e.ClientHost,
		session: e.Session, rebalance: e.Rebalance, protocols: e.Protocols, isNew: true,
	}
	if g.state == PreparingRebalance && g.previous == Empty {
		g.grew = true
	}
	g.insert(m, e.ProtocolType)
	c.weigh(m)
	c.stats.Members++
	c.waitForJoin(g, m, e.Ticket)
	c.extend(g, m, now.Add(newMemberJoinTimeout))
	c.rebalance(g, now)
}

// rejoin handles JoinGroup of a member that the group knows.
func (c *Coordinator) rejoin(g *group, e Join, now time.Time) {
	m, code := g.identify(e.MemberID, e.InstanceID)
	if code != None {
		c.refuseJoin(e, e.MemberID, code)
		return
	}
	switch {
	case g.state == CompletingRebalance && m.matches(e.Protocols):
		// It may not have seen the answer to its first JoinGroup of this generation.
		c.answerJoin(g, m, e.Ticket, g.leader == m.id)
	case g.state == Stable && m.matches(e.Protocols) && g.leader != m.id:
		c.answerJoin(g, m, e.Ticket, false)
	case g.state == Empty:
		panic("BUG: member of an empty group")
	default:
		// The leader may have seen new partitions: its word is enough for a rebalance.
		c.update(g, m, e)
		c.waitForJoin(g, m, e.Ticket)
		c.rebalance(g, now)
	}
}

func (c *Coordinator) update(g *group, m *member, e Join) {
	m.session, m.rebalance, m.protocols = e.Session, e.Rebalance, e.Protocols
	c.weigh(m)
}

// waitForJoin parks the member's JoinGroup. One that waited already has lost its connection, or
// its client sent two: it is told to come again.
func (c *Coordinator) waitForJoin(g *group, m *member, t Ticket) {
	if m.join == 0 {
		g.joining++
	} else {
		c.answer(m.join, g.id, JoinResponse{Code: RebalanceInProgress, Generation: -1, MemberID: m.id})
	}
	m.join = t
}

// replaceStatic lets a static member that has lost its member id come back under a new one. The
// old id is fenced. A stable group whose protocol does not change goes on undisturbed (KIP-345,
// KIP-814), unless the generation is being completed: the leader's assignments then name the old id.
func (c *Coordinator) replaceStatic(g *group, e Join, now time.Time) {
	m := g.byID[g.static[e.InstanceID]]
	leader := g.leader
	c.fence(g, m)
	c.rename(g, m, c.memberID(e))
	m.clientID, m.clientHost = e.ClientID, e.ClientHost
	c.update(g, m, e)
	c.extend(g, m, now.Add(m.session))
	if g.state != Stable || g.choose() != g.protocol {
		c.waitForJoin(g, m, e.Ticket)
		c.rebalance(g, now)
		return
	}
	g.subscribe()
	c.writeGroup(g)
	r := g.joinResponse(m, e.SkipAssignment && g.leader == m.id)
	r.SkipAssignment = len(r.Members) > 0
	if !e.SkipAssignment {
		r.Leader = leader // the old id: the client must not take itself for the leader and assign again
	}
	c.answer(e.Ticket, g.id, r)
}

// fence answers what waits under the member's old id.
func (c *Coordinator) fence(g *group, m *member) {
	if m.join != 0 {
		c.answer(m.join, g.id, JoinResponse{Code: FencedInstanceID, Generation: -1, MemberID: m.id})
		m.join = 0
		g.joining--
	}
	if m.sync != 0 {
		c.answer(m.sync, g.id, SyncResponse{Code: FencedInstanceID})
		m.sync = 0
	}
}

func (c *Coordinator) rename(g *group, m *member, id string) {
	old := m.id
	delete(g.byID, old)
	m.id = id
	g.byID[id] = m
	g.static[m.instanceID] = id
	if g.leader == old {
		g.leader = id
	}
	if _, ok := g.syncPending[old]; ok {
		delete(g.syncPending, old)
		g.syncPending[id] = struct{}{}
	}
}

func (c *Coordinator) answerJoin(g *group, m *member, t Ticket, asLeader bool) {
	c.answer(t, g.id, g.joinResponse(m, asLeader))
}

// joinResponse tells a member of the present generation; as leader it also learns who else is in it.
func (g *group) joinResponse(m *member, asLeader bool) JoinResponse {
	r := JoinResponse{
		Generation: g.generation, ProtocolType: g.protocolType, Protocol: g.protocol,
		Leader: g.leader, MemberID: m.id,
	}
	if !asLeader {
		return r
	}
	r.Members = make([]JoinMember, 0, len(g.members))
	for _, other := range g.members {
		metadata, _ := other.metadata(g.protocol)
		r.Members = append(r.Members, JoinMember{other.id, other.instanceID, metadata})
	}
	return r
}

// bytesWith returns what the members' metadata would take with this member's.
func (g *group) bytesWith(e Join) int {
	n := 0
	for _, m := range g.members {
		if m.id != e.MemberID {
			n += metadataBytes(m.protocols)
		}
	}
	return n + metadataBytes(e.Protocols)
}

func metadataBytes(protocols []Protocol) int {
	n := 0
	for _, p := range protocols {
		n += len(p.Name) + len(p.Metadata)
	}
	return n
}
