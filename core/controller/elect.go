package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/core/meta"
	"sluice/core/shard"
)

var (
	// ErrElectionNotNeeded is returned when the preferred leader leads already.
	ErrElectionNotNeeded = errors.New("the preferred replica leads already")
	// ErrPreferredNotAvailable is returned when the preferred leader is down, behind, or does not vote yet.
	ErrPreferredNotAvailable = errors.New("the preferred replica cannot lead now")
	// ErrNoLeader is returned when a shard has no leader: no majority of its replicas is alive.
	ErrNoLeader = errors.New("no majority of the replicas is alive")
)

// electPoll is how often it is looked whether the new leader serves.
const electPoll = 10 * time.Millisecond

type electRequest struct {
	Shard meta.ShardID `cbor:"1,keyasint"`
}

type electAnswer struct {
	Outcome electOutcome `cbor:"1,keyasint"`
	Message string       `cbor:"2,keyasint,omitempty"`
}

type electOutcome uint8

const (
	elected electOutcome = iota
	electNotNeeded
	electNotAvailable
)

// ElectPreferred gives a shard to its preferred leader. It returns when this node knows that one to lead.
func (c *Controller) ElectPreferred(ctx context.Context, id meta.ShardID) error {
	leader, _, ok := c.LeaderOf(id)
	s := c.Image().Shard(id)
	switch {
	case s == nil:
		return fmt.Errorf("elect a leader of shard %d: it does not exist", id)
	case !ok:
		return ErrNoLeader
	}
	var answer electAnswer
	if leader == c.Self() {
		answer = c.elect(ctx, id)
	} else if err := c.pool.call(ctx, leader, opElect, &electRequest{Shard: id}, &answer); err != nil {
		return fmt.Errorf("ask node %d to hand shard %d over: %w", leader, id, err)
	}
	switch answer.Outcome {
	case elected:
		return c.awaitLeader(ctx, id, s.Preferred())
	case electNotNeeded:
		return ErrElectionNotNeeded
	}
	return fmt.Errorf("%w: %s", ErrPreferredNotAvailable, answer.Message)
}

func (c *Controller) serveElect(ctx context.Context, r *controlRequest) (any, error) {
	var e electRequest
	if err := wireDecoding.Unmarshal(r.Body, &e); err != nil {
		return nil, fmt.Errorf("decode election: %w", err)
	}
	return c.elect(ctx, e.Shard), nil
}

// elect hands a shard that this node leads to its preferred leader.
func (c *Controller) elect(ctx context.Context, id meta.ShardID) electAnswer {
	s, r := c.Image().Shard(id), c.replica(id)
	if s == nil || r == nil {
		return electAnswer{electNotAvailable, "this node has no replica of the shard"}
	}
	if _, leads := r.group.Serving(); !leads {
		return electAnswer{electNotAvailable, shard.ErrNotLeader.Error()}
	}
	if s.Preferred() == c.Self() {
		return electAnswer{Outcome: electNotNeeded}
	}
	if err := r.group.Transfer(ctx, s.Preferred()); err != nil {
		return electAnswer{electNotAvailable, err.Error()}
	}
	return electAnswer{Outcome: elected}
}

// awaitLeader waits until a node is reported to lead a shard. Its report comes when it serves, so clients that ask find it.
func (c *Controller) awaitLeader(ctx context.Context, id meta.ShardID, want meta.NodeID) error {
	for {
		changed := c.Changed()
		leader, _, ok := c.LeaderOf(id)
		if s := c.Image().Shard(id); s == nil || ok && leader == want && s.Leader == want {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(electPoll):
		case <-ctx.Done():
			return fmt.Errorf("wait for node %d to lead shard %d: %w", want, id, ctx.Err())
		}
	}
}
