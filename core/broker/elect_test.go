package broker

import (
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/controller"
	"sluice/core/meta"
)

func newElection(version int16, kind int8, topics ...kmsg.ElectLeadersRequestTopic) *kmsg.ElectLeadersRequest {
	req := kmsg.NewPtrElectLeadersRequest()
	req.Version, req.ElectionType, req.Topics, req.TimeoutMillis = version, kind, topics, 30_000
	return req
}

func TestElectLeadersErrors(t *testing.T) {
	c := startCluster(t, 1)
	c.create("t", 2, nil)
	raw := dialRaw(t, c.nodes[0].kafka)
	topic := func(name string, partitions ...int32) kmsg.ElectLeadersRequestTopic {
		return kmsg.ElectLeadersRequestTopic{Topic: name, Partitions: partitions}
	}
	for version := int16(0); version <= 2; version++ {
		resp := ask[*kmsg.ElectLeadersResponse](raw, newElection(version, 0, topic("t", 0, 9), topic("none", 0)))
		if len(resp.Topics) != 2 || len(resp.Topics[0].Partitions) != 2 {
			t.Fatalf("version %d answered %+v", version, resp)
		}
		for i, want := range []string{"ELECTION_NOT_NEEDED", "UNKNOWN_TOPIC_OR_PARTITION"} {
			if got := errorName(resp.Topics[0].Partitions[i].ErrorCode); got != want {
				t.Errorf("version %d: partition %d: %s, want %s", version, i, got, want)
			}
		}
		if got := errorName(resp.Topics[1].Partitions[0].ErrorCode); got != "UNKNOWN_TOPIC_OR_PARTITION" {
			t.Errorf("version %d: an unknown topic: %s", version, got)
		}
		if all := ask[*kmsg.ElectLeadersResponse](raw, newElection(version, 0)); len(all.Topics) != 0 || all.ErrorCode != 0 {
			t.Errorf("version %d: nothing to elect, answered %+v", version, all)
		}
	}
	unclean := ask[*kmsg.ElectLeadersResponse](raw, newElection(2, 1, topic("t", 0)))
	if got := errorName(unclean.Topics[0].Partitions[0].ErrorCode); got != "ELECTION_NOT_NEEDED" {
		t.Errorf("an unclean election of what has a leader: %s", got)
	}
	if got := ask[*kmsg.ElectLeadersResponse](raw, newElection(2, 7, topic("t", 0))); errorName(got.ErrorCode) != "INVALID_REQUEST" {
		t.Errorf("an unknown kind of election: %+v", got)
	}
}

// Without a majority there is no leader to hand over, and no unclean election makes one.
func TestElectLeadersWithoutMajority(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("t", 1, nil)
	image := c.nodes[0].ctl.Image()
	shard := image.Topic("t").Partitions[0].Shard
	leader := c.nodes[image.Shard(shard).Preferred()-1]
	for _, n := range c.nodes {
		if n != leader {
			if err := n.stop(); err != nil {
				t.Fatal(err)
			}
			n.down = true
		}
	}
	c.await("the leader to notice that it has no majority", func() bool { _, _, ok := leader.ctl.LeaderOf(shard); return !ok })
	raw := dialRaw(t, leader.kafka)
	for kind, want := range map[int8]string{0: "PREFERRED_LEADER_NOT_AVAILABLE", 1: "ELIGIBLE_LEADERS_NOT_AVAILABLE"} {
		c.without("the answer "+want, func() string {
			resp := ask[*kmsg.ElectLeadersResponse](raw, newElection(2, kind, kmsg.ElectLeadersRequestTopic{Topic: "t", Partitions: []int32{0}}))
			switch got := errorName(resp.Topics[0].Partitions[0].ErrorCode); got {
			case want:
				return ""
			case "NONE":
				t.Fatalf("an election of kind %d without a majority", kind)
				return ""
			default:
				return fmt.Sprintf("election of kind %d: %s", kind, got)
			}
		})
	}
	if err := leader.ctl.ElectPreferred(testContext(t), meta.ShardID(999)); err == nil || errors.Is(err, controller.ErrElectionNotNeeded) {
		t.Errorf("an election in a shard that does not exist: %v", err)
	}
}
