package meta

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func snapshotOf(t interface{ Fatal(...any) }, i *Image) []byte {
	var b bytes.Buffer
	if err := i.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entries draws a history: commands that fit what came before most of the time, and some that do
// not, as a leader with an old image would send them.
type history struct {
	t     *rapid.T
	state *State
	index uint64
	log   [][]byte
	ids   []RequestID
	made  int
}

func (h *history) step() {
	id := RequestID{}
	if rapid.IntRange(0, 3).Draw(h.t, "request") > 0 {
		id[0], id[1], id[15] = byte(len(h.ids)), byte(len(h.ids)>>8), 1
		h.ids = append(h.ids, id)
	}
	if len(h.ids) > 0 && rapid.IntRange(0, 9).Draw(h.t, "retry") == 0 {
		id = rapid.SampledFrom(h.ids).Draw(h.t, "which")
	}
	h.apply(Encode(id, h.command()))
}

func (h *history) apply(entry []byte) Result {
	h.index += uint64(rapid.IntRange(1, 3).Draw(h.t, "gap")) // configurations and barriers lie between
	h.log = append(h.log, entry)
	r, err := h.state.Apply(h.index, entry)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *history) command() Command {
	image := h.state.Image()
	switch rapid.IntRange(0, 15).Draw(h.t, "command") {
	case 13, 14, 15:
		return h.membership(image)
	case 0, 1:
		n := NodeID(rapid.IntRange(1, 5).Draw(h.t, "node"))
		return &RegisterNode{Node: Node{ID: n, Incarnation: rapid.SampledFrom([]string{"a", "b"}).Draw(h.t, "inc"), Addr: fmt.Sprint("h", len(h.log))}}
	case 2:
		n := NodeID(rapid.IntRange(1, 5).Draw(h.t, "node"))
		node, _ := image.Node(n)
		return &FenceNode{Server: Server{Node: n, Incarnation: node.Incarnation}, Fenced: rapid.Bool().Draw(h.t, "fenced")}
	case 3, 4, 5:
		return h.createTopics(image)
	case 6:
		return &DeleteTopics{IDs: []TopicID{h.topic(image), {9, 9}}}
	case 7:
		return h.createPartitions(image)
	case 8:
		return h.alter(image)
	case 9, 10, 11:
		return h.move(image)
	}
	return h.small(image)
}

func (h *history) topic(image *Image) TopicID {
	topics := slices.Collect(image.Topics())
	if len(topics) == 0 {
		return TopicID{1}
	}
	return rapid.SampledFrom(topics).Draw(h.t, "topic").ID
}

func (h *history) shards(image *Image) (specs []ShardSpec, ids []ShardID) {
	next := image.NextShard()
	for _, n := range image.Nodes() {
		if rapid.IntRange(0, 5).Draw(h.t, "shard") == 0 {
			specs = append(specs, ShardSpec{ID: next, Voters: []Server{n.Server()}})
			next++
		}
	}
	for range rapid.IntRange(1, 5).Draw(h.t, "partitions") {
		ids = append(ids, ShardID(rapid.IntRange(1, int(next)).Draw(h.t, "id")))
	}
	return specs, ids
}

func (h *history) createTopics(image *Image) Command {
	specs, ids := h.shards(image)
	h.made++
	return &CreateTopics{Shards: specs, Refused: []TopicResult{{Name: "no", Err: Errorf(CodeInvalidTopic, "x")}}, Topics: []TopicSpec{{
		ID: TopicID{byte(h.made), byte(h.made >> 8), 1}, Name: rapid.SampledFrom([]string{"a", "b", "c.d", "c_d", "e"}).Draw(h.t, "name"),
		ReplicationFactor: 1, Shards: ids, Configs: map[string]string{"retention.ms": fmt.Sprint(h.made), "segment.ms": "7"},
	}}}
}

func (h *history) createPartitions(image *Image) Command {
	id := h.topic(image)
	specs, ids := h.shards(image)
	from := 0
	if t := image.TopicByID(id); t != nil {
		from = len(t.Partitions)
	}
	return &CreatePartitions{Topic: id, From: int32(from + rapid.IntRange(0, 1).Draw(h.t, "stale")), Shards: ids, New: specs}
}

func (h *history) alter(image *Image) Command {
	name := ""
	if t := image.TopicByID(h.topic(image)); t != nil {
		name = t.Name
	}
	return &AlterConfigs{Changes: []ConfigChange{
		{Type: ResourceTopic, Name: name, Set: map[string]string{"cleanup.policy": "compact"}, Delete: []string{"segment.ms"}, Replace: rapid.Bool().Draw(h.t, "replace")},
		{Type: ResourceBroker, Set: map[string]string{"log.retention.ms": fmt.Sprint(len(h.log))}},
	}}
}

func (h *history) small(image *Image) Command {
	switch rapid.IntRange(0, 3).Draw(h.t, "small") {
	case 0:
		return &Init{ClusterID: "cluster"}
	case 1:
		return &AllocateProducerIDs{Count: int64(rapid.IntRange(0, 3).Draw(h.t, "count"))}
	case 2:
		return &ReportShard{Shard: ShardID(rapid.IntRange(1, 4).Draw(h.t, "shard")), Term: rapid.Uint64Range(1, 5).Draw(h.t, "term"), Leader: 1, ISR: []NodeID{1}}
	}
	var all []Removal
	for _, s := range image.Shards() {
		all = append(all, image.Removals(s.ID)...)
	}
	return &ConfirmRemovals{Removals: all[:len(all)/2]}
}

// move begins, cancels, restarts or finishes a move, of those under way or not.
func (h *history) move(image *Image) Command {
	id, index := h.topic(image), int32(rapid.IntRange(0, 3).Draw(h.t, "partition"))
	for m := range image.Moves() {
		if rapid.Bool().Draw(h.t, "moving") {
			id, index = m.Topic.ID, m.Partition.Index
		}
	}
	move := uint64(7)
	if p := image.Partition(id, index); p != nil && p.Move != nil {
		move = p.Move.ID
	}
	switch rapid.IntRange(0, 3).Draw(h.t, "move") {
	case 0:
		return &RestartMove{Topic: id, Index: index, Move: move}
	case 1:
		return &FinishMove{Topic: id, Index: index, Move: move, EpochBase: int32(len(h.log))}
	}
	specs, ids := h.shards(image)
	c := &ChangeMoves{Shards: specs}
	for _, to := range ids {
		c.Changes = append(c.Changes, MoveChange{Topic: id, Index: index, To: to % 4})
	}
	c.Refused = make([]*Error, rapid.IntRange(0, 1).Draw(h.t, "answers"))
	return c
}

// check looks at what must hold in every image.
func check(t *rapid.T, i *Image) {
	partitions := 0
	perShard := map[ShardID]int{}
	for topic := range i.Topics() {
		if i.TopicByID(topic.ID) != topic || i.Topic(topic.Name) != topic {
			t.Fatalf("topic %s is not found by name and id alike", topic.Name)
		}
		if c := i.Colliding(topic.Name); c != nil {
			t.Fatalf("topics %s and %s collide", topic.Name, c.Name)
		}
		for n, p := range topic.Partitions {
			if int(p.Index) != n {
				t.Fatalf("partition %d of %s is at %d", p.Index, topic.Name, n)
			}
			perShard[p.Shard]++
			partitions++
		}
	}
	checkMoves(t, i)
	if partitions != i.PartitionCount() {
		t.Fatalf("%d partitions, counted %d", partitions, i.PartitionCount())
	}
	for _, s := range i.Shards() {
		if s.Partitions != perShard[s.ID] {
			t.Fatalf("shard %d has %d partitions, counted %d", s.ID, perShard[s.ID], s.Partitions)
		}
		n := 0
		for topic := range i.ShardTopics(s.ID) {
			for _, p := range topic.Partitions {
				if p.Shard == s.ID {
					n++
				}
			}
		}
		if n != s.Partitions {
			t.Fatalf("topics of shard %d hold %d of its %d partitions", s.ID, n, s.Partitions)
		}
	}
	checkMembers(t, i)
	if i.answers.len() != i.answerOrder.len() || i.answers.len() > answersMax {
		t.Fatalf("%d answers, %d in order", i.answers.len(), i.answerOrder.len())
	}
}

func checkMoves(t *rapid.T, i *Image) {
	moving := 0
	for topic := range i.Topics() {
		for n := range topic.Partitions {
			p := &topic.Partitions[n]
			if p.Move == nil {
				continue
			}
			moving++
			if p.Move.To == p.Shard || p.Move.ID > i.Index() {
				t.Fatalf("partition %d of %s in shard %d moves: %+v", n, topic.Name, p.Shard, p.Move)
			}
			listed := slices.Collect(i.MovesTo(p.Move.To))
			if !slices.Contains(listed, Moving{Topic: topic, Partition: p}) {
				t.Fatalf("the move of partition %d of %s is not listed", n, topic.Name)
			}
			left := Removal{Shard: p.Move.To, Topic: topic.ID, Index: int32(n), Move: p.Move.ID}
			if slices.Contains(i.Removals(p.Move.To), left) {
				t.Fatalf("what partition %d of %s is moved to is to be removed", n, topic.Name)
			}
		}
	}
	if n := len(slices.Collect(i.Moves())); n != moving || i.MoveCount() != moving {
		t.Fatalf("%d partitions move, %d are listed, %d counted", moving, n, i.MoveCount())
	}
}

func TestReplicasAreEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{t: t, state: NewState(nil)}
		cut := rapid.IntRange(0, 40).Draw(t, "cut")
		var atCut []byte
		var indexes []uint64
		for n := range 40 {
			if n == cut {
				atCut = snapshotOf(t, h.state.Image())
			}
			before := h.state.Image()
			frozen := snapshotOf(t, before)
			h.step()
			indexes = append(indexes, h.index)
			check(t, h.state.Image())
			if !bytes.Equal(frozen, snapshotOf(t, before)) {
				t.Fatal("an image changed after it was published")
			}
		}
		whole := snapshotOf(t, h.state.Image())

		other := NewState(nil)
		replay(t, other, h.log, indexes)
		if !bytes.Equal(whole, snapshotOf(t, other.Image())) {
			t.Fatal("two replicas differ")
		}
		if cut == 40 {
			return
		}
		restored, err := ReadSnapshot(bytes.NewReader(atCut))
		if err != nil {
			t.Fatal(err)
		}
		check(t, restored)
		late := NewState(restored)
		replay(t, late, h.log[cut:], indexes[cut:])
		if !bytes.Equal(whole, snapshotOf(t, late.Image())) {
			t.Fatal("snapshot and replay differ from replay")
		}
	})
}

