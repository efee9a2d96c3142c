package shard

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestMemberIsWantedAsSoonAsItAnswers keeps one member away long enough for the library to wait seconds
// between its tries, and lets another one die once it is back: the two that are up are a majority at once.
func TestMemberIsWantedAsSoonAsItAnswers(t *testing.T) {
	attempts(t, func() error { return memberIsWanted(t) })
}

func memberIsWanted(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	away := follower(c, leader)
	away.crash()
	leader.mustPut("first")
	for began := time.Now(); time.Since(began) < 3*time.Second; <-time.After(50 * time.Millisecond) {
		leader.mustPut("while it is away")
	}
	away.restart()
	answers, leads := false, true
	c.until("the member to answer", func() bool {
		answers, _, _, _ = leader.group.peers.get(serverID(away.self))
		_, leads = leader.group.Serving()
		return answers || !leads // nobody answers one that has lost the lead
	})
	if !answers {
		return errors.New("another one leads")
	}
	for _, id := range c.others(leader.id) {
		if id != away.id {
			c.nodes[id].crash()
		}
	}
	began := time.Now()
	if err := leader.put("with the one that came back"); err != nil {
		return err
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		return fmt.Errorf("the member that is back was left alone for %v", took)
	}
	return nil
}

// The network forgets the connections to a follower and tells nobody. Once it can be reached again, what waits on them is not waited for.
func TestForgottenConnections(t *testing.T) {
	attempts(t, func() error { return forgottenConnections(t) })
}

func forgottenConnections(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	f := follower(c, leader)
	leader.mustPut("k=v")
	c.until("the follower follows", c.same(leader, f))
	began := time.Now()
	c.halfOpen(f.id, true)
	leader.mustPut("meanwhile=1")
	term, leads := leader.group.Serving()
	still := func() bool { now, ok := leader.group.Serving(); return ok && now == term }
	c.until("a heartbeat has failed", func() bool { return leader.group.peers.lostSince(serverID(f.self), began) || !still() })
	c.halfOpen(f.id, false)
	c.until("the follower has caught up", c.same(leader, f))
	if n := leader.group.metrics.dropped.Get(); n == 0 {
		return fmt.Errorf("no connection was dropped in %v; the leader led: %v, and leads: %v", time.Since(began), leads, still())
	}
	return nil
}
