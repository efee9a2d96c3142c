package meta

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// answersMax is how many answers are remembered for retries. A command is retried for as long as
// its client waits, some 30 s; nobody changes metadata 1,000 times in that time for long.
const answersMax = 1000

// State applies commands to images. The zero value is an empty cluster.
type State struct {
	image *Image
}

// NewState returns a state that continues from an image; nil means from nothing.
func NewState(i *Image) *State { return &State{image: i} }

// Image returns the newest image.
func (s *State) Image() *Image {
	if s.image == nil {
		s.image = &Image{}
	}
	return s.image
}

// Advance notes that the log has come to index without a command of ours.
func (s *State) Advance(index uint64) {
	if index > s.Image().index {
		next := *s.image
		next.index = index
		s.image = &next
	}
}

// Apply applies the entry at a log index and returns its answer. An error means that the entry
// cannot be read: the replica must stop, for going on would make it differ from the others.
func (s *State) Apply(index uint64, entry []byte) (Result, error) {
	id, c, err := Decode(entry)
	if err != nil {
		return Result{}, fmt.Errorf("apply metadata entry %d: %w", index, err)
	}
	if index <= s.Image().index {
		panic(fmt.Sprintf("BUG: metadata entry %d applied after %d", index, s.image.index))
	}
	next := *s.image
	next.index = index
	t := &transition{Image: &next}
	if a, ok := next.answers.get(string(id[:])); ok && id != (RequestID{}) {
		s.image = &next
		return a.result, nil
	}
	r := c.apply(t)
	t.remember(id, r)
	s.image = t.Image
	return r, nil
}

// transition is an image under construction. Its methods replace what they change and never write
// to what older images share.
type transition struct {
	*Image
	nodesOwned, shardsOwned bool
}

func (t *transition) remember(id RequestID, r Result) {
	if id == (RequestID{}) {
		return
	}
	t.answers = t.answers.put(string(id[:]), answer{index: t.index, result: r})
	t.answerOrder = t.answerOrder.put(t.index, string(id[:]))
	if t.answerOrder.len() > answersMax {
		for oldest, key := range t.answerOrder.all() {
			t.answerOrder = t.answerOrder.drop(oldest)
			t.answers = t.answers.drop(key)
			break
		}
	}
}

