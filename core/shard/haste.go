package shard

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// yieldFor is how long a replica that was made a candidate by another one's question keeps its own back: as the other needs to be
	// elected, with the syncs of both. If that one has less in its log, it is this one's turn then.
	yieldFor = 150 * time.Millisecond
	// hasteMax bounds the wait for the library to notice what it was told; it takes microseconds.
	hasteMax = 20 * time.Millisecond
)

// errYields is why a candidate does not ask: another one has been faster.
var errYields = errors.New("another replica stands for election")

// hasten is called when somebody asks for a pre-vote. The library refuses it as long as it believes in its leader, which it looks at
// every 500 to 1,000 ms only; the one that was refused waits as long before it asks again, and a group whose leader is cut off was
// without one for up to three seconds. If the leader has been silent for as long as makes a replica a candidate, this one becomes one
// now, as it would when its timer comes, and answers as a candidate: by the logs.
func (g *Group) hasten() {
	r := g.cur.Load()
	if !r.overdue() {
		return
	}
	g.yield.Store(time.Now().Add(yieldFor).UnixNano())
	r.nudge()
	for began := time.Now(); r.raft.State() == raft.Follower && time.Since(began) < hasteMax; {
		pause(g.ctx, time.Millisecond)
	}
}

// overdue tells whether this replica follows a leader that it has not heard for an election timeout.
func (r *replica) overdue() bool {
	leader, _ := r.raft.LeaderWithID()
	return r.raft.State() == raft.Follower && leader != "" && time.Since(r.raft.LastContact()) >= r.g.heartbeat
}

// yields keeps a candidate's question back while another is to be elected. It returns errYields when one has been, or is about to be.
func (g *Group) yields(a *raft.RequestPreVoteRequest) error {
	wait := min(time.Until(time.Unix(0, g.yield.Load())), yieldFor) // the clock may have been set back
	if wait <= 0 {
		return nil
	}
	pause(g.ctx, wait)
	if _, _, known := g.Leader(); known || g.term() >= a.Term {
		return errYields
	}
	return nil
}
