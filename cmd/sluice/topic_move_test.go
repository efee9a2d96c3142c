package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
)

func TestTopicMove(t *testing.T) {
	startCore(t, t.TempDir())
	ok(t, "", "topic", "create", "a", "-p", "2")
	if got := ok(t, "", "topic", "move", "a", "--to", "1", "--throttle", "1000000", "--wait"); got != "moved 2 partitions of a\n" {
		t.Errorf("move printed %q", got)
	}
	if got := ok(t, "", "topic", "move", "a", "--cancel"); got != "left in place: 0 partitions of a\n" {
		t.Errorf("cancel printed %q", got)
	}
	got := asJSON[movedTopic](t, "topic", "move", "a", "-p", "1", "-r", "1")
	if got.Topic != "a" || len(got.Partitions) != 1 || got.Partitions[0].Partition != 1 || !slices.Equal(got.Partitions[0].Replicas, []int32{1}) {
		t.Errorf("move printed %+v", got)
	}
	for _, test := range []struct {
		code int
		want string
		args []string
	}{
		{2, "give one of --to", []string{"a"}},
		{2, "give one of --to", []string{"a", "--to", "1", "-r", "1"}},
		{2, "--throttle -1", []string{"a", "--to", "1", "--throttle", "-1"}},
		{1, "INVALID_REPLICA_ASSIGNMENT", []string{"a", "--to", "7"}},
		{1, "2 replicas need as many nodes", []string{"a", "-r", "2"}},
		{1, "there is no partition 5", []string{"a", "-p", "5", "--to", "1"}},
		{1, "UNKNOWN_TOPIC_OR_PARTITION", []string{"b", "--to", "1"}},
	} {
		if r := sluice(t, "", append([]string{"topic", "move"}, test.args...)...); r.code != test.code || !strings.Contains(r.err, test.want) {
			t.Errorf("%v: %d %q", test.args, r.code, r.err)
		}
	}
}

// TestReplicaChooser: further replicas go to racks that have none, then to the nodes with the fewest, and partitions with the same replicas stay together.
func TestReplicaChooser(t *testing.T) {
	x, y := "x", "y"
	r := replicaChooser{
		brokers: kadm.BrokerDetails{{NodeID: 1, Rack: &x}, {NodeID: 2, Rack: &x}, {NodeID: 3, Rack: &y}, {NodeID: 4, Rack: &y}},
		count:   map[int32]int{1: 2, 2: 2, 3: 1}, chosen: make(map[string][]int32),
	}
	for _, test := range []struct {
		have   []int32
		factor int
		want   []int32
	}{
		{[]int32{1}, 2, []int32{1, 4}},
		{[]int32{1}, 2, []int32{1, 4}},
		{[]int32{2}, 2, []int32{2, 3}},
		{[]int32{3}, 3, []int32{3, 1, 4}},
		{[]int32{3, 2, 1}, 2, []int32{3, 2}},
	} {
		if got, err := r.resize(test.have, test.factor); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%v to %d: %v %v, expected %v", test.have, test.factor, got, err, test.want)
		}
	}
}
