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
}

// A move that was dropped is seen, whatever else has moved; one that a balancing has turned since is not taken for one.
func TestStayed(t *testing.T) {
	part := func(index, epoch int32, replicas ...int32) kadm.PartitionDetail {
		return kadm.PartitionDetail{Topic: "a", Partition: index, LeaderEpoch: epoch, Replicas: replicas}
	}
	list := func(parts ...kadm.PartitionDetail) kadm.TopicDetails {
		all := kadm.PartitionDetails{}
		for _, p := range parts {
			all[p.Partition] = p
		}
		return kadm.TopicDetails{"a": {Topic: "a", Partitions: all}}
	}
	before := list(part(0, 7, 1, 2, 3), part(1, 7, 1, 2, 3), part(2, 7, 2, 3, 1), part(3, 7, 1, 2, 3))
	m := movedTopics{before, rotation(before, 1)}
	if out := m.stayed(before); len(out) != 4 || m.all() != 4 {
		t.Errorf("before anything moves: %v of %d", out, m.all())
	}
	// One is in its place, one was elected elsewhere, one has another order by now, one was where it shall be without a move.
	now := list(part(0, 107, 2, 3, 1), part(1, 9, 1, 3, 2), part(2, 108, 1, 2, 3), part(3, 7, 2, 3, 1))
	if out := m.stayed(now); len(out) != 1 || out[0] != "a-1 [1 3 2]" {
		t.Errorf("%v", out)
	}
}

func TestWhole(t *testing.T) {
	const well = `{"shards":[{"id":7,"replicationFactor":3,"replicas":[1,2,3]},{"id":8,"replicationFactor":1,"replicas":[2]}]}`
	if err := membershipOf(t, well).whole(); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct{ old, new string }{
		"a node was given up":  {`"replicas":[1,2,3]`, `"replicas":[1,2]`},
		"one is still added":   {`"replicas":[2]`, `"replicas":[2],"adding":[2]`},
		"one is still removed": {`"replicas":[2]`, `"replicas":[2],"removing":[1]`},
		"lost":                 {`"replicas":[2]`, `"replicas":[2],"lost":true`},
		"replicas are spread":  {`{"shards"`, `{"balancing":true,"shards"`},
	} {
		text := strings.Replace(well, c.old, c.new, 1)
		if text == well {
			t.Fatalf("%s: nothing was changed", name)
		}
		if err := membershipOf(t, text).whole(); !errors.Is(err, errUnhealthy) {
			t.Errorf("%s: %v", name, err)
		}
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
	if err := p.mayEnd(); err != nil {
		t.Fatal(err)
	}
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

func TestProcessThatEndedBeforeItMight(t *testing.T) {
	p := shell(t, "exit 1")
	p.wait(patience)
	if err := p.mayEnd(); err == nil || p.died() == nil {
		t.Errorf("its end is allowed afterwards: %v", err)
	}
}

// A node that ends while it is removed has to end as one that was removed.
func TestEndOfARemovedNode(t *testing.T) {
	const says = "echo sluice: run controller: this node was removed from the cluster; echo hint: its replicas are elsewhere; "
	for script, want := range map[string]bool{
		says + "exit 1":           true,
		says + "exit 2":           false,
		says + "kill -9 $$":       false,
		says + "exit 0":           false,
		"echo panic: nil; exit 1": false,
		"kill -9 $$":              false,
		says + "seq 1000; exit 1": false, // it went on and failed otherwise
	} {
		p := shell(t, script)
		if !p.wait(patience) {
			t.Fatal("it runs on")
		}
		if err := p.wasRemoved(); (err == nil) != want {
			t.Errorf("%s: %v", script, err)
		}
	}
}
