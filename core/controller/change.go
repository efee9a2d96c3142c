package controller

import (
	"context"
	"fmt"
	"slices"

	"sluice/core/meta"
	"sluice/core/shard"
)

// action is one change of a group's members.
type action uint8

const (
	actNothing action = iota
	actAdd
	actPromote
	actTransfer
	actDemote
	actRemove
)

var actionNames = [...]string{"do nothing with", "add", "promote", "hand over to", "demote", "remove"}

// change is an action and whom it concerns.
type change struct {
	what action
	who  meta.Server
}

// apply makes the change in the group that this node leads.
func (x change) apply(ctx context.Context, g *shard.Group) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	var err error
	switch x.what {
	case actAdd:
		err = g.AddNonvoter(ctx, x.who)
	case actPromote:
		err = g.AddVoter(ctx, x.who)
	case actTransfer:
		err = g.Transfer(ctx, x.who.Node)
	case actDemote:
		err = g.Demote(ctx, x.who)
	case actRemove:
		err = g.RemoveServer(ctx, x.who)
	}
	if err != nil {
		return fmt.Errorf("%s member %s: %w", actionNames[x.what], x.who, err)
	}
	return nil
}

// roster is what a group's leader knows about its members.
type roster struct {
	have   []shard.Replica
	self   meta.Server
	usable func(meta.Server) bool
}

func (r *roster) find(s meta.Server) (shard.Replica, bool) {
	at := slices.IndexFunc(r.have, func(x shard.Replica) bool { return x.Server == s })
	if at < 0 {
		return shard.Replica{}, false
	}
	return r.have[at], true
}

func (r *roster) voters() int {
	n := 0
	for _, x := range r.have {
		n += boolToInt(x.Voter)
	}
	return n
}

// towards returns the next change towards the wanted voters of a shard. The order keeps the group safe: a new member copies what
// there is before it votes; an old one goes when there is a voter more than are wanted, all of those that answer in sync; the leader
// last, after it has handed over. One member is added at a time.
func (r *roster) towards(want []meta.Server) change {
	coming := false
	for _, s := range want {
		x, ok := r.find(s)
		switch {
		case !ok || x.Voter || !r.usable(s):
		case x.InSync:
			return change{actPromote, s}
		default:
			coming = true
		}
	}
	if s, ok := r.surplus(want); ok {
		return s
	}
	for _, s := range want {
		if _, ok := r.find(s); !ok && r.usable(s) && !coming {
			return change{actAdd, s}
		}
	}
	return change{}
}

// surplus returns what to do about members that are not wanted.
func (r *roster) surplus(want []meta.Server) (change, bool) {
	var leaving []shard.Replica
	for _, x := range r.have {
		if slices.Contains(want, x.Server) {
			continue
		}
		switch {
		case x.Voter:
			leaving = append(leaving, x)
		case r.spares(x.Server):
			return change{actRemove, x.Server}, true
		}
	}
	if len(leaving) == 0 || r.voters() <= len(want) || !r.settled(want) {
		return change{}, false
	}
	// The dead first, then those that only follow.
	slices.SortStableFunc(leaving, func(a, b shard.Replica) int { return int(r.worth(a) - r.worth(b)) })
	if first := leaving[0].Server; first != r.self {
		if !r.spares(first) {
			return change{}, false
		}
		return change{actRemove, first}, true
	}
	for _, s := range want {
		if x, ok := r.find(s); ok && x.Voter && x.InSync {
			return change{actTransfer, s}, true
		}
	}
	return change{}, false
}

// spares tells whether the group would let a member go now: a majority of the voters that stay is in sync, and none that answers is
// behind. The group waits for that too, but a leader that waits does none of its other duties.
func (r *roster) spares(s meta.Server) bool {
	voters, inSync := 0, 0
	for _, x := range r.have {
		if x.Server == s || !x.Voter {
			continue
		}
		if !x.InSync && r.usable(x.Server) {
			return false
		}
		voters++
		inSync += boolToInt(x.InSync)
	}
	return inSync > voters/2
}

func (r *roster) worth(x shard.Replica) int64 {
	switch {
	case x.Server == r.self:
		return 2
	case x.InSync:
		return 1
	}
	return 0
}

// settled tells whether all wanted voters that answer are in sync.
func (r *roster) settled(want []meta.Server) bool {
	for _, s := range want {
		if x, ok := r.find(s); ok && x.Voter && !x.InSync && r.usable(s) {
			return false
		}
	}
	return true
}

// quorum is who shall vote on the metadata.
type quorum struct {
	nodes []meta.Server // all registered nodes
	// bad are voters that are better replaced: their nodes drain, or have been dead for long.
	bad    func(meta.Server) bool
	target int // how many shall vote
}

// towardsQuorum returns the next change of the metadata group: every registered node is a member, the first of those that are well
// vote. A good voter is never demoted; a bad one when there are more voters than there need to be.
func (r *roster) towardsQuorum(q *quorum) change {
	good := 0
	for _, x := range r.have {
		good += boolToInt(x.Voter && slices.Contains(q.nodes, x.Server) && !q.bad(x.Server))
	}
	for _, s := range q.nodes {
		x, ok := r.find(s)
		switch {
		case !ok && r.usable(s):
			return change{actAdd, s}
		case ok && !x.Voter && x.InSync && r.usable(s) && !q.bad(s) && good < q.target:
			return change{actPromote, s}
		}
	}
	return r.withoutBad(q)
}

func (r *roster) withoutBad(q *quorum) change {
	for _, x := range r.have {
		registered := slices.Contains(q.nodes, x.Server)
		switch {
		case !registered && !x.Voter && r.spares(x.Server):
			return change{actRemove, x.Server}
		case !x.Voter || !r.spares(x.Server) || registered && (!q.bad(x.Server) || r.voters() <= q.target):
			continue
		case x.Server == r.self:
			if to, ok := r.successor(q); ok {
				return change{actTransfer, to}
			}
		case !registered && r.replaced(q, x.Server):
			return change{actRemove, x.Server}
		case registered:
			return change{actDemote, x.Server}
		}
	}
	return change{}
}

// replaced tells whether enough vote without a server that is no longer registered: those that could.
func (r *roster) replaced(q *quorum, gone meta.Server) bool {
	for _, s := range q.nodes {
		x, ok := r.find(s)
		if waiting := !ok || !x.Voter; waiting && r.usable(s) && !q.bad(s) && r.voters()-1 < q.target {
			return false
		}
	}
	return r.voters() > 1
}

// successor returns a good voter in sync.
func (r *roster) successor(q *quorum) (meta.Server, bool) {
	for _, x := range r.have {
		if x.Voter && x.InSync && x.Server != r.self && slices.Contains(q.nodes, x.Server) && !q.bad(x.Server) {
			return x.Server, true
		}
	}
	return meta.Server{}, false
}
