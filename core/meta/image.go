package meta

import (
	"encoding/binary"
	"iter"
	"maps"
	"slices"
)

// Image is the metadata as of one log index. It never changes: readers use it without locks and
// must not write to what its methods return.
type Image struct {
	index         uint64
	clusterID     string
	nodes         []Node   // by id
	shards        []*Shard // by id
	nextShard     ShardID
	topics        tree[string, *Topic]
	topicsByID    tree[string, *Topic]
	normalized    tree[string, string]   // NormalizedName to name
	shardTopics   tree[string, struct{}] // shard + topic id
	removals      tree[string, Removal]  // shard + topic id + partition + move
	moves         tree[string, struct{}] // target shard + topic id + partition
	configs       tree[string, *overrides]
	defaultsIndex uint64
	partitions    int
	nextProducer  int64
	answers       tree[string, answer] // by request id
	answerOrder   tree[uint64, string] // log index to request id

	replicaRemovals tree[string, ReplicaRemoval] // server + shard
	unregistered    []Server                     // oldest first
	balance         uint64                       // index of the request to balance, 0: none
}

// overrides are the dynamic settings of one resource.
type overrides struct {
	resource int8
	name     string
	values   map[string]string
}

// answer is what a command was answered with, kept for its retries.
type answer struct {
	index  uint64
	result Result
}

// Node is one member of the cluster, a "broker" in Kafka's words.
type Node struct {
	ID          NodeID `cbor:"1,keyasint"`
	Incarnation string `cbor:"2,keyasint"` // of its data directory
	Rack        string `cbor:"3,keyasint,omitempty"`
	KafkaHost   string `cbor:"4,keyasint,omitempty"` // as clients are told
	KafkaPort   int32  `cbor:"5,keyasint,omitempty"`
	Addr        string `cbor:"6,keyasint,omitempty"` // host:port for other nodes
	HTTPAddr    string `cbor:"7,keyasint,omitempty"`
	Fenced      bool   `cbor:"8,keyasint,omitempty"` // was not reachable for the metadata leader
	// Draining: it shall have no replicas. A registration does not change it.
	Draining bool `cbor:"9,keyasint,omitempty"`
}

// Server returns the node as a member of Raft groups.
func (n Node) Server() Server { return Server{Node: n.ID, Incarnation: n.Incarnation} }

// Topic is one topic with its partitions in order.
type Topic struct {
	ID                TopicID     `cbor:"1,keyasint"`
	Name              string      `cbor:"2,keyasint"`
	Internal          bool        `cbor:"3,keyasint,omitempty"`
	Partitions        []Partition `cbor:"4,keyasint"`
	ReplicationFactor int16       `cbor:"5,keyasint"`
	// ModIndex is the log index of the last change of the topic or of its configuration.
	ModIndex uint64 `cbor:"6,keyasint"`
}

// Partition says in which shard a partition lives. Its leader epoch is EpochBase plus the shard's
// Raft term.
type Partition struct {
	Index     int32   `cbor:"1,keyasint"`
	Shard     ShardID `cbor:"2,keyasint"`
	EpochBase int32   `cbor:"3,keyasint,omitempty"`
	// Move is the move under way, nil while the partition stays where it is.
	Move *Move `cbor:"4,keyasint,omitempty"`
	// Arrived is the id of the move that brought the partition into its shard, 0 when it was created there.
	Arrived uint64 `cbor:"5,keyasint,omitempty"`
}