func (t *transition) putNode(n Node) {
	if !t.nodesOwned {
		t.nodes, t.nodesOwned = slices.Clone(t.nodes), true
	}
	if at, ok := t.nodeAt(n.ID); ok {
		t.nodes[at] = n
		return
	}
	t.nodes = append(t.nodes, n)
	slices.SortFunc(t.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
}

// changeShard replaces a shard by a copy that change has worked on.
func (t *transition) changeShard(id ShardID, change func(*Shard)) {
	at, ok := t.shardAt(id)
	if !ok {
		panic(fmt.Sprintf("BUG: shard %d does not exist", id))
	}
	if !t.shardsOwned {
		t.shards, t.shardsOwned = slices.Clone(t.shards), true
	}
	changed := *t.shards[at]
	change(&changed)
	t.shards[at] = &changed
}

func (t *transition) touchShard(id ShardID) {
	t.changeShard(id, func(s *Shard) { s.ModIndex = t.index })
}

func (t *transition) putTopic(topic *Topic) {
	topic.ModIndex = t.index
	t.topics = t.topics.put(topic.Name, topic)
	t.topicsByID = t.topicsByID.put(string(topic.ID[:]), topic)
	t.normalized = t.normalized.put(NormalizedName(topic.Name), topic.Name)
}

func (c *Init) apply(t *transition) Result {
	if t.clusterID == "" {
		t.clusterID = c.ClusterID
	}
	return Result{}
}

func (c *RegisterNode) apply(t *transition) Result {
	n := c.Node
	n.Fenced, n.Draining = false, false
	old, known := t.Node(n.ID)
	if t.Unregistered(n.Server()) {
		return Result{Err: Errorf(CodeBrokerIDNotRegistered,
			"Node %d was removed from the cluster: give it an empty data directory to let it join again", n.ID)}
	}
	if known && old.Incarnation != n.Incarnation {
		if !old.Fenced {
			return Result{Err: Errorf(CodeDuplicateRegistration,
				"Node id %d belongs to another data directory (incarnation %s) that is alive: give this node an id of its own, or stop the other one first", n.ID, old.Incarnation)}
		}
		t.replaceServer(old.Server(), n.Server())
		t.dropReplicaRemovals(old.Server())
	}
	n.Draining = known && old.Draining
	t.putNode(n)
	return Result{}
}

// replaceServer makes the new incarnation of a node a wanted member wherever the old one was. The
// shard's leader brings it in and takes the old one out. A shard whose only replica was there has
// nobody left to fetch from.
func (t *transition) replaceServer(old, now Server) {
	for _, s := range slices.Clone(t.shards) {
		if !s.Has(old) {
			continue
		}
		t.changeShard(s.ID, func(s *Shard) {
			s.Lost = s.Lost || len(s.Voters) == 1 && len(s.Leaving) == 0 // one that is leaving has the data
			s.Voters = slices.Clone(s.Voters)
			s.Voters[slices.Index(s.Voters, old)] = now
			s.ModIndex = t.index
		})
	}
}

func (c *FenceNode) apply(t *transition) Result {
	n, ok := t.Node(c.Server.Node)
	if ok && n.Incarnation == c.Server.Incarnation && n.Fenced != c.Fenced {
		n.Fenced = c.Fenced
		t.putNode(n)
	}
	return Result{}
}

func (t *transition) addShards(specs []ShardSpec) {
	for _, spec := range specs {
		if spec.ID < t.NextShard() {
			continue // planned twice; apply of the topic refuses what does not fit
		}
		if !t.shardsOwned {
			t.shards, t.shardsOwned = slices.Clone(t.shards), true
		}
		t.shards = append(t.shards, &Shard{
			ID: spec.ID, Founding: spec.Voters, Voters: spec.Voters, ReplicationFactor: int16(len(spec.Voters)),
			Leader: NoNode, ModIndex: t.index,
		})
		t.nextShard = spec.ID + 1
	}
}

func (c *CreateTopics) apply(t *transition) Result {
	t.addShards(c.Shards)
	r := Result{Topics: slices.Clone(c.Refused)}
	for i := range c.Topics {
		r.Topics = append(r.Topics, t.createTopic(&c.Topics[i]))
	}
	return r
}

func (t *transition) createTopic(spec *TopicSpec) TopicResult {
	r := TopicResult{Name: spec.Name, ID: spec.ID, Partitions: int32(len(spec.Shards)), ReplicationFactor: spec.ReplicationFactor}
	if r.Err = t.checkNewTopic(spec); r.Err != nil {
		return r
	}
	topic := &Topic{ID: spec.ID, Name: spec.Name, Internal: spec.Internal, ReplicationFactor: spec.ReplicationFactor}
	t.setConfig(ResourceTopic, spec.Name, spec.Configs)
	t.addPartitions(topic, spec.Shards)
	return r
}

func (t *transition) checkNewTopic(spec *TopicSpec) *Error {
	if t.Topic(spec.Name) != nil || t.TopicByID(spec.ID) != nil {
		return Errorf(CodeTopicAlreadyExists, "Topic '%s' already exists.", spec.Name)
	}
	if other := t.Colliding(spec.Name); other != nil {
		return Errorf(CodeInvalidTopic, "Topic '%s' collides with existing topic: %s", spec.Name, other.Name)
	}
	return t.checkShards(spec.Shards)
}

func (t *transition) checkShards(ids []ShardID) *Error {
	for _, id := range ids {
		if t.Shard(id) == nil {
			return Errorf(CodeUnknownServerError, "Shard %d does not exist.", id)
		}
	}
	return nil
}

// addPartitions puts further partitions of a topic, which the caller has just made or copied, into
// their shards.
func (t *transition) addPartitions(topic *Topic, shards []ShardID) {
	for _, id := range shards {
		topic.Partitions = append(topic.Partitions, Partition{Index: int32(len(topic.Partitions)), Shard: id})
	}
	for id, n := range countShards(shards) {
		t.changeShard(id, func(s *Shard) { s.Partitions += n; s.ModIndex = t.index })
		t.shardTopics = t.shardTopics.put(shardTopicKey(id, topic.ID), struct{}{})
	}
	t.partitions += len(shards)
	t.putTopic(topic)
}

// countShards counts how often each shard is named. The order of the result does not matter to
// its callers, which treat each shard by itself.
func countShards(shards []ShardID) map[ShardID]int {
	n := make(map[ShardID]int)
	for _, id := range shards {
		n[id]++
	}
	return n
}

func (topic *Topic) shards() []ShardID {
	out := make([]ShardID, len(topic.Partitions))
	for i, p := range topic.Partitions {
		out[i] = p.Shard
	}
	return out
}

func (c *DeleteTopics) apply(t *transition) Result {
	r := Result{Errors: make([]*Error, len(c.IDs))}
	for i, id := range c.IDs {
		topic := t.TopicByID(id)
		if topic == nil {
			r.Errors[i] = Errorf(CodeUnknownTopicID, "This server does not host this topic ID.")
			continue
		}
		t.deleteTopic(topic)
	}
	return r
}

func (t *transition) deleteTopic(topic *Topic) {
	t.topics = t.topics.drop(topic.Name)
	t.topicsByID = t.topicsByID.drop(string(topic.ID[:]))
	t.normalized = t.normalized.drop(NormalizedName(topic.Name))
	t.setConfig(ResourceTopic, topic.Name, nil)
	for _, p := range topic.Partitions {
		if t.Shard(p.Shard).Lost {
			continue // nobody is left to be told
		}
		r := Removal{Shard: p.Shard, Topic: topic.ID, Index: p.Index}
		t.removals = t.removals.put(r.key(), r)
	}
	for i := range topic.Partitions {
		t.dropMove(topic, &topic.Partitions[i])
	}
	for id, n := range countShards(topic.shards()) {
		t.changeShard(id, func(s *Shard) { s.Partitions -= n; s.ModIndex = t.index })
		t.shardTopics = t.shardTopics.drop(shardTopicKey(id, topic.ID))
	}
	t.partitions -= len(topic.Partitions)
}

func (c *CreatePartitions) apply(t *transition) Result {
	topic := t.TopicByID(c.Topic)
	switch {
	case topic == nil:
		return Result{Err: Errorf(CodeUnknownTopicOrPartition, "This server does not host this topic-partition.")}
	case int(c.From) != len(topic.Partitions):
		return Result{Err: Errorf(CodeInvalidPartitions, "Topic already has %d partition(s).", len(topic.Partitions))}
	}
	t.addShards(c.New)
	if err := t.checkShards(c.Shards); err != nil {
		return Result{Err: err}
	}
	changed := *topic
	changed.Partitions = slices.Clone(topic.Partitions)
	t.addPartitions(&changed, c.Shards)
	return Result{}
}

func (c *AlterConfigs) apply(t *transition) Result {
	r := Result{Errors: make([]*Error, len(c.Changes))}
	for i := range c.Changes {
		if i < len(c.Refused) && c.Refused[i] != nil {
			r.Errors[i] = c.Refused[i]
			continue
		}
		r.Errors[i] = t.alterConfig(&c.Changes[i])
	}
	return r
}

func (t *transition) alterConfig(c *ConfigChange) *Error {
	topic := t.Topic(c.Name)
	if c.Type == ResourceTopic && topic == nil {
		return Errorf(CodeUnknownTopicOrPartition, "The topic '%s' does not exist.", c.Name)
	}
	values := map[string]string{}
	if !c.Replace {
		maps.Copy(values, t.Config(c.Type, c.Name))
	}
	for _, name := range c.Delete {
		delete(values, name)
	}
	maps.Copy(values, c.Set)
	t.setConfig(c.Type, c.Name, values)
	switch c.Type {
	case ResourceTopic:
		t.touchTopic(topic)
	case ResourceBroker:
		t.touchAll()
	}
	return nil
}

func (t *transition) touchTopic(topic *Topic) {
	changed := *topic
	t.putTopic(&changed)
	for id := range countShards(topic.shards()) {
		t.touchShard(id)
	}
}

func (t *transition) touchAll() {
	t.defaultsIndex = t.index
	for _, s := range slices.Clone(t.shards) {
		t.touchShard(s.ID)
	}
}

func (c *AllocateProducerIDs) apply(t *transition) Result {
	if c.Count <= 0 {
		return Result{Err: Errorf(CodeInvalidRequest, "A block of %d producer ids is none.", c.Count)}
	}
	first := t.nextProducer
	t.nextProducer += c.Count
	return Result{First: first}
}

func (c *ReportShard) apply(t *transition) Result {
	s := t.Shard(c.Shard)
	if s == nil || c.Term < s.Term {
		return Result{}
	}
	t.changeShard(c.Shard, func(s *Shard) {
		s.Term, s.Leader, s.ISR = c.Term, c.Leader, slices.Clone(c.ISR)
	})
	return Result{}
}

func (c *ConfirmRemovals) apply(t *transition) Result {
	for _, r := range c.Removals {
		t.removals = t.removals.drop(r.key())
	}
	return Result{}
}
