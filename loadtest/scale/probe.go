package scale

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// probeChunk partitions go into one request of a probe: as many as a client's request would carry.
	probeChunk = 1000
	// probeRequest bounds one request of a probe; what it did not answer is asked again.
	probeRequest = 3 * time.Second
	// probeEvery separates the rounds of a probe.
	probeEvery = 20 * time.Millisecond
	// usableWithin bounds a probe as a whole.
	usableWithin = 3 * time.Minute
)

// part is one partition as a probe sees it.
type part struct {
	topic  string
	id     [16]byte
	index  int32
	leader int32
}

// view is what one node's Metadata says of the run's topics.
type view struct {
	controller int32
	parts      []part
	led        bool // each partition has a leader that is not the dead node
}

// cluster is the Kafka side of the run.
type cluster struct {
	client *kgo.Client
}

func newCluster(brokers []string) (*cluster, error) {
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ClientID("loadtest-scale"), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.RequestRetries(2), kgo.BrokerMaxReadBytes(1<<28), kgo.ConnIdleTimeout(5*time.Minute), kgo.DialTimeout(probeRequest))
	if err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	return &cluster{client: c}, nil
}

func (c *cluster) close() { c.client.Close() }

// metadata asks one node for the topics, all when none are named. dead is a node that counts as no leader; 0 is none.
func (c *cluster) metadata(ctx context.Context, b *kgo.Broker, topics []string, dead int32) (view, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, t := range topics {
		one := kmsg.NewMetadataRequestTopic()
		one.Topic = kmsg.StringPtr(t)
		req.Topics = append(req.Topics, one)
	}
	ctx, cancel := context.WithTimeout(ctx, probeRequest)
	defer cancel()
	answer, err := b.Request(ctx, req)
	if err != nil {
		return view{}, fmt.Errorf("ask for metadata: %w", err)
	}
	resp := answer.(*kmsg.MetadataResponse)
	v := view{controller: resp.ControllerID, led: true}
	for i := range resp.Topics {
		t := &resp.Topics[i]
		if t.Topic == nil || t.IsInternal || t.ErrorCode != 0 || len(t.Partitions) == 0 {
			v.led = false
			continue
		}
		for _, p := range t.Partitions {
			v.parts = append(v.parts, part{topic: *t.Topic, id: t.TopicID, index: p.Partition, leader: p.Leader})
			v.led = v.led && p.Leader > 0 && p.Leader != dead
		}
	}
	return v, nil
}

// awaitLed waits until each of the nodes names a live leader for each of the wanted number of partitions of the topics.
func (c *cluster) awaitLed(ctx context.Context, nodes []*node, topics []string, want int, dead int32) error {
	ctx, cancel := context.WithTimeout(ctx, usableWithin)
	defer cancel()
	for _, n := range nodes {
		if int32(n.id) == dead {
			continue
		}
		for {
			v, err := c.metadata(ctx, c.broker(n), topics, dead)
			if err == nil && v.led && len(v.parts) == want {
				break
			}
			if !pause(ctx, probeEvery) {
				return fmt.Errorf("node %d names leaders for %d of %d partitions (%v): %w", n.id, len(v.parts), want, err, ctx.Err())
			}
		}
	}
	return nil
}

func (c *cluster) broker(n *node) *kgo.Broker { return c.client.Broker(n.id) }

// use writes one record to each partition and reads it back, again and again until all have succeeded. It returns when the last
// one was led by its node's word and used.
func (c *cluster) use(ctx context.Context, nodes []*node, topics []string, want int, dead int32) error {
	ctx, cancel := context.WithTimeout(ctx, usableWithin)
	defer cancel()
	p := &probe{c: c, written: make(map[partKey]int64), read: make(map[partKey]bool)}
	for turn := 0; ; turn++ {
		alive := slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return int32(n.id) == dead })
		v, err := c.metadata(ctx, c.broker(alive[turn%len(alive)]), topics, dead)
		if err == nil {
			err = p.round(ctx, v.parts, dead)
		}
		if len(p.read) == want {
			return nil
		}
		if !pause(ctx, probeEvery) {
			return fmt.Errorf("%d of %d partitions were written and %d read: %w", len(p.written), want, len(p.read), errors.Join(err, p.failed()))
		}
	}
}

type partKey struct {
	topic string
	index int32
}

// probe is one write and one read of every partition.
type probe struct {
	c  *cluster
	mu sync.Mutex
	// written are the offsets of the records that were acknowledged, read the partitions whose record came back.
	written map[partKey]int64
	read    map[partKey]bool
	last    error // of a partition
}

func (p *probe) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

