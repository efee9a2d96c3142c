package broker

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

// Produce (0), versions 0 to 13.
//
// Batches are checked by view and, when the topic leaves them as they came, proposed without being decompressed. All batches of a request that belong to one
// shard are one entry of its log, proposed before the next request of the connection is read, so that a producer's order is the log's order. The answer waits until
// the entry is committed and applied, whether acks is 1 or all; with acks=0 nothing is answered, and a rejection closes the connection as in Kafka, so that
// the client looks for the leader again.
//
// Versions 0 to 2 carry message sets of the old formats, which are converted (Produce is advertised from 0 on because old librdkafka decides by it whether to
// compress, KAFKA-18659). KIP-467 (v8): a refused record is named. KIP-951 (v10): a wrong leader is answered with the right one. KIP-516 (v13): topics by id.
// Transactions are not in this release.
func init() { register(0, 0, 13, (*Broker).handleProduce) }

const (
	// produceTimeoutMin is given to requests that ask for less: the least a commit takes is a sync on two disks.
	produceTimeoutMin = time.Second
	// produceTimeoutMax bounds what a request can hold on to.
	produceTimeoutMax = 5 * time.Minute
	// entryBytesMax is how much of one request goes into one entry of a shard's log; what is more becomes further entries.
	entryBytesMax = 4 << 20
)

// produce is one Produce request on its way.
type produce struct {
	b       *Broker
	ctx     context.Context // of the connection, within Serve
	flow    shard.Flow      // each connection gets its share of what a shard can take
	req     *kmsg.ProduceRequest
	version int16
	image   *meta.Image
	now     int64
	resp    *kmsg.ProduceResponse
	groups  map[meta.ShardID]*shardEntry
	order   []*shardEntry
	waits   []produceWait
	synced  map[meta.ShardID]int // members in sync, as asked once per request
	asked   int64                // bytes that the disks were asked for
}

// shardEntry collects the batches of one request that go into one entry.
type shardEntry struct {
	group *shard.Group
	items []partition.Append
	slots []produceSlot
	bytes int
}

// produceSlot is where the result of an item is answered.
type produceSlot struct {
	topic, partition int
	logAppendTime    int64
}

// produceWait is a proposed entry.
type produceWait struct {
	future shard.Future
	slots  []produceSlot
}

func (b *Broker) handleProduce(ctx context.Context, r *kafka.Request) kafka.Reply {
	p := &produce{
		b: b, ctx: ctx, flow: shard.Flow(r.Conn.ID), req: r.Body.(*kmsg.ProduceRequest), version: r.Version, image: b.ctl.Image(), now: b.opts.Now().UnixMilli(),
		resp: kmsg.NewPtrProduceResponse(), groups: make(map[meta.ShardID]*shardEntry),
	}
	defer func() { b.ctl.Admitted(p.asked) }()
	p.collect()
	p.proposeAll()
	if p.req.Acks == 0 {
		if p.refused() {
			r.Conn.Close("a produce request with acks=0 was refused")
		}
		return nil
	}
	timeout := min(max(time.Duration(p.req.TimeoutMillis)*time.Millisecond, produceTimeoutMin), produceTimeoutMax)
	p.req, p.ctx = nil, nil // its records lie in a frame that is reused from here on
	deadline := time.Now().Add(timeout)
	return func(ctx context.Context) kafka.Response { return p.finish(ctx, deadline) }
}

