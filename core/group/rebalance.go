package group

import "time"

// absentRetryMin keeps a group that waits for static members only from looking for them all the time
// when their rebalance timeout is next to nothing.
const absentRetryMin = time.Second

// transition moves the group to another state.
func (c *Coordinator) transition(g *group, to State, now time.Time) {
	c.stats.Groups[g.state]--
	c.stats.Groups[to]++
	g.previous, g.state, g.since = g.state, to, now
}

// rebalance begins a rebalance unless one is under way.
func (c *Coordinator) rebalance(g *group, now time.Time) {
	if g.state == PreparingRebalance {
		return
	}
	if g.state == CompletingRebalance {
		c.cancelSyncs(g, now)
	}
	c.timers.stop(g.syncTimer)
	initial := g.state == Empty
	c.transition(g, PreparingRebalance, now)
	if !initial {
		g.joinTimer = c.timers.schedule(now.Add(g.rebalanceTimeout()), func(now time.Time) { c.completeJoin(g, now) })
		c.completeJoinIfReady(g, now)
		return
	}
	delay := c.config.InitialDelay
	if delay <= 0 {
		c.completeJoin(g, now)
		return
	}
	g.grew = false
	g.delay = initialDelay{delay, max(g.rebalanceTimeout()-delay, 0)}
	g.joinTimer = c.timers.schedule(now.Add(delay), func(now time.Time) { c.endInitialDelay(g, now) })
}

// endInitialDelay ends the wait for further members of a group that was empty, or extends it when
// some came, until the rebalance timeout is used up.
func (c *Coordinator) endInitialDelay(g *group, now time.Time) {
	if !g.grew || g.delay.remaining == 0 {
		c.completeJoin(g, now)
		return
	}
	g.grew = false
	next := initialDelay{min(c.config.InitialDelay, g.delay.remaining), max(g.delay.remaining-g.delay.step, 0)}
	g.delay = next
	c.timers.move(g.joinTimer, now.Add(next.step))
}

// cancelSyncs ends a generation that never became stable: whoever waits for its assignment joins again.
func (c *Coordinator) cancelSyncs(g *group, now time.Time) {
	for _, m := range g.members {
		m.assignment = nil
		if m.sync != 0 {
			c.answer(m.sync, g.id, SyncResponse{Code: RebalanceInProgress})
			m.sync = 0
			c.extend(g, m, now.Add(m.session))
		}
	}
}

// completeJoinIfReady ends the joining as soon as nobody is missing. The first one of a group
// that was empty lasts as long as its delay.
func (c *Coordinator) completeJoinIfReady(g *group, now time.Time) {
	if g.state == PreparingRebalance && g.previous != Empty && g.allJoined() {
		c.completeJoin(g, now)
	}
}

// completeJoin begins the next generation with those that joined. Dynamic members that did not are
// out; static ones stay, as their sessions decide about them (KIP-345).
func (c *Coordinator) completeJoin(g *group, now time.Time) {
	c.timers.stop(g.joinTimer)
	for _, m := range append([]*member(nil), g.members...) {
		if m.join == 0 && m.instanceID == "" {
			c.remove(g, m)
		}
	}
	if len(g.members) > 0 && !g.electJoined() {
		// Only static members are left, and none has come: try again until their sessions end.
		again := max(g.rebalanceTimeout(), absentRetryMin)
		g.joinTimer = c.timers.schedule(now.Add(again), func(now time.Time) { c.completeJoin(g, now) })
		return
	}
	g.generation++
	clear(g.syncPending)
	if len(g.members) == 0 {
		c.becomeEmpty(g, now)
		return
	}
	g.protocol = g.choose()
	c.transition(g, CompletingRebalance, now)
	g.subscribe()
	for _, m := range g.members {
		m.assignment = nil
	}
	c.writeGroup(g)
	c.answerJoined(g, now)
	c.awaitSyncs(g, now)
}

func (c *Coordinator) becomeEmpty(g *group, now time.Time) {
	g.protocol, g.leader = "", ""
	c.transition(g, Empty, now)
	g.subscribe()
	c.writeGroup(g)
}

// electJoined makes sure that the leader is among those that joined.
func (g *group) electJoined() bool {
	if m := g.byID[g.leader]; m != nil && m.join != 0 {
		return true
	}
	for _, m := range g.members {
		if m.join != 0 {
			g.leader = m.id
			return true
		}
	}
	return false
}

func (c *Coordinator) answerJoined(g *group, now time.Time) {
	for _, m := range g.members {
		if m.join != 0 {
			c.answerJoin(g, m, m.join, g.leader == m.id)
			m.join = 0
			g.joining--
		}
		c.extend(g, m, now.Add(m.session))
		m.isNew = false
		g.syncPending[m.id] = struct{}{}
	}
}

// awaitSyncs gives all members the rebalance timeout to ask for their assignment.
func (c *Coordinator) awaitSyncs(g *group, now time.Time) {
	c.timers.stop(g.syncTimer)
	g.syncTimer = c.timers.schedule(now.Add(g.rebalanceTimeout()), func(now time.Time) { c.expireSyncs(g, now) })
}

func (c *Coordinator) expireSyncs(g *group, now time.Time) {
	if g.state != CompletingRebalance && g.state != Stable || len(g.syncPending) == 0 {
		return
	}
	for _, m := range append([]*member(nil), g.members...) {
		if _, ok := g.syncPending[m.id]; ok {
			c.remove(g, m)
		}
	}
	c.rebalance(g, now)
}

// extend gives a member until the deadline to be heard of.
func (c *Coordinator) extend(g *group, m *member, deadline time.Time) {
	if m.timer == nil {
		m.timer = c.timers.schedule(deadline, func(now time.Time) { c.expireMember(g, m, now) })
		return
	}
	c.timers.move(m.timer, deadline)
}

// expireMember ends the session of a member. One that waits for the coordinator is not silent;
// its session begins again with the answer.
func (c *Coordinator) expireMember(g *group, m *member, now time.Time) {
	if !m.isNew && (m.join != 0 || m.sync != 0) {
		return
	}
	c.remove(g, m)
	c.afterRemoval(g, now)
}

// afterRemoval begins the rebalance that a lost member asks for, or ends one that waited for it only.
func (c *Coordinator) afterRemoval(g *group, now time.Time) {
	switch g.state {
	case Stable, CompletingRebalance:
		c.rebalance(g, now)
	case PreparingRebalance:
		c.completeJoinIfReady(g, now)
	}
}

// remove takes a member out of the group; what it waits for is answered, so that a client that
// still lives joins anew.
func (c *Coordinator) remove(g *group, m *member) {
	if m.join != 0 {
		c.answer(m.join, g.id, JoinResponse{Code: UnknownMemberID, Generation: -1})
		m.join = 0
		g.joining--
	}
	if m.sync != 0 {
		c.answer(m.sync, g.id, SyncResponse{Code: UnknownMemberID})
		m.sync = 0
	}
	c.timers.stop(m.timer)
	delete(g.syncPending, m.id)
	delete(g.byID, m.id)
	if m.instanceID != "" && g.static[m.instanceID] == m.id {
		delete(g.static, m.instanceID)
	}
	for i, other := range g.members {
		if other == m {
			g.members = append(g.members[:i], g.members[i+1:]...)
			break
		}
	}
	if g.leader == m.id {
		g.leader = ""
		if len(g.members) > 0 {
			g.leader = g.members[0].id
		}
	}
	c.weight -= m.weight
	c.stats.Members--
}
