package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sluice/core/meta"
)

// world is metadata that tests change by commands.
type world struct {
	state *meta.State
	index uint64
	dead  map[meta.NodeID]bool
}

func newWorld(nodes int) *world {
	w := &world{state: meta.NewState(nil), dead: map[meta.NodeID]bool{}}
	for n := range nodes {
		w.join(meta.NodeID(n+1), fmt.Sprintf("rack%d", n%3))
	}
	return w
}

func (w *world) join(id meta.NodeID, rack string) {
	w.do(&meta.RegisterNode{Node: meta.Node{ID: id, Incarnation: "a", Rack: rack}})
}

func (w *world) do(c meta.Command) meta.Result {
	w.index++
	r, err := w.state.Apply(w.index, meta.Encode(meta.RequestID{}, c))
	if err != nil {
		panic(err)
	}
	return r
}

func (w *world) planner() *planner {
	return newPlanner(w.state.Image(), func(id meta.NodeID) bool { return !w.dead[id] }, Defaults{})
}

func (w *world) create(topics ...meta.NewTopic) []meta.TopicResult {
	cmd := w.planner().createTopics(topics)
	out := slices.Clone(cmd.Refused)
	if len(cmd.Topics) > 0 {
		cmd.Refused = nil
		out = append(out, w.do(cmd).Topics...)
	}
	return out
}

func plain(name string) meta.NewTopic {
	return meta.NewTopic{Name: name, Partitions: -1, ReplicationFactor: -1}
}

func (w *world) shardOf(p meta.Partition) *meta.Shard { return w.state.Image().Shard(p.Shard) }

func (w *world) leaders(topic string) map[meta.NodeID]int {
	n := map[meta.NodeID]int{}
	for _, p := range w.state.Image().Topic(topic).Partitions {
		n[w.shardOf(p).Preferred()]++
	}
	return n
}

func TestDefaultsOfNewTopics(t *testing.T) {
	for nodes, rf := range map[int]int16{1: 1, 2: 2, 3: 3, 5: 3} {
		w := newWorld(nodes)
		for _, name := range []string{"plain", meta.OffsetsTopic} {
			if r := w.create(plain(name)); r[0].Err != nil {
				t.Fatal(r[0].Err)
			}
		}
		plain, offsets := w.state.Image().Topic("plain"), w.state.Image().Topic(meta.OffsetsTopic)
		if len(plain.Partitions) != 3 || plain.ReplicationFactor != rf || plain.Internal {
			t.Errorf("%d nodes: %d partitions, factor %d", nodes, len(plain.Partitions), plain.ReplicationFactor)
		}
		if len(offsets.Partitions) != 10 || offsets.ReplicationFactor != rf || !offsets.Internal {
			t.Errorf("%d nodes: offsets: %d partitions, factor %d", nodes, len(offsets.Partitions), offsets.ReplicationFactor)
		}
		if s := w.state.Image().TopicSettings(offsets); !s.Compact || s.Delete || s.SegmentBytes != 100<<20 {
			t.Errorf("settings of the offsets topic: %+v", s)
		}
	}
}

func TestPartitionsAreSpread(t *testing.T) {
	w := newWorld(3)
	w.create(meta.NewTopic{Name: "wide", Partitions: 12, ReplicationFactor: 3})
	image := w.state.Image()
	if n := len(image.Shards()); n != 6 {
		t.Fatalf("%d shards, want two led by each node", n)
	}
	for id, n := range w.leaders("wide") {
		if n != 4 {
			t.Errorf("node %d leads %d of 12", id, n)
		}
	}
	for _, s := range image.Shards() {
		if s.Partitions != 2 {
			t.Errorf("shard %d has %d partitions", s.ID, s.Partitions)
		}
	}
	for n := range 30 {
		w.create(meta.NewTopic{Name: fmt.Sprint("narrow", n), Partitions: 1, ReplicationFactor: 3})
	}
	for _, s := range w.state.Image().Shards() {
		if s.Partitions != 7 {
			t.Errorf("shard %d has %d partitions after 30 narrow topics", s.ID, s.Partitions)
		}
	}
	w.join(4, "rack0")
	w.create(meta.NewTopic{Name: "later", Partitions: 8, ReplicationFactor: 3})
	if n := w.leaders("later"); n[4] != 2 {
		t.Errorf("the new node leads %d of 8: %v", n[4], n)
	}
}

