package shard

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// inSyncPoll is how often a change of members looks whether it may go on.
const inSyncPoll = 20 * time.Millisecond

// Replicas lists the group's members. Whether others are in sync only the leader knows.
func (g *Group) Replicas() []Replica {
	r := g.raft()
	_, leads := g.leads()
	servers := r.GetConfiguration().Configuration().Servers
	replicas := make([]Replica, 0, len(servers))
	for _, s := range servers {
		server, _ := parseServer(string(s.ID))
		rep := Replica{Server: server, Voter: s.Suffrage == raft.Voter}
		switch {
		case server == g.node.o.Self:
			rep.InSync = leads && g.sm.Complete()
			rep.LastIndex = r.LastIndex()
		case leads:
			_, rep.InSync, _, rep.LastIndex = g.peers.get(s.ID)
		}
		replicas = append(replicas, rep)
	}
	return replicas
}

// AddNonvoter adds a member that gets all entries and has no vote. It returns when that is
// committed.
func (g *Group) AddNonvoter(ctx context.Context, s meta.Server) error {
	g.peers.forget(serverID(s)) // an answer that came late, of an earlier replica under this name
	return g.change(ctx, "add member", s, func(r *raft.Raft) raft.Future {
		return r.AddNonvoter(serverID(s), serverAddress(s), 0, stopTimeout)
	})
}

// AddVoter gives a member its vote, after it was added without one: it waits until the member is in
// sync and lacks no data, and returns when the change is committed.
func (g *Group) AddVoter(ctx context.Context, s meta.Server) error {
	if err := g.await(ctx, func() bool { return g.inSync(s) }); err != nil {
		return fmt.Errorf("add voter %s to shard %d: %w: %w", s, g.id, ErrNotInSync, err)
	}
	return g.change(ctx, "add voter", s, func(r *raft.Raft) raft.Future {
		return r.AddVoter(serverID(s), serverAddress(s), 0, stopTimeout)
	})
}

// RemoveServer removes a member. It waits until the voters that stay have a majority in sync and
// none that answers is still fetching what it lacks: the one that is removed may hold the data.
func (g *Group) RemoveServer(ctx context.Context, s meta.Server) error {
	if err := g.await(ctx, func() bool { return g.canSpare(s) }); err != nil {
		return fmt.Errorf("remove %s from shard %d: %w: %w", s, g.id, ErrNotInSync, err)
	}
	err := g.change(ctx, "remove member", s, func(r *raft.Raft) raft.Future {
		return r.RemoveServer(serverID(s), 0, stopTimeout)
	})
	g.peers.forget(serverID(s)) // should it be added again, what it answered before means nothing
	return err
}

// Transfer hands leadership to a voter on a node. It returns when this replica no longer leads, and
// ErrNotInSync when the target is behind, does not answer or lacks data.
func (g *Group) Transfer(ctx context.Context, to meta.NodeID) error {
	if _, leads := g.leads(); !leads {
		return ErrNotLeader
	}
	for _, rep := range g.Replicas() {
		if rep.Server.Node != to || !rep.Voter {
			continue
		}
		if !rep.InSync {
			return fmt.Errorf("transfer shard %d to %s: %w", g.id, rep.Server, ErrNotInSync)
		}
		g.news.tell() // the library may wait for its goroutine that sends
		return g.change(ctx, "transfer", rep.Server, func(r *raft.Raft) raft.Future {
			return r.LeadershipTransferToServer(serverID(rep.Server), serverAddress(rep.Server))
		})
	}
	return fmt.Errorf("transfer shard %d to node %d: it has no voter there", g.id, to)
}

func (g *Group) inSync(s meta.Server) bool {
	for _, rep := range g.Replicas() {
		if rep.Server == s {
			return rep.InSync
		}
	}
	return false
}

// canSpare tells whether the group keeps its data without a member.
func (g *Group) canSpare(s meta.Server) bool {
	voters, inSync := 0, 0
	for _, rep := range g.Replicas() {
		if rep.Server == s || !rep.Voter {
			continue
		}
		voters++
		if rep.InSync {
			inSync++
			continue
		}
		if answers, _, complete, _ := g.peers.get(serverID(rep.Server)); answers && !complete {
			return false
		}
	}
	return voters > 0 && inSync > voters/2
}

// await polls while this replica leads.
func (g *Group) await(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(inSyncPoll)
	defer tick.Stop()
	for {
		if _, leads := g.leads(); !leads {
			return ErrNotLeader
		}
		if ok() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change runs one of the library's changes. Its future may be answered after ctx has ended.
func (g *Group) change(ctx context.Context, what string, s meta.Server, fn func(*raft.Raft) raft.Future) error {
	held, err := g.queue.acquire(ctx, FlowNone, 0)
	if err != nil {
		return err
	}
	p := g.queue.aside(held, func() raft.Future { return fn(g.raft()) })
	if _, err := p.Wait(ctx); err != nil {
		return fmt.Errorf("%s %s of shard %d: %w", what, s, g.id, err)
	}
	g.slog.Info(what, "server", s.String())
	return nil
}

// Demote takes a member's vote and keeps it as a member. It waits as RemoveServer does.
func (g *Group) Demote(ctx context.Context, s meta.Server) error {
	if err := g.await(ctx, func() bool { return g.canSpare(s) }); err != nil {
		return fmt.Errorf("demote %s of shard %d: %w: %w", s, g.id, ErrNotInSync, err)
	}
	return g.change(ctx, "demote voter", s, func(r *raft.Raft) raft.Future {
		return r.DemoteVoter(serverID(s), 0, stopTimeout)
	})
}

// Committed returns the members that this leader's group certainly has: what Replicas lists may not be committed yet. It waits
// for a barrier, and returns ErrNotLeader when the term changes meanwhile.
func (g *Group) Committed(ctx context.Context) ([]Replica, error) {
	term, leads := g.leads()
	if !leads {
		return nil, ErrNotLeader
	}
	held, err := g.queue.acquire(ctx, FlowNone, 0)
	if err != nil {
		return nil, err
	}
	replicas := g.Replicas()
	p := g.queue.follow(g.raft().Barrier(0), held)
	if _, err := p.Wait(ctx); err != nil {
		return nil, fmt.Errorf("commit members of shard %d: %w", g.id, err)
	}
	if now, leads := g.leads(); !leads || now != term {
		return nil, ErrNotLeader
	}
	return replicas, nil
}
