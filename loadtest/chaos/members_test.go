package chaos

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
)

// spreadOut is what a node answers when a fifth has joined and has its share.
const spreadOut = `{"balancing":false,"nodes":[{"id":1,"replicas":5,"leaders":2,"metadata":"leader"},{"id":2,"replicas":4,"leaders":1,"metadata":"voter"},
{"id":5,"replicas":4,"leaders":1,"metadata":"voter"}],"shards":[{"id":7,"replicas":[1,2,5]}]}`

func membershipOf(t *testing.T, text string) (m membership) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestShares(t *testing.T) {
	if what, err := membershipOf(t, spreadOut).shares(5); err != nil || what != "4 replicas, 1 leaders" {
		t.Error(what, err)
	}
	for name, c := range map[string]struct{ old, new string }{
		"not there":               {`{"id":5,`, `{"id":6,`},
		"only what is new":        {`"id":5,"replicas":4`, `"id":5,"replicas":2`},
		"leads nothing":           {`"id":5,"replicas":4,"leaders":1`, `"id":5,"replicas":4,"leaders":0`},
		"others are being spread": {`"balancing":false`, `"balancing":true`},
		"one is still added":      {`"replicas":[1,2,5]`, `"adding":[5]`},
		"one is still removed":    {`"replicas":[1,2,5]`, `"removing":[2]`},
	} {
		text := strings.Replace(spreadOut, c.old, c.new, 1)
		if text == spreadOut {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := membershipOf(t, text).shares(5); !errors.Is(err, errUnhealthy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEmpty(t *testing.T) {
	for text, want := range map[string]bool{
		spreadOut: false,
		strings.Replace(spreadOut, `"id":5,"replicas":4,"leaders":1,"metadata":"voter"`, `"id":5,"metadata":"voter"`, 1):    false,
		strings.Replace(spreadOut, `"id":5,"replicas":4,"leaders":1,"metadata":"voter"`, `"id":5,"metadata":"follower"`, 1): true,
		strings.Replace(spreadOut, `{"id":5,`, `{"id":6,`, 1):                                                               true, // it is gone
	} {
		if err := membershipOf(t, text).empty(5); (err == nil) != want {
			t.Errorf("%v in %s", err, text)
		}
	}
}

func TestRotation(t *testing.T) {
	topics := kadm.TopicDetails{"a": {Topic: "a", Partitions: kadm.PartitionDetails{
		0: {Topic: "a", Partition: 0, Replicas: []int32{1, 2, 3}}, 1: {Topic: "a", Partition: 1, Replicas: []int32{3, 1, 2}},
	}}}
	plan := rotation(topics, 1)
	if p := plan["a"]; p[0][0] != 2 || p[0][1] != 3 || p[0][2] != 1 || p[1][0] != 1 {
		t.Errorf("%v", plan)
	}
	if n := inPlace(topics, plan); n != 0 {
		t.Errorf("%d partitions are in their place before they move", n)
	}
	topics["a"].Partitions[0] = kadm.PartitionDetail{Topic: "a", Partition: 0, Replicas: plan["a"][0]}
	if n := inPlace(topics, plan); n != 1 {
		t.Errorf("%d partitions are in their place, want 1", n)
	}
}

// A node that has joined may lead, and is asked who does; one that has left is not.
func TestSteadyKnowsWhoJoined(t *testing.T) {
	s := &steady{brokers: map[int32]string{1: "a", 2: "b"}}
	w := &steadyWriter{s: s, wires: map[int32]*wire{}}
	if w.wire(5).address != "" {
		t.Error("it has an address")
	}
	s.joined(5, "e")
	if !maps.Equal(s.nodes(), map[int32]string{1: "a", 2: "b", 5: "e"}) || w.wire(5).address != "e" || len(s.brokers) != 2 {
		t.Errorf("%v, node 5 is at %q", s.nodes(), w.wire(5).address)
	}
	s.left()
	if len(s.nodes()) != 2 {
		t.Errorf("%v", s.nodes())
	}
}

func TestProcessThatMayEnd(t *testing.T) {
	p := shell(t, "read word <&-; exit 3")
	p.mayEnd()
	if !p.wait(patience) {
		t.Fatal("it runs on")
	}
	if err := p.died(); err != nil {
		t.Errorf("it was allowed to end: %v", err)
	}
	if p.stop(patience) == nil {
		t.Error("how it ended is not told")
	}
	p.forget()
	if err := p.stop(patience); err != nil {
		t.Errorf("it is not forgotten: %v", err)
	}
}
