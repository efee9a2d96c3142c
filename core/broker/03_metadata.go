package broker

import (
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// Metadata (3), versions 0 to 13.
//
// Answered from this node's image, without asking anybody, except for leaders, of which this node may know more by its own replicas. A topic that does not exist is
// created when the request allows it (always before v4) and the cluster does; the answer then waits until its leaders serve it, so that the client can go on at once.
// KIP-430 (v8 to 10): authorized operations; without ACLs everybody may do everything. KIP-516 (v10): topic ids, from v12 on also to ask by.
func init() { register(3, 0, 13, (*Broker).handleMetadata) }

const (
	// autoCreateTimeout bounds how long an answer waits for a topic that it creates; the client is told to come back afterwards.
	autoCreateTimeout = 10 * time.Second
	// autoCreateMax bounds how many topics one request creates.
	autoCreateMax = 1000

	operationsUnknown = -1 << 31
	// Bits of Kafka's AclOperation that a topic and the cluster know.
	topicOperations   = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11
	clusterOperations = 1<<5 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 | 1<<12
)

func (b *Broker) handleMetadata(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.MetadataRequest)
	return func(ctx context.Context) kafka.Response {
		m := &metadata{b: b, req: req, version: r.Version, resp: kmsg.NewPtrMetadataResponse()}
		if m.version < 4 || req.AllowAutoTopicCreation {
			m.create(ctx)
		}
		m.image = b.ctl.Image()
		m.views = views{b: b, image: m.image}
		m.answer()
		return m.resp
	}
}

type metadata struct {
	b       *Broker
	req     *kmsg.MetadataRequest
	version int16
	image   *meta.Image
	views   views
	resp    *kmsg.MetadataResponse
	refused map[string]int16 // topics that could not be created
}

// all says whether the request asks for every topic.
func (m *metadata) all() bool {
	return m.req.Topics == nil || m.version == 0 && len(m.req.Topics) == 0
}

// create makes the topics that are asked for by name and do not exist.
func (m *metadata) create(ctx context.Context) {
	image := m.b.ctl.Image()
	var names []string
	for i := range m.req.Topics {
		name := m.req.Topics[i].Topic
		if name != nil && image.Topic(*name) == nil && meta.ValidateTopicName(*name) == nil && len(names) < autoCreateMax {
			names = append(names, *name)
		}
	}
	if len(names) > 0 && m.b.autoCreates(image) {
		slices.Sort(names)
		m.refused = m.b.autoCreate(ctx, slices.Compact(names))
	}
}

func (m *metadata) answer() {
	m.nodes()
	m.resp.ClusterID = kmsg.StringPtr(m.image.ClusterID())
	m.resp.ControllerID = int32(m.b.controllerID())
	m.resp.AuthorizedOperations = operationsUnknown
	if m.req.IncludeClusterAuthorizedOperations {
		m.resp.AuthorizedOperations = clusterOperations
	}
	m.resp.Topics = []kmsg.MetadataResponseTopic{}
	if m.all() {
		for t := range m.image.Topics() {
			m.topic(t)
		}
		return
	}
	for i := range m.req.Topics {
		m.asked(&m.req.Topics[i])
	}
}

// nodes lists the nodes that can be reached.
func (m *metadata) nodes() {
	for _, n := range m.image.Nodes() {
		if n.Fenced {
			continue
		}
		out := kmsg.NewMetadataResponseBroker()
		out.NodeID, out.Host, out.Port, out.Rack = int32(n.ID), n.KafkaHost, n.KafkaPort, rack(n)
		m.resp.Brokers = append(m.resp.Brokers, out)
	}
}

// asked answers for one topic of the request.
func (m *metadata) asked(in *kmsg.MetadataRequestTopic) {
	id := meta.TopicID(in.TopicID)
	switch {
	case m.version >= 12 && in.Topic == nil:
		if t := m.image.TopicByID(id); t != nil {
			m.topic(t)
			return
		}
		m.missing(nil, id, codeUnknownTopicID)
	case in.Topic == nil:
		m.missing(kmsg.StringPtr(""), id, codeInvalidRequest)
	case meta.ValidateTopicName(*in.Topic) != nil:
		m.missing(in.Topic, meta.TopicID{}, codeInvalidTopic)
	default:
		m.named(*in.Topic)
	}
}

