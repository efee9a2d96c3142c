package uplink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/record"
)

const (
	metadataTimeout = 10 * time.Second
	// metadataEvery refreshes leaders that nobody complained about; metadataMin keeps complaints from becoming a load.
	metadataEvery = time.Minute
	metadataMin   = 50 * time.Millisecond
	// topicPatience is how long the records behind one wait for a topic that the cluster answers it does not have.
	topicPatience = 10 * time.Minute
	// askBytesMax is read per step while looking for what is already there.
	askBytesMax = 1 << 20
)

// topicInfo is what the cluster says of a topic. A topic that cannot exist has impossible set.
type topicInfo struct {
	id         [16]byte
	leaders    []int32 // by partition; -1 = none now
	impossible bool
}

// cluster speaks to the Kafka cluster. Its methods that start a request return at once; the answer is sent to events.
type cluster struct {
	client   *kgo.Client
	topics   map[string]*topicInfo // owned by the loop; nil value = wanted, not known yet
	stale    bool                  // a leader was wrong: refresh soon
	ctx      context.Context
	requests *sync.WaitGroup
	events   chan<- event
}

func openCluster(o Options) (*cluster, error) {
	opts := append([]kgo.Opt{
		kgo.SeedBrokers(o.Brokers...), kgo.ClientID(o.ClientID),
		kgo.DialTimeout(5 * time.Second), kgo.RetryTimeout(5 * time.Second),
		kgo.RequestTimeoutOverhead(5 * time.Second), // a dead peer is noticed before the answer is given up
		kgo.BrokerMaxReadBytes(64 << 20),
	}, o.KgoOptions...)
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("configure uplink client: %w", err)
	}
	return &cluster{client: client, topics: map[string]*topicInfo{}, stale: true}, nil
}

func (c *cluster) close() { c.client.Close() }

// start runs fn on a goroutine of the uplink's; what it returns goes to the loop.
func (c *cluster) start(timeout time.Duration, fn func(ctx context.Context) event) {
	c.requests.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, timeout)
		defer cancel()
		e := fn(ctx)
		select {
		case c.events <- e:
		case <-c.ctx.Done():
		}
	})
}

// newProducerID takes a producer id from the cluster, for idempotent produce without transactions.
func (c *cluster) newProducerID(ctx context.Context) (int64, error) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch = -1, -1
	resp, err := req.RequestWith(ctx, c.client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return 0, fmt.Errorf("take a producer id: %w", err)
	}
	return resp.ProducerID, nil
}

// refreshed brings metadata.
type refreshed struct {
	resp *kmsg.MetadataResponse
	err  error
}

func (c *cluster) refresh() {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = true
	for name := range c.topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	c.start(metadataTimeout, func(ctx context.Context) event {
		resp, err := req.RequestWith(ctx, c.client)
		return refreshed{resp, err}
	})
}

func (r refreshed) apply(u *Uplink) error {
	u.metaBusy = false
	if r.err != nil {
		u.failedMetadata(r.err)
		return nil
	}
	u.blocked = false
	u.cluster.stale = false
	for i := range r.resp.Topics {
		u.learn(&r.resp.Topics[i])
	}
	if u.cluster.stale {
		u.metaTries++
		u.metaAt = time.Now().Add(backoff(u.metaTries))
	} else {
		u.metaTries = 0
		u.metaAt = time.Now().Add(metadataMin)
	}
	u.setError("")
	return nil
}

func (u *Uplink) failedMetadata(err error) {
	u.metaTries++
	u.metaAt = time.Now().Add(backoff(u.metaTries))
	u.m.errors.Inc()
	u.setError("cannot reach the cluster: " + err.Error())
	u.warn("metadata", "uplink cannot reach the cluster", "brokers", u.o.Brokers, "err", err)
}

// learn takes what metadata says of one topic.
func (u *Uplink) learn(t *kmsg.MetadataResponseTopic) {
	if t.Topic == nil {
		return
	}
	name := *t.Topic
	err := kerr.ErrorForCode(t.ErrorCode)
	switch {
	case errors.Is(err, kerr.InvalidTopicException), errors.Is(err, kerr.PolicyViolation):
		u.warn("topic "+name, "uplink: topic cannot exist, its records go to the dead-letter topic", "topic", name, "err", err)
		u.cluster.topics[name] = &topicInfo{impossible: true}
		return
	case err != nil && len(t.Partitions) == 0:
		u.cluster.stale = true
		if u.missing[name].IsZero() {
			u.missing[name] = time.Now()
		}
		if time.Since(u.missing[name]) > topicPatience && name != u.o.DeadLetter {
			u.alarm(fmt.Sprintf("topic %s is not to be had (%v): its records go to the dead-letter topic", name, err))
			u.cluster.topics[name] = &topicInfo{impossible: true}
			return
		}
		u.setError(fmt.Sprintf("topic %s: %v", name, err))
		u.warn("topic "+name, "uplink waits for a topic", "topic", name, "err", err)
		return
	}
	delete(u.missing, name)
	info := &topicInfo{id: t.TopicID, leaders: make([]int32, len(t.Partitions))}
	for _, p := range t.Partitions {
		if int(p.Partition) >= len(info.leaders) || p.Partition < 0 {
			u.cluster.stale = true // a view in the middle of a change
			return
		}
		info.leaders[p.Partition] = p.Leader
		if p.Leader < 0 {
			u.cluster.stale = true
		}
	}
	u.cluster.topics[name] = info
	for _, p := range u.parts {
		if p.Topic == name && !p.follow(info) && len(p.queue) > 0 {
			u.cluster.stale = true
		}
	}
}