// Shard is one Raft group as the metadata wants it, and what its leader reported last.
type Shard struct {
	ID ShardID `cbor:"1,keyasint"`
	// Founding are the servers that bootstrap the group, and nobody else ever does.
	Founding []Server `cbor:"2,keyasint"`
	// Voters are the members that the group shall have, the preferred leader first.
	Voters            []Server `cbor:"3,keyasint"`
	ReplicationFactor int16    `cbor:"4,keyasint"`
	// Leader, Term and ISR are the leader's last report; Leader is NoNode before the first.
	Leader NodeID   `cbor:"5,keyasint"`
	Term   uint64   `cbor:"6,keyasint"`
	ISR    []NodeID `cbor:"7,keyasint"`
	// Partitions counts the partitions in the shard.
	Partitions int `cbor:"8,keyasint"`
	// ModIndex is the log index of the last change that asks something of the shard's members.
	ModIndex uint64 `cbor:"9,keyasint"`
	// Lost says that no majority of the data is left: its only replica's directory is gone.
	Lost bool `cbor:"10,keyasint,omitempty"`
	// Generation counts the changes of the wanted members by AssignShards.
	Generation uint64 `cbor:"11,keyasint,omitempty"`
	// Leaving are servers that were wanted members and may still be in the group, by id.
	Leaving []Server `cbor:"12,keyasint,omitempty"`
}

// Preferred returns the node that shall lead the shard when it can.
func (s *Shard) Preferred() NodeID {
	if len(s.Voters) == 0 {
		return NoNode
	}
	return s.Voters[0].Node
}

// Nodes returns the nodes of the voters in order.
func (s *Shard) Nodes() []NodeID {
	out := make([]NodeID, len(s.Voters))
	for i, v := range s.Voters {
		out[i] = v.Node
	}
	return out
}

// Has tells whether the server is a wanted member.
func (s *Shard) Has(server Server) bool { return slices.Contains(s.Voters, server) }

// Removal is the explicit record that a partition is gone. It stays until the shard's leader has
// committed the deletion in the shard and says so. With a move it means the copy that this move has
// left behind in the shard: the one it was taken from, or the one that a cancelled move has begun.
type Removal struct {
	Shard ShardID `cbor:"1,keyasint"`
	Topic TopicID `cbor:"2,keyasint"`
	Index int32   `cbor:"3,keyasint"`
	Move  uint64  `cbor:"4,keyasint,omitempty"`
}

func shardKey(s ShardID) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(s)))
}

func shardTopicKey(s ShardID, t TopicID) string { return shardKey(s) + string(t[:]) }

func (r Removal) key() string {
	key := partitionKey(r.Shard, r.Topic, r.Index)
	if r.Move != 0 {
		key += string(binary.BigEndian.AppendUint64(nil, r.Move))
	}
	return key
}

func partitionKey(s ShardID, t TopicID, index int32) string {
	return shardTopicKey(s, t) + string(binary.BigEndian.AppendUint32(nil, uint32(index)))
}

func configKey(resource int8, name string) string { return string([]byte{byte(resource)}) + name }

// Index returns the log index up to which the image holds everything.
func (i *Image) Index() uint64 { return i.index }

// ClusterID returns the cluster's id, 22 characters, or "" before the first command.
func (i *Image) ClusterID() string { return i.clusterID }

// Nodes returns all registered nodes by id, the fenced ones too.
func (i *Image) Nodes() []Node { return i.nodes }

// Node returns one node.
func (i *Image) Node(id NodeID) (Node, bool) {
	at, ok := i.nodeAt(id)
	if !ok {
		return Node{}, false
	}
	return i.nodes[at], true
}

func (i *Image) nodeAt(id NodeID) (at int, ok bool) {
	return slices.BinarySearchFunc(i.nodes, id, func(n Node, id NodeID) int { return int(n.ID) - int(id) })
}

// Topics walks all topics by name.
func (i *Image) Topics() iter.Seq[*Topic] {
	return func(yield func(*Topic) bool) {
		for _, t := range i.topics.all() {
			if !yield(t) {
				return
			}
		}
	}
}

// TopicsFrom walks the topics whose names are not below name, by name.
func (i *Image) TopicsFrom(name string) iter.Seq[*Topic] {
	return func(yield func(*Topic) bool) {
		for _, t := range i.topics.from(name) {
			if !yield(t) {
				return
			}
		}
	}
}

// TopicCount returns the number of topics.
func (i *Image) TopicCount() int { return i.topics.len() }

// PartitionCount returns the number of partitions of all topics.
func (i *Image) PartitionCount() int { return i.partitions }