func TestRacksAreSpread(t *testing.T) {
	w := newWorld(6) // two nodes in each of three racks
	w.create(meta.NewTopic{Name: "t", Partitions: 24, ReplicationFactor: 3})
	replicas := map[meta.NodeID]int{}
	for _, s := range w.state.Image().Shards() {
		racks := map[string]bool{}
		for _, v := range s.Voters {
			n, _ := w.state.Image().Node(v.Node)
			racks[n.Rack] = true
			replicas[v.Node]++
		}
		if len(racks) != 3 {
			t.Errorf("shard %d %v is in %d racks", s.ID, s.Nodes(), len(racks))
		}
	}
	for id, n := range replicas {
		if n < 4 || n > 8 {
			t.Errorf("node %d has %d of 36 replicas", id, n)
		}
	}
}

func TestDeadNodesLeadNothingNew(t *testing.T) {
	w := newWorld(3)
	w.dead[2] = true
	if r := w.create(meta.NewTopic{Name: "t", Partitions: 6, ReplicationFactor: 3}); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	if n := w.leaders("t"); n[2] != 0 || n[1] != 3 || n[3] != 3 {
		t.Fatalf("%v", n)
	}
	w.dead[3] = true
	r := w.create(meta.NewTopic{Name: "u", Partitions: 1, ReplicationFactor: 3})
	if r[0].Err == nil || r[0].Err.Code != meta.CodeInvalidReplicationFactor {
		t.Fatalf("without a majority: %v", r[0].Err)
	}
	if r := w.create(meta.NewTopic{Name: "one", Partitions: 2, ReplicationFactor: 1}); r[0].Err != nil || w.leaders("one")[1] != 2 {
		t.Fatal(r[0].Err, w.leaders("one"))
	}
}

func TestManualAssignments(t *testing.T) {
	w := newWorld(3)
	by := func(lists ...[]meta.NodeID) meta.NewTopic {
		m := map[int32][]meta.NodeID{}
		for i, l := range lists {
			m[int32(i)] = l
		}
		return meta.NewTopic{Name: fmt.Sprint("t", w.index), Partitions: -1, ReplicationFactor: -1, Assignments: m}
	}
	first := by([]meta.NodeID{2, 1}, []meta.NodeID{3, 2}, []meta.NodeID{2, 1})
	if r := w.create(first); r[0].Err != nil || r[0].ReplicationFactor != 2 || r[0].Partitions != 3 {
		t.Fatalf("%+v", r[0])
	}
	topic := w.state.Image().Topic(first.Name)
	for i, want := range first.Assignments {
		if got := w.shardOf(topic.Partitions[i]).Nodes(); !slices.Equal(got, want) {
			t.Errorf("partition %d is on %v, want %v", i, got, want)
		}
	}
	if n := len(w.state.Image().Shards()); n != 2 {
		t.Errorf("%d shards for two lists", n)
	}
	cases := map[string]meta.NewTopic{
		"partitions should be a consecutive 0-based integer sequence": {Name: "g", Partitions: -1, ReplicationFactor: -1, Assignments: map[int32][]meta.NodeID{1: {1}}},
		"includes broker 9, but no such broker is registered":         by([]meta.NodeID{9}),
		"includes the broker 1 more than once":                        by([]meta.NodeID{1, 1}),
		"an empty replica list":                                       by([]meta.NodeID{}),
		"not consistent with previous partitions":                     by([]meta.NodeID{1, 2}, []meta.NodeID{1}),
	}
	for want, topic := range cases {
		r := w.create(topic)
		if r[0].Err == nil || r[0].Err.Code != meta.CodeInvalidReplicaAssignment || !strings.Contains(r[0].Err.Message, want) {
			t.Errorf("%s: %v", want, r[0].Err)
		}
	}
	with := by([]meta.NodeID{1})
	with.ReplicationFactor = 1
	if r := w.create(with); r[0].Err == nil || r[0].Err.Code != meta.CodeInvalidRequest {
		t.Error(r[0].Err)
	}
	if n := len(w.state.Image().Shards()); n != 2 {
		t.Errorf("refused topics left %d shards", n)
	}
}