// follow takes the leader and notices a topic that was deleted and created again. It returns false when the topic has fewer partitions.
func (p *partition) follow(info *topicInfo) bool {
	if int(p.Partition) >= len(info.leaders) {
		p.leader = -1
		if p.gone.IsZero() {
			p.gone = time.Now()
		}
		return false
	}
	p.gone = time.Time{}
	if p.leader != info.leaders[p.Partition] {
		p.leader = info.leaders[p.Partition]
		p.notBefore = time.Time{} // a new leader need not wait out the old one's back-off
	}
	if p.id != info.id {
		if p.id != ([16]byte{}) {
			p.ask, p.acked = true, 0
		}
		p.id = info.id
	}
	return true
}

// produced brings the answer to one Produce request.
type produced struct {
	leader  int32
	parts   []*partition
	batches []*batch
	ids     [][16]byte // of the topics, as they were when it was sent
	resp    *kmsg.ProduceResponse
	err     error
}

func (c *cluster) produce(leader int32, parts []*partition) {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, int32(produceTimeout.Milliseconds())
	out := produced{leader: leader, parts: parts}
	byTopic := map[string]int{}
	for _, p := range parts {
		i, ok := byTopic[p.Topic]
		if !ok {
			i = len(req.Topics)
			byTopic[p.Topic] = i
			t := kmsg.NewProduceRequestTopic()
			t.Topic, t.TopicID = p.Topic, p.id
			req.Topics = append(req.Topics, t)
		}
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = p.Partition, p.queue[0].wire
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, rp)
		out.batches, out.ids = append(out.batches, p.queue[0]), append(out.ids, p.id)
	}
	c.start(requestTimeout, func(ctx context.Context) event {
		resp, err := c.client.Broker(int(leader)).Request(ctx, req)
		out.err = err
		if err == nil {
			out.resp = resp.(*kmsg.ProduceResponse)
		}
		return out
	})
}

// asked is the question what a partition's log has of our producers, and brings the answer.
type asked struct {
	p         *partition
	id        [16]byte // of the topic
	leader    int32
	producers map[int64]bool

	found    bool
	producer int64
	epoch    int16
	sequence int32 // of the last record of the last batch found
	end      int64 // core offset after that batch
	next     int64 // how far the log was read
	eaten    bool  // the log begins after the last confirmed offset
	err      error
}

// ask reads the headers of what was written to p since the last confirmed offset, looking for the producers of its open batches.
func (c *cluster) ask(p *partition) {
	a := asked{p: p, id: p.id, leader: p.leader, next: p.acked, producers: map[int64]bool{p.producerID: true}}
	for _, b := range p.queue {
		a.producers[b.plan.ProducerID] = true
	}
	c.start(10*requestTimeout, func(ctx context.Context) event {
		for a.err == nil {
			var next int64
			if next, a.err = c.askStep(ctx, &a); next == a.next {
				break
			}
			a.next = next
		}
		return a
	})
}

// askStep reads once from a.next and returns where to go on; the same offset means the end.
func (c *cluster) askStep(ctx context.Context, a *asked) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.client.Broker(int(a.leader)).Request(ctx, fetchFrom(a.p.target, a.id, a.next))
	if err != nil {
		return a.next, err
	}
	fetched := resp.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(fetched.ErrorCode); err != nil {
		return a.next, err
	}
	if len(fetched.Topics) != 1 || len(fetched.Topics[0].Partitions) != 1 {
		return a.next, errors.New("fetch answered without the partition asked for")
	}
	fp := &fetched.Topics[0].Partitions[0]
	err = kerr.ErrorForCode(fp.ErrorCode)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return c.askFromStart(ctx, a)
	}
	if err != nil {
		return a.next, err
	}
	from := a.next
	for data := fp.RecordBatches; ; {
		b, rest, err := record.Next(data)
		if err != nil {
			return from, nil // the usual cut at the end of an answer; an answer without one whole batch is the end
		}
		if a.producers[b.ProducerID()] && b.BaseSequence() >= 0 && !b.IsControl() {
			a.found, a.producer, a.epoch, a.end = true, b.ProducerID(), b.ProducerEpoch(), b.NextOffset()
			a.sequence = addSequence(b.BaseSequence(), b.LastOffsetDelta())
		}
		from, data = b.NextOffset(), rest
	}
}

// askFromStart returns where the log begins, which no longer holds a.next. Kafka does not say so in its answer to the fetch.
func (c *cluster) askFromStart(ctx context.Context, a *asked) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = a.p.Topic
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp, rp.CurrentLeaderEpoch = a.p.Partition, -2, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := c.client.Broker(int(a.leader)).Request(ctx, req)
	if err != nil {
		return a.next, err
	}
	listed := resp.(*kmsg.ListOffsetsResponse)
	if len(listed.Topics) != 1 || len(listed.Topics[0].Partitions) != 1 {
		return a.next, errors.New("the list of offsets came without the partition asked for")
	}
	p := listed.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		return a.next, err
	}
	if p.Offset == a.next {
		return a.next, kerr.OffsetOutOfRange // and in range: the log changed in between, try again
	}
	a.eaten = a.next < p.Offset
	return p.Offset, nil
}

func fetchFrom(t target, id [16]byte, offset int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 0, 0, askBytesMax, -1
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = t.Topic, id
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch = t.Partition, offset, askBytesMax, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}
