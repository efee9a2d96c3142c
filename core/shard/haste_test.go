package shard

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// A follower that has not heard its leader for an election timeout grants a pre-vote, whenever its timer will come.
func TestOverdueLeaderIsGivenUp(t *testing.T) {
	attempts(t, func() error { return overdueLeaderIsGivenUp(t) })
}

func overdueLeaderIsGivenUp(t *testing.T) error {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = 2 * time.Second })
	defer c.close()
	leader := c.leader()
	leader.mustPut("k=v")
	others := c.others(leader.id)
	f, asks := c.nodes[others[0]], c.nodes[others[1]]
	c.until("both follow", func() bool { return c.same(leader, f)() && c.same(leader, asks)() })
	ask := func() bool {
		r := f.group.cur.Load()
		last := r.raft.LastIndex()
		answer := make(chan raft.RPCResponse, 1)
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(asks.self.String()), Addr: []byte(asks.self.String())}
		r.trans.receive(raft.RPC{RespChan: answer, Command: &raft.RequestPreVoteRequest{
			RPCHeader: header, Term: r.raft.CurrentTerm() + 1, LastLogIndex: last + 1, LastLogTerm: r.raft.CurrentTerm(),
		}}, r.quit)
		return (<-answer).Response.(*raft.RequestPreVoteResponse).Granted
	}
	if ask() {
		return errors.New("a leader that is well was given up") // unless nothing was heard of it for long
	}
	for _, m := range c.nodes {
		c.partition(m.id, true)
	}
	r := f.group.cur.Load()
	c.until("the leader is overdue, or given up already", func() bool { return r.overdue() || r.raft.State() == raft.Candidate })
	if !ask() {
		return errors.New("it keeps to a leader that is overdue")
	}
	return nil
}

// A clock that is set back makes nobody leave elections to others for longer.
func TestYieldOutlivesNoClock(t *testing.T) {
	c := newCluster(t, 1, nil)
	g := c.leader().group
	g.yield.Store(time.Now().Add(24 * time.Hour).UnixNano())
	asked := make(chan error, 1)
	go func() { asked <- g.yields(&raft.RequestPreVoteRequest{Term: g.term() + 1}) }()
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Fatal("a candidate waits for a time that was before the clock was set back")
	}
}