func replay(t *rapid.T, s *State, log [][]byte, indexes []uint64) {
	for n, entry := range log {
		if _, err := s.Apply(indexes[n], entry); err != nil {
			t.Fatal(err)
		}
	}
}

// cluster is a state with some nodes and a shard on each.
func cluster(t *testing.T, nodes ...NodeID) (*State, func(Command) Result) {
	t.Helper()
	s := NewState(nil)
	index := uint64(0)
	do := func(c Command) Result {
		t.Helper()
		index++
		r, err := s.Apply(index, Encode(RequestID{}, c))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, n := range nodes {
		if r := do(&RegisterNode{Node: Node{ID: n, Incarnation: "a"}}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return s, do
}

func server(n NodeID, inc string) Server { return Server{Node: n, Incarnation: inc} }

func TestRetriedCommandKeepsItsAnswer(t *testing.T) {
	s, do := cluster(t, 1)
	do(&Init{ClusterID: "c"})
	id := RequestID{1}
	create := func(topic TopicID) []byte {
		return Encode(id, &CreateTopics{Shards: []ShardSpec{{ID: s.Image().NextShard(), Voters: []Server{server(1, "a")}}}, Topics: []TopicSpec{{ID: topic, Name: "t", ReplicationFactor: 1, Shards: []ShardID{1}}}})
	}
	first, err := s.Apply(10, create(TopicID{1}))
	if err != nil || first.Topics[0].Err != nil {
		t.Fatal(first, err)
	}
	again, err := s.Apply(11, create(TopicID{2}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Fatal(diff)
	}
	if got, ok := s.Image().Answer(id); !ok || cmp.Diff(first, got) != "" {
		t.Fatal("the answer is not remembered")
	}
	if n := len(s.Image().Shards()); n != 1 {
		t.Fatalf("the retry left %d shards", n)
	}
	r, _ := s.Apply(12, Encode(RequestID{2}, &CreateTopics{Topics: []TopicSpec{{ID: TopicID{3}, Name: "t", Shards: []ShardID{1}}}}))
	if e := r.Topics[0].Err; e == nil || e.Code != CodeTopicAlreadyExists {
		t.Fatalf("another request for the same topic: %v", e)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	s := NewState(nil)
	for n := range uint64(answersMax + 10) {
		if _, err := s.Apply(n+1, Encode(RequestID{byte(n), byte(n >> 8), 1}, &AllocateProducerIDs{Count: 1})); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Image().answers.len(); n != answersMax {
		t.Fatalf("%d answers", n)
	}
	if _, ok := s.Image().Answer(RequestID{0, 0, 1}); ok {
		t.Fatal("the oldest answer is still there")
	}
}

func TestNodeIsReplacedOnlyWhenFenced(t *testing.T) {
	s, do := cluster(t, 1, 2)
	do(&CreateTopics{
		Shards: []ShardSpec{{ID: 1, Voters: []Server{server(1, "a"), server(2, "a")}}, {ID: 2, Voters: []Server{server(2, "a")}}},
		Topics: []TopicSpec{{ID: TopicID{1}, Name: "t", ReplicationFactor: 2, Shards: []ShardID{1, 2}}},
	})
	r := do(&RegisterNode{Node: Node{ID: 2, Incarnation: "b"}})
	if r.Err == nil || r.Err.Code != CodeDuplicateRegistration || !strings.Contains(r.Err.Message, "another data directory") {
		t.Fatalf("a second directory for a live node: %v", r.Err)
	}
	do(&FenceNode{Server: server(2, "x"), Fenced: true})
	if n, _ := s.Image().Node(2); n.Fenced {
		t.Fatal("fenced by the report of another incarnation")
	}
	do(&FenceNode{Server: server(2, "a"), Fenced: true})
	if r := do(&RegisterNode{Node: Node{ID: 2, Incarnation: "b"}}); r.Err != nil {
		t.Fatal(r.Err)
	}
	one, two := s.Image().Shard(1), s.Image().Shard(2)
	if diff := cmp.Diff([]Server{server(1, "a"), server(2, "b")}, one.Voters); diff != "" || one.Lost {
		t.Fatal(diff, one.Lost)
	}
	if slices.Contains(one.Founding, server(2, "b")) {
		t.Fatal("the new directory became a founding voter")
	}
	if !two.Lost {
		t.Fatal("a shard whose only directory is gone is not lost")
	}
	do(&DeleteTopics{IDs: []TopicID{{1}}})
	if n := len(s.Image().Removals(2)); n != 0 {
		t.Fatalf("%d removals wait for a shard that nobody can lead", n)
	}
	if n := len(s.Image().Removals(1)); n != 1 {
		t.Fatalf("%d removals in the shard that lives", n)
	}
}

func TestReportsOfOlderTermsAreIgnored(t *testing.T) {
	s, do := cluster(t, 1, 2)
	do(&CreateTopics{Shards: []ShardSpec{{ID: 1, Voters: []Server{server(1, "a"), server(2, "a")}}}})
	do(&ReportShard{Shard: 1, Term: 5, Leader: 2, ISR: []NodeID{1, 2}})
	do(&ReportShard{Shard: 1, Term: 4, Leader: 1, ISR: []NodeID{1}})
	got := s.Image().Shard(1)
	if got.Leader != 2 || got.Term != 5 || !slices.Equal(got.ISR, []NodeID{1, 2}) {
		t.Fatalf("%+v", got)
	}
	mod := got.ModIndex
	do(&ReportShard{Shard: 1, Term: 5, Leader: 2, ISR: []NodeID{2}})
	if s.Image().Shard(1).ModIndex != mod {
		t.Fatal("a report asks the members for something")
	}
}

func TestConfigs(t *testing.T) {
	s, do := cluster(t, 1)
	do(&CreateTopics{
		Shards: []ShardSpec{{ID: 1, Voters: []Server{server(1, "a")}}},
		Topics: []TopicSpec{{ID: TopicID{1}, Name: "t", Shards: []ShardID{1}, Configs: map[string]string{"retention.ms": "1"}}},
	})
	change := func(c ConfigChange) *Error { return do(&AlterConfigs{Changes: []ConfigChange{c}}).Errors[0] }
	if e := change(ConfigChange{Type: ResourceTopic, Name: "nope", Set: map[string]string{"a": "b"}}); e == nil || e.Code != CodeUnknownTopicOrPartition {
		t.Fatal(e)
	}
	before := s.Image()
	if e := change(ConfigChange{Type: ResourceTopic, Name: "t", Set: map[string]string{"segment.ms": "5"}}); e != nil {
		t.Fatal(e)
	}
	if len(before.Config(ResourceTopic, "t")) != 1 {
		t.Fatal("an older image changed")
	}
	if s.Image().Topic("t").ModIndex != s.Image().Index() || s.Image().Shard(1).ModIndex != s.Image().Index() {
		t.Fatal("the change is not marked")
	}
	change(ConfigChange{Type: ResourceTopic, Name: "t", Set: map[string]string{"retention.bytes": "9"}, Replace: true})
	if got := s.Image().Config(ResourceTopic, "t"); !maps.Equal(got, map[string]string{"retention.bytes": "9"}) {
		t.Fatal(got)
	}
	change(ConfigChange{Type: ResourceGroup, Name: "g", Set: map[string]string{"consumer.session.timeout.ms": "50000"}})
	change(ConfigChange{Type: ResourceBroker, Set: map[string]string{"log.retention.ms": "77"}})
	if got := s.Image().TopicSettings(s.Image().Topic("t")); got.RetentionMs != 77 || got.RetentionBytes != 9 {
		t.Fatalf("%+v", got)
	}
	if s.Image().DefaultsIndex() != s.Image().Index() {
		t.Fatal("defaults not marked as changed")
	}
	if got := s.Image().ConfigNames(ResourceGroup); !slices.Equal(got, []string{"g"}) {
		t.Fatal(got)
	}
	change(ConfigChange{Type: ResourceGroup, Name: "g", Delete: []string{"consumer.session.timeout.ms"}})
	if got := s.Image().ConfigNames(ResourceGroup); got != nil {
		t.Fatal(got)
	}
	do(&DeleteTopics{IDs: []TopicID{{1}}})
	if s.Image().Config(ResourceTopic, "t") != nil {
		t.Fatal("a deleted topic left its configuration")
	}
}

func TestSnapshotDamage(t *testing.T) {
	s, do := cluster(t, 1, 2)
	do(&CreateTopics{Shards: []ShardSpec{{ID: 1, Voters: []Server{server(1, "a")}}}, Topics: []TopicSpec{{ID: TopicID{1}, Name: "t", Shards: []ShardID{1, 1}}}})
	good := snapshotOf(t, s.Image())
	for n := range good {
		bad := bytes.Clone(good)
		bad[n] ^= 0x41
		if _, err := ReadSnapshot(bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Fatalf("byte %d flipped: %v", n, err)
		}
		if _, err := ReadSnapshot(bytes.NewReader(good[:n])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	newer := bytes.Clone(good)
	newer[len(snapshotMagic)] = snapshotVersion + 1
	if _, err := ReadSnapshot(bytes.NewReader(newer)); !errors.Is(err, ErrNewer) {
		t.Fatal(err)
	}
}

func TestNewerCommandIsRefused(t *testing.T) {
	for name, e := range map[string]envelope{
		"version": {Version: commandVersion + 1, Kind: kindInit},
		"kind":    {Version: commandVersion, Kind: 200},
	} {
		e.Body = []byte{0xa0}
		raw, err := encoding.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		s := NewState(nil)
		if _, err := s.Apply(1, raw); !errors.Is(err, ErrNewer) {
			t.Fatalf("%s: %v", name, err)
		}
		if s.Image().Index() != 0 {
			t.Fatal("a refused entry moved the index")
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(RequestID{1}, &Init{ClusterID: "c"}))
	f.Add(Encode(RequestID{}, &CreateTopics{Topics: []TopicSpec{{Name: "t", Shards: []ShardID{1}}}}))
	f.Add(Encode(RequestID{}, &AlterConfigs{Changes: []ConfigChange{{Type: 2, Set: map[string]string{"a": "b"}}}}))
	f.Fuzz(func(t *testing.T, entry []byte) {
		s := NewState(nil)
		if _, err := s.Apply(1, entry); err != nil {
			return
		}
		if _, err := ReadSnapshot(bytes.NewReader(snapshotOf(t, s.Image()))); err != nil {
			t.Fatal(err)
		}
	})
}