func TestRefusedTopics(t *testing.T) {
	w := newWorld(3)
	w.create(plain("there"), plain("dot.ted"))
	refused := map[string]struct {
		topic meta.NewTopic
		code  int16
	}{
		"exists":           {plain("there"), meta.CodeTopicAlreadyExists},
		"name":             {plain("a b"), meta.CodeInvalidTopic},
		"empty name":       {plain(""), meta.CodeInvalidTopic},
		"collision":        {plain("dot_ted"), meta.CodeInvalidTopic},
		"zero factor":      {meta.NewTopic{Name: "a", Partitions: 1}, meta.CodeInvalidReplicationFactor},
		"high factor":      {meta.NewTopic{Name: "a", Partitions: 1, ReplicationFactor: 4}, meta.CodeInvalidReplicationFactor},
		"zero partitions":  {meta.NewTopic{Name: "a", ReplicationFactor: 1}, meta.CodeInvalidPartitions},
		"minus two":        {meta.NewTopic{Name: "a", Partitions: -2, ReplicationFactor: 1}, meta.CodeInvalidPartitions},
		"many":             {meta.NewTopic{Name: "a", Partitions: 10_001, ReplicationFactor: 1}, meta.CodePolicyViolation},
		"bad config":       {meta.NewTopic{Name: "a", Partitions: 1, ReplicationFactor: 1, Configs: map[string]string{"retention.ms": "x"}}, meta.CodeInvalidConfig},
		"unknown config":   {meta.NewTopic{Name: "a", Partitions: 1, ReplicationFactor: 1, Configs: map[string]string{"no.such": "1"}}, meta.CodeInvalidConfig},
		"both in one":      {plain("twice"), meta.CodeInvalidRequest},
		"collide together": {plain("x_y"), meta.CodeInvalidTopic},
	}
	for name, c := range refused {
		topics := []meta.NewTopic{c.topic}
		switch name {
		case "both in one":
			topics = append(topics, c.topic)
		case "collide together":
			topics = []meta.NewTopic{plain("x.y"), c.topic}
		}
		cmd := w.planner().createTopics(topics)
		if len(cmd.Refused) == 0 || cmd.Refused[0].Err.Code != c.code || cmd.Refused[0].Name != c.topic.Name || cmd.Refused[0].Err.Message == "" {
			t.Errorf("%s: %+v", name, cmd.Refused)
		}
		if name != "collide together" && len(cmd.Shards) != 0 {
			t.Errorf("%s: plans %d shards", name, len(cmd.Shards))
		}
	}
}

func TestCreatePartitionsPlan(t *testing.T) {
	w := newWorld(3)
	w.create(meta.NewTopic{Name: "t", Partitions: 3, ReplicationFactor: 2})
	more := func(r createPartitionsRequest) *meta.Error {
		cmd, err := w.planner().createPartitions(&r)
		if err == nil {
			err = w.do(cmd).Err
		}
		return err
	}
	for code, r := range map[int16]createPartitionsRequest{
		meta.CodeUnknownTopicOrPartition:  {Name: "u", Count: 4},
		meta.CodeInvalidPartitions:        {Name: "t", Count: 3},
		meta.CodeInvalidReplicaAssignment: {Name: "t", Count: 5, Assignments: [][]meta.NodeID{{1, 2}}},
	} {
		if err := more(r); err == nil || err.Code != code {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if err := more(createPartitionsRequest{Name: "t", Count: 2}); err == nil || err.Code != meta.CodeInvalidPartitions {
		t.Error(err)
	}
	if err := more(createPartitionsRequest{Name: "t", Count: 6}); err != nil {
		t.Fatal(err)
	}
	if n := w.leaders("t"); n[1] != 2 || n[2] != 2 || n[3] != 2 {
		t.Errorf("%v", n)
	}
	if err := more(createPartitionsRequest{Name: "t", Count: 7, Assignments: [][]meta.NodeID{{3, 1}}}); err != nil {
		t.Fatal(err)
	}
	if got := w.shardOf(w.state.Image().Topic("t").Partitions[6]).Nodes(); !slices.Equal(got, []meta.NodeID{3, 1}) {
		t.Error(got)
	}
}

func TestPlacementKeepsItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.IntRange(1, 7).Draw(t, "nodes"))
		for n := range rapid.IntRange(1, 12).Draw(t, "topics") {
			for id := range meta.NodeID(7) {
				w.dead[id+1] = rapid.IntRange(0, 4).Draw(t, "dead") == 0
			}
			w.create(meta.NewTopic{
				Name: fmt.Sprint("t", n), Partitions: int32(rapid.IntRange(1, 20).Draw(t, "partitions")),
				ReplicationFactor: int16(rapid.IntRange(1, 5).Draw(t, "factor")),
			})
		}
		for topic := range w.state.Image().Topics() {
			for _, p := range topic.Partitions {
				if s := w.shardOf(p); len(s.Voters) != int(topic.ReplicationFactor) {
					t.Fatalf("partition of factor %d in shard with voters %v", topic.ReplicationFactor, s.Voters)
				}
			}
		}
		for _, s := range w.state.Image().Shards() {
			nodes := s.Nodes()
			slices.Sort(nodes)
			if len(slices.Compact(nodes)) != len(s.Voters) {
				t.Fatalf("shard %d has a node twice: %v", s.ID, s.Voters)
			}
		}
	})
}

func TestMetadataVoters(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 5, 7: 7, 8: 7, 20: 7} {
		if got := metadataVoters(n); got != want {
			t.Errorf("%d nodes: %d voters, want %d", n, got, want)
		}
	}
}