func (m *metadata) named(name string) {
	if t := m.image.Topic(name); t != nil {
		m.topic(t)
		return
	}
	code := codeUnknownTopicOrPartition
	if refused, ok := m.refused[name]; ok {
		code = refused
	}
	m.missing(&name, meta.TopicID{}, code)
}

// missing answers for a topic that there is not.
func (m *metadata) missing(name *string, id meta.TopicID, code int16) {
	out := kmsg.NewMetadataResponseTopic()
	out.ErrorCode, out.Topic, out.TopicID, out.AuthorizedOperations = code, name, id, operationsUnknown
	out.Partitions = []kmsg.MetadataResponseTopicPartition{}
	m.resp.Topics = append(m.resp.Topics, out)
	m.b.metrics.failed("Metadata", code)
}

func (m *metadata) topic(t *meta.Topic) {
	out := kmsg.NewMetadataResponseTopic()
	out.Topic, out.TopicID, out.IsInternal, out.AuthorizedOperations = kmsg.StringPtr(t.Name), t.ID, t.Internal, operationsUnknown
	if m.req.IncludeTopicAuthorizedOperations {
		out.AuthorizedOperations = topicOperations
	}
	out.Partitions = make([]kmsg.MetadataResponseTopicPartition, len(t.Partitions))
	for i := range t.Partitions {
		out.Partitions[i] = m.partition(&t.Partitions[i])
	}
	m.resp.Topics = append(m.resp.Topics, out)
}

func (m *metadata) partition(p *meta.Partition) kmsg.MetadataResponseTopicPartition {
	v := m.views.of(p)
	out := kmsg.NewMetadataResponseTopicPartition()
	out.Partition, out.Leader, out.LeaderEpoch = p.Index, int32(v.leader), v.epoch
	out.Replicas, out.ISR, out.OfflineReplicas = v.replicas, v.isr, v.offline
	if v.leader == meta.NoNode {
		out.ErrorCode = codeLeaderNotAvailable
	}
	return out
}

// partitionView is what clients are told about a partition; the slices belong to the response and may be shared within it.
type partitionView struct {
	leader                 meta.NodeID // NoNode when there is none that clients can reach
	epoch                  int32
	replicas, isr, offline []int32
}

// views are the partitions of one answer. What lies in one shard has its leader and its replicas in common: they are looked up once, since
// an answer may name ten thousand partitions, and agree within the answer.
type views struct {
	b       *Broker
	image   *meta.Image
	byShard map[meta.ShardID]partitionView // with an epoch base of 0
}

func (v *views) of(p *meta.Partition) partitionView {
	if p.Move != nil {
		return v.b.view(v.image, p)
	}
	s, ok := v.byShard[p.Shard]
	if !ok {
		s = v.b.view(v.image, &meta.Partition{Shard: p.Shard})
		if v.byShard == nil {
			v.byShard = make(map[meta.ShardID]partitionView)
		}
		v.byShard[p.Shard] = s
	}
	s.epoch += p.EpochBase
	return s
}

// view puts together what this node knows about a partition.
func (b *Broker) view(image *meta.Image, p *meta.Partition) partitionView {
	leader, epoch := b.leader(p)
	v := partitionView{leader: leader, epoch: epoch, replicas: []int32{}, isr: []int32{}, offline: []int32{}}
	if n, ok := image.Node(leader); !ok || n.Fenced && leader != b.self() {
		v.leader = meta.NoNode
	}
	for _, voter := range replicasOf(image, p) {
		v.replicas = append(v.replicas, int32(voter.Node))
		if n, ok := image.Node(voter.Node); !ok || n.Fenced || n.Incarnation != voter.Incarnation {
			v.offline = append(v.offline, int32(voter.Node))
		}
	}
	for _, id := range b.ctl.ISR(p.Shard) {
		v.isr = append(v.isr, int32(id))
		if !slices.Contains(v.replicas, int32(id)) { // it leaves, and is still needed
			v.replicas = append(v.replicas, int32(id))
		}
	}
	return v
}

// controllerID returns a node that takes administrative requests: the metadata's leader, or this node, which passes them on.
func (b *Broker) controllerID() meta.NodeID {
	if id, ok := b.ctl.Leader(); ok {
		return id
	}
	return b.self()
}