// collect checks every partition of the request; those in order are put into the entries of their shards, the others are answered.
func (p *produce) collect() {
	p.resp.Topics = make([]kmsg.ProduceResponseTopic, len(p.req.Topics))
	for i := range p.req.Topics {
		in, out := &p.req.Topics[i], &p.resp.Topics[i]
		*out = kmsg.NewProduceResponseTopic()
		out.Topic, out.TopicID = in.Topic, in.TopicID
		out.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(in.Partitions))
		topic, code := p.topic(in)
		for j := range in.Partitions {
			slot := &out.Partitions[j]
			*slot = kmsg.NewProduceResponseTopicPartition()
			slot.Partition, slot.BaseOffset, slot.LogAppendTime, slot.LogStartOffset = in.Partitions[j].Partition, -1, -1, -1
			if code == codeNone {
				p.partition(topic, in.Partitions[j].Records, i, j)
			} else {
				p.fail(slot, nil, rejection{code: code})
			}
		}
	}
}

func (p *produce) topic(in *kmsg.ProduceRequestTopic) (*meta.Topic, int16) {
	if p.req.Acks < -1 || p.req.Acks > 1 {
		return nil, codeInvalidRequiredAcks
	}
	if p.version < 13 {
		return p.b.topic(in.Topic, meta.TopicID{})
	}
	return p.b.topic("", in.TopicID)
}

// partition checks the records for one partition and puts them into the entry of its shard.
func (p *produce) partition(topic *meta.Topic, records []byte, i, j int) {
	slot := &p.resp.Topics[i].Partitions[j]
	part, group, code := p.b.leaderFor(topic, slot.Partition)
	if code != codeNone {
		p.fail(slot, topic, rejection{code: code})
		return
	}
	settings := p.b.settings.of(p.image, topic)
	id := topic.Partitions[slot.Partition].Shard
	if p.req.Acks == -1 && !p.enough(id, group, settings, topic) {
		p.fail(slot, topic, rejection{code: codeNotEnoughReplicas})
		return
	}
	rules := batchRules{settings: settings, version: p.version, now: p.now}
	batches, refused := rules.check(records)
	if refused.code != codeNone {
		p.fail(slot, topic, refused)
		return
	}
	if refused := p.admit(id, group, part.Key(), batches); refused.code != codeNone {
		p.fail(slot, topic, refused)
		return
	}
	s := produceSlot{topic: i, partition: j, logAppendTime: -1}
	if settings.LogAppendTime {
		s.logAppendTime = p.now
	}
	p.b.metrics.producedBytes.Add(len(batches))
	p.b.metrics.recompressed.Add(rules.recompressed)
	p.add(id, group, partition.Append{Key: part.Key(), Batches: batches}, s)
}

// add puts an item into its shard's entry; a full entry is proposed at once, which keeps the order.
func (p *produce) add(id meta.ShardID, group *shard.Group, item partition.Append, slot produceSlot) {
	e := p.groups[id]
	if e == nil {
		e = &shardEntry{group: group}
		p.groups[id] = e
		p.order = append(p.order, e)
	}
	if e.bytes > 0 && e.bytes+len(item.Batches) > entryBytesMax {
		p.propose(e)
	}
	e.items, e.slots, e.bytes = append(e.items, item), append(e.slots, slot), e.bytes+len(item.Batches)
}

func (p *produce) proposeAll() {
	for _, e := range p.order {
		p.propose(e)
	}
	p.groups, p.order = nil, nil
}

// propose gives one entry to Raft and empties it.
func (p *produce) propose(e *shardEntry) {
	if len(e.items) == 0 {
		return
	}
	p.b.metrics.producedBatch.Add(len(e.items))
	future := e.group.ProposeFor(p.ctx, p.flow, partition.EncodeAppend(e.items))
	p.waits = append(p.waits, produceWait{future: future, slots: e.slots})
	e.items, e.slots, e.bytes = nil, nil, 0
}

// enough says whether min.insync.replicas can be met. What is answered is always on a majority, so it is looked at only where more than that is asked for; more
// than all there are is never asked for.
func (p *produce) enough(id meta.ShardID, g *shard.Group, settings *meta.TopicSettings, topic *meta.Topic) bool {
	replicas := int(topic.ReplicationFactor)
	want := min(settings.MinInsyncReplicas, replicas)
	return want <= replicas/2+1 || p.inSync(id, g) >= want
}