// Topic returns the topic of that name, or nil.
func (i *Image) Topic(name string) *Topic {
	t, _ := i.topics.get(name)
	return t
}

// TopicByID returns the topic with that id, or nil.
func (i *Image) TopicByID(id TopicID) *Topic {
	t, _ := i.topicsByID.get(string(id[:]))
	return t
}

// Shard returns one shard, or nil. The metadata group itself is not among them.
func (i *Image) Shard(id ShardID) *Shard {
	if at, ok := i.shardAt(id); ok {
		return i.shards[at]
	}
	return nil
}

func (i *Image) shardAt(id ShardID) (at int, ok bool) {
	return slices.BinarySearchFunc(i.shards, id, func(s *Shard, id ShardID) int { return int(int64(s.ID) - int64(id)) })
}

// Shards returns all shards by id, without the metadata group.
func (i *Image) Shards() []*Shard { return i.shards }

// NextShard returns the id that the next new shard gets.
func (i *Image) NextShard() ShardID { return max(i.nextShard, MetadataShard+1) }

// ShardTopics walks the topics that have a partition in the shard.
func (i *Image) ShardTopics(id ShardID) iter.Seq[*Topic] {
	prefix := shardKey(id)
	return func(yield func(*Topic) bool) {
		for key := range i.shardTopics.from(prefix) {
			if key[:len(prefix)] != prefix {
				return
			}
			t, ok := i.topicsByID.get(key[len(prefix):])
			if !ok {
				panic("BUG: shard names a topic that does not exist")
			}
			if !yield(t) {
				return
			}
		}
	}
}

// Removals returns the partitions whose deletion the shard's leader has still to commit.
func (i *Image) Removals(id ShardID) []Removal {
	var out []Removal
	prefix := shardKey(id)
	for key, r := range i.removals.from(prefix) {
		if key[:len(prefix)] != prefix {
			break
		}
		out = append(out, r)
	}
	return out
}

// Config returns the dynamic overrides of one resource, nil when there are none. Types are Kafka's
// (ResourceTopic and so on); the broker name "" means all brokers.
func (i *Image) Config(resourceType int8, name string) map[string]string {
	if c, ok := i.configs.get(configKey(resourceType, name)); ok {
		return c.values
	}
	return nil
}

// ConfigNames returns the resources of a type that have dynamic overrides, by name.
func (i *Image) ConfigNames(resourceType int8) []string {
	var out []string
	for _, c := range i.configs.from(configKey(resourceType, "")) {
		if c.resource != resourceType {
			break
		}
		out = append(out, c.name)
	}
	return out
}

// DefaultsIndex returns the log index of the last change of settings that hold for all topics.
func (i *Image) DefaultsIndex() uint64 { return i.defaultsIndex }

// NextProducerID returns the first producer id that was never given out.
func (i *Image) NextProducerID() int64 { return i.nextProducer }

// Answer returns what the command with that request id was answered, while it is remembered. The
// leader asks before it plans: a retried CreateTopics must not meet its own first try.
func (i *Image) Answer(id RequestID) (Result, bool) {
	a, ok := i.answers.get(string(id[:]))
	return a.result, ok
}

// Colliding returns the topic whose name differs from name only in `.` and `_`, or nil.
func (i *Image) Colliding(name string) *Topic {
	other, ok := i.normalized.get(NormalizedName(name))
	if !ok || other == name {
		return nil
	}
	return i.Topic(other)
}

// setConfig replaces the overrides of a resource; none means removed.
func (i *Image) setConfig(resource int8, name string, values map[string]string) {
	key := configKey(resource, name)
	if len(values) == 0 {
		i.configs = i.configs.drop(key)
		return
	}
	i.configs = i.configs.put(key, &overrides{resource: resource, name: name, values: maps.Clone(values)})
}

// TopicSettings returns the effective settings of a topic.
func (i *Image) TopicSettings(t *Topic) TopicSettings {
	return NewTopicSettings(i.Config(ResourceTopic, t.Name), i.Config(ResourceBroker, ""))
}
