package shard

import (
	"testing"
	"time"
)

// TestMemberIsWantedAsSoonAsItAnswers keeps one member away long enough for the library to wait seconds
// between its tries, and lets another one die once it is back: the two that are up are a majority at once.
func TestMemberIsWantedAsSoonAsItAnswers(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	away := follower(c, leader)
	away.crash()
	leader.mustPut("first")
	for began := time.Now(); time.Since(began) < 3*time.Second; <-time.After(50 * time.Millisecond) {
		leader.mustPut("while it is away")
	}
	away.restart()
	c.until("the member to answer", func() bool {
		answers, _, _, _ := leader.group.peers.get(serverID(away.self))
		return answers
	})
	for _, id := range c.others(leader.id) {
		if id != away.id {
			c.nodes[id].crash()
		}
	}
	began := time.Now()
	leader.mustPut("with the one that came back")
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("the member that is back was left alone for %v", took)
	}
}