// inSync returns how many members of a shard have what its leader has.
func (p *produce) inSync(id meta.ShardID, g *shard.Group) int {
	if n, ok := p.synced[id]; ok {
		return n
	}
	n := 0
	for _, r := range g.Replicas() {
		if r.Voter && r.InSync {
			n++
		}
	}
	if p.synced == nil {
		p.synced = make(map[meta.ShardID]int)
	}
	p.synced[id] = n
	return n
}

// fail answers one partition with an error.
func (p *produce) fail(slot *kmsg.ProduceResponseTopicPartition, topic *meta.Topic, why rejection) {
	slot.ErrorCode, slot.BaseOffset, slot.LogAppendTime, slot.LogStartOffset = why.code, -1, -1, -1
	slot.ErrorRecords = why.records
	if why.message != "" {
		slot.ErrorMessage = kmsg.StringPtr(why.message)
	}
	if why.code == codeNotLeaderOrFollower && p.version >= 10 && topic != nil && int(slot.Partition) < len(topic.Partitions) {
		node, epoch := p.b.leader(&topic.Partitions[slot.Partition])
		slot.CurrentLeader.LeaderID, slot.CurrentLeader.LeaderEpoch = int32(node), epoch
		p.hint(node)
	}
	p.b.metrics.failed("Produce", why.code)
}

// hint adds where to find a leader that the response names (KIP-951).
func (p *produce) hint(id meta.NodeID) {
	for i := range p.resp.Brokers {
		if p.resp.Brokers[i].NodeID == int32(id) {
			return
		}
	}
	if n, ok := p.b.ctl.Image().Node(id); ok {
		h := kmsg.NewProduceResponseBroker()
		h.NodeID, h.Host, h.Port, h.Rack = int32(n.ID), n.KafkaHost, n.KafkaPort, rack(n)
		p.resp.Brokers = append(p.resp.Brokers, h)
	}
}

// refused says whether anything was refused so far.
func (p *produce) refused() bool {
	for i := range p.resp.Topics {
		for j := range p.resp.Topics[i].Partitions {
			if p.resp.Topics[i].Partitions[j].ErrorCode != codeNone {
				return true
			}
		}
	}
	return false
}

// finish waits for the entries and answers the request.
func (p *produce) finish(ctx context.Context, deadline time.Time) kafka.Response {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	for _, w := range p.waits {
		result, err := w.future.Wait(ctx)
		if err == nil {
			p.applied(w.slots, result)
			continue
		}
		code := errorCode(err)
		if ctx.Err() != nil && code == codeNotLeaderOrFollower {
			code = codeRequestTimedOut
		}
		for _, s := range w.slots {
			p.failApplied(s, rejection{code: code})
		}
	}
	return p.resp
}

// applied answers the partitions of one entry by what applying it decided.
func (p *produce) applied(slots []produceSlot, result any) {
	results, ok := result.([]partition.AppendResult)
	if err, failed := result.(error); failed {
		for _, s := range slots {
			p.failApplied(s, rejection{code: errorCode(err), message: err.Error()})
		}
		return
	}
	if !ok || len(results) != len(slots) {
		panic("BUG: the result of an append does not fit its entry")
	}
	for i, s := range slots {
		slot := &p.resp.Topics[s.topic].Partitions[s.partition]
		if results[i].Err != nil {
			p.failApplied(s, rejection{code: errorCode(results[i].Err), message: results[i].Err.Error()})
			continue
		}
		slot.BaseOffset, slot.LogStartOffset, slot.LogAppendTime = results[i].Base, results[i].LogStart, s.logAppendTime
	}
}

func (p *produce) failApplied(s produceSlot, why rejection) {
	out := &p.resp.Topics[s.topic]
	topic, _ := p.b.topic(out.Topic, out.TopicID)
	p.fail(&out.Partitions[s.partition], topic, why)
}