func (p *probe) fail(code int16, err error) {
	if err == nil {
		err = kerr.ErrorForCode(code)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = err
}

// round asks every leader once for what is still open.
func (p *probe) round(ctx context.Context, parts []part, dead int32) error {
	open := make(map[int32][]part)
	for _, x := range parts {
		if k := (partKey{x.topic, x.index}); !p.read[k] && x.leader > 0 && x.leader != dead {
			open[x.leader] = append(open[x.leader], x)
		}
	}
	var wg sync.WaitGroup
	for leader, list := range open {
		for chunk := range slices.Chunk(list, probeChunk) {
			wg.Go(func() { p.chunk(ctx, leader, chunk) })
		}
	}
	wg.Wait()
	return ctx.Err()
}

// chunk writes to those that were not written to yet, and reads all.
func (p *probe) chunk(ctx context.Context, leader int32, parts []part) {
	ctx, cancel := context.WithTimeout(ctx, probeRequest)
	defer cancel()
	b := p.c.client.Broker(int(leader))
	p.mu.Lock()
	write := slices.DeleteFunc(slices.Clone(parts), func(x part) bool { _, ok := p.written[partKey{x.topic, x.index}]; return ok })
	p.mu.Unlock()
	if len(write) > 0 {
		p.produce(ctx, b, write)
	}
	p.fetch(ctx, b, parts)
}

// byTopic calls for each run of partitions of one topic; parts come by topic.
func byTopic(parts []part, each func(topic string, id [16]byte, parts []part)) {
	for len(parts) > 0 {
		n := 1
		for n < len(parts) && parts[n].topic == parts[0].topic {
			n++
		}
		each(parts[0].topic, parts[0].id, parts[:n])
		parts = parts[n:]
	}
}

func (p *probe) produce(ctx context.Context, b *kgo.Broker, parts []part) {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, int32(probeRequest/time.Millisecond)
	names := make(map[[16]byte]string)
	batch := oneRecord(time.Now())
	byTopic(parts, func(topic string, id [16]byte, parts []part) {
		names[id] = topic
		t := kmsg.NewProduceRequestTopic()
		t.Topic, t.TopicID = topic, id
		for _, x := range parts {
			one := kmsg.NewProduceRequestTopicPartition()
			one.Partition, one.Records = x.index, batch
			t.Partitions = append(t.Partitions, one)
		}
		req.Topics = append(req.Topics, t)
	})
	answer, err := b.Request(ctx, req)
	if err != nil {
		p.fail(0, err)
		return
	}
	for _, t := range answer.(*kmsg.ProduceResponse).Topics {
		topic := t.Topic
		if topic == "" {
			topic = names[t.TopicID]
		}
		for _, x := range t.Partitions {
			if x.ErrorCode != 0 {
				p.fail(x.ErrorCode, nil)
				continue
			}
			p.mu.Lock()
			p.written[partKey{topic, x.Partition}] = x.BaseOffset
			p.mu.Unlock()
		}
	}
}

func (p *probe) fetch(ctx context.Context, b *kgo.Broker, parts []part) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 0, 0, 1<<26, -1
	names := make(map[[16]byte]string)
	asked := 0
	byTopic(parts, func(topic string, id [16]byte, parts []part) {
		names[id] = topic
		t := kmsg.NewFetchRequestTopic()
		t.Topic, t.TopicID = topic, id
		for _, x := range parts {
			p.mu.Lock()
			offset, ok := p.written[partKey{topic, x.index}]
			p.mu.Unlock()
			if !ok {
				continue
			}
			one := kmsg.NewFetchRequestTopicPartition()
			one.Partition, one.FetchOffset, one.CurrentLeaderEpoch, one.PartitionMaxBytes = x.index, offset, -1, 4096
			t.Partitions = append(t.Partitions, one)
			asked++
		}
		if len(t.Partitions) > 0 {
			req.Topics = append(req.Topics, t)
		}
	})
	if asked == 0 {
		return
	}
	answer, err := b.Request(ctx, req)
	if err != nil {
		p.fail(0, err)
		return
	}
	for _, t := range answer.(*kmsg.FetchResponse).Topics {
		topic := t.Topic
		if topic == "" {
			topic = names[t.TopicID]
		}
		for _, x := range t.Partitions {
			if x.ErrorCode != 0 {
				p.fail(x.ErrorCode, nil)
				continue
			}
			if len(x.RecordBatches) > 0 {
				p.mu.Lock()
				p.read[partKey{topic, x.Partition}] = true
				p.mu.Unlock()
			}
		}
	}
}

// oneRecord is a record batch (format 2) of one record without a key.
func oneRecord(at time.Time) []byte {
	value := []byte("probe")
	body := []byte{0, 0, 0, 1} // attributes, timestamp delta, offset delta, no key (-1 zigzag)
	body = binary.AppendVarint(body, int64(len(value)))
	body = append(body, value...)
	body = append(body, 0) // no headers
	record := append(binary.AppendVarint(nil, int64(len(body))), body...)
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, FirstTimestamp: at.UnixMilli(), MaxTimestamp: at.UnixMilli(),
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: 1, Records: record,
	}
	const afterLength, crcAt, crcEnd = 12, 17, 21
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-afterLength))
	binary.BigEndian.PutUint32(raw[crcAt:], crc32.Checksum(raw[crcEnd:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// pause waits, or returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
