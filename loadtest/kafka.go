package loadtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Kafka says where a load goes and what its topic is like.
type Kafka struct {
	Brokers           []string
	Topic             string
	Partitions        int32     // of a topic that has to be created; -1 = the cluster's default
	ReplicationFactor int16     // likewise
	Options           []kgo.Opt // stand above those of the load
}

func (k Kafka) client(opts ...kgo.Opt) (*kgo.Client, error) {
	all := append([]kgo.Opt{kgo.SeedBrokers(k.Brokers...), kgo.ClientID("loadtest"), kgo.MetadataMinAge(100 * time.Millisecond)}, opts...)
	c, err := kgo.NewClient(append(all, k.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	return c, nil
}

// ensure creates the topic when it is not there.
func (k Kafka) ensure(ctx context.Context, c *kgo.Client) error {
	return created(ctx, c, k.Partitions, k.ReplicationFactor, nil, k.Topic)
}

// Produce is a load of records.
type Produce struct {
	Kafka
	Size        int // bytes of a value
	Records     int64
	Duration    time.Duration
	Rate        float64 // records a second; 0 = as many as a bounded window allows
	Acks        string  // all, 1 or 0
	Idempotent  bool
	Compression string // none, gzip, snappy, lz4 or zstd
	Linger      time.Duration
	BatchBytes  int32
	Random      bool  // values that do not compress; else text that does
	Keys        int64 // records have one of so many keys, in no order; 0 = none, and the partitions take turns
	Progress    io.Writer
}

// windowRecords bounds the records under way when there is no rate.
const windowRecords = 20000

func (p Produce) options() ([]kgo.Opt, error) {
	opts := []kgo.Opt{kgo.ProducerLinger(p.Linger), kgo.MaxBufferedRecords(windowRecords), kgo.ProducerBatchMaxBytes(p.BatchBytes)}
	if p.Keys > 0 {
		opts = append(opts, kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	} else {
		opts = append(opts, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	}
	switch p.Acks {
	case "all", "-1":
		opts = append(opts, kgo.RequiredAcks(kgo.AllISRAcks()))
	case "1":
		opts = append(opts, kgo.RequiredAcks(kgo.LeaderAck()))
	case "0":
		opts = append(opts, kgo.RequiredAcks(kgo.NoAck()))
	default:
		return nil, fmt.Errorf("acks %q: all, 1 or 0 are possible", p.Acks)
	}
	if !p.Idempotent || p.Acks == "0" || p.Acks == "1" {
		opts = append(opts, kgo.DisableIdempotentWrite())
	}
	codecs := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	codec, ok := codecs[p.Compression]
	if !ok {
		return nil, fmt.Errorf("compression %q: none, gzip, snappy, lz4 or zstd are possible", p.Compression)
	}
	return append(opts, kgo.ProducerBatchCompression(codec)), nil
}

// Run produces until the count, the duration or ctx ends, and waits for what is under way.
func (p Produce) Run(ctx context.Context) (Result, error) {
	opts, err := p.options()
	if err != nil {
		return Result{}, err
	}
	c, err := p.client(opts...)
	if err != nil {
		return Result{}, err
	}
	defer c.Close()
	if err := p.ensure(ctx, c); err != nil {
		return Result{}, err
	}
	s, err := newSchedule(p.Rate, p.Records, p.Duration)
	if err != nil {
		return Result{}, err
	}
	m := NewMeter()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go m.Progress(watch, p.Progress)
	value := p.value()
	for {
		at, n, ok := s.take(ctx)
		if !ok {
			break
		}
		c.Produce(ctx, &kgo.Record{Topic: p.Topic, Key: p.key(n), Value: value(n)}, func(r *kgo.Record, err error) {
			if err != nil {
				m.Failed(err)
				return
			}
			m.Done(int(n), at, len(r.Value))
		})
	}
	if err := c.Flush(ctx); err != nil && ctx.Err() == nil {
		return Result{}, fmt.Errorf("flush: %w", err)
	}
	return m.Result("produce", p.Rate, map[string]string{"topic": p.Topic, "bytes": fmt.Sprint(p.Size), "acks": p.Acks, "compression": p.Compression,
		"idempotent": fmt.Sprint(p.Idempotent), "keys": fmt.Sprint(p.Keys), "linger": p.Linger.String()}), nil
}

// value returns the values of the load: slices of one block, so that making them costs nothing.
func (p Produce) value() func(n int64) []byte {
	block := make([]byte, p.Size+4096)
	if p.Random {
		r := rand.NewChaCha8([32]byte{1})
		_, _ = r.Read(block) // never fails
	} else {
		copy(block, strings.Repeat(`{"device":"sensor-4711","value":21.5,"unit":"Cel"} `, len(block)/50+1))
	}
	return func(n int64) []byte { from := int(n*31) & 4095; return block[from : from+p.Size] }
}

// key returns the key of record n: the same for the same n in every run.
func (p Produce) key(n int64) []byte {
	if p.Keys <= 0 {
		return nil
	}
	r := rand.NewPCG(uint64(n), 0)
	return strconv.AppendUint([]byte("key-"), r.Uint64()%uint64(p.Keys), 10)
}

// Consume is a load of reads, from the beginning of a topic.
type Consume struct {
	Kafka
	Records  int64 // stops after so many; 0 = at what was the end when it began, unless there is a duration
	Duration time.Duration
	Group    string // "" = without a group
	Progress io.Writer
}

// Run reads until the count, the duration or the end is reached. An operation is a record; there are no latencies.
func (c Consume) Run(ctx context.Context) (Result, error) {
	if c.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Duration)
		defer cancel()
	}
	opts := []kgo.Opt{kgo.ConsumeTopics(c.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxBytes(50 << 20), kgo.FetchMaxPartitionBytes(4 << 20),
		kgo.KeepControlRecords()} // the last record of a partition may be one
	if c.Group != "" {
		opts = append(opts, kgo.ConsumerGroup(c.Group))
	}
	client, err := c.client(opts...)
	if err != nil {
		return Result{}, err
	}
	defer client.Close()
	var left unread
	if c.Records == 0 && c.Duration == 0 {
		if left, err = c.unread(ctx, client); err != nil {
			return Result{}, err
		}
	}
	m := NewMeter()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go m.Progress(watch, c.Progress)
	for (left == nil || len(left) > 0) && (c.Records == 0 || m.ops.Load() < c.Records) && ctx.Err() == nil {
		fetches := c.poll(ctx, client, left)
		fetches.EachError(func(_ string, _ int32, err error) {
			if ctx.Err() == nil && !errors.Is(err, errQuiet) {
				m.Failed(err)
			}
		})
		if fetches.Empty() && c.shares(left) && ctx.Err() == nil {
			if err := c.others(ctx, client, left); err != nil {
				return Result{}, err
			}
		}
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) {
			left.seen(r)
			if !r.Attrs.IsControl() {
				m.Done(int(r.Partition), now, len(r.Value))
			}
		})
	}
	if c.Group != "" && ctx.Err() == nil {
		if err := client.CommitUncommittedOffsets(ctx); err != nil { // the client itself commits when it is asked for more
			return Result{}, fmt.Errorf("commit offsets of %s: %w", c.Group, err)
		}
	}
	r := m.Result("consume", 0, map[string]string{"topic": c.Topic, "group": c.Group})
	r.LatencyMs = nil
	return r, nil
}

// othersEvery is after how long without records a member of a group looks at what the others have read.
const othersEvery = time.Second

// errQuiet is why a poll ended without records.
var errQuiet = errors.New("no records for a while")

// shares tells whether partitions that have to be read may be read by others.
func (c Consume) shares(left unread) bool { return c.Group != "" && left != nil }

// poll waits for records; a member of a group that has to come to an end, for a while only.
func (c Consume) poll(ctx context.Context, client *kgo.Client, left unread) kgo.Fetches {
	if !c.shares(left) {
		return client.PollFetches(ctx)
	}
	poll, cancel := context.WithTimeoutCause(ctx, othersEvery, errQuiet)
	defer cancel()
	fetches := client.PollFetches(poll)
	if poll.Err() != nil && fetches.Empty() {
		return kgo.NewErrFetch(context.Cause(poll))
	}
	return fetches
}

// others forgets the partitions that the group has read to their ends, whoever of its members has.
func (c Consume) others(ctx context.Context, client *kgo.Client, left unread) error {
	committed, err := c.committed(ctx, client)
	if err != nil {
		return err
	}
	committed.Each(func(at kadm.OffsetResponse) {
		if end, ok := left[at.Partition]; ok && at.At >= end {
			delete(left, at.Partition)
		}
	})
	return nil
}

// unread are the ends of the partitions that have to be read to. Their records cannot be counted: compaction leaves gaps.
type unread map[int32]int64

// unread returns the ends of the topic as they are now, without the partitions in which there is nothing to read for the group, if there is one.
func (c Consume) unread(ctx context.Context, client *kgo.Client) (unread, error) {
	starts, ends, err := bounds(ctx, client, c.Topic)
	if err != nil {
		return nil, err
	}
	var committed kadm.OffsetResponses
	if c.Group != "" {
		if committed, err = c.committed(ctx, client); err != nil {
			return nil, err
		}
	}
	left := unread{}
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(c.Topic, end.Partition)
		at, _ := committed.Lookup(c.Topic, end.Partition) // -1 where nothing was committed
		if end.Offset > max(start.Offset, at.At) {
			left[end.Partition] = end.Offset
		}
	})
	return left, nil
}

// committed asks what the group has read.
func (c Consume) committed(ctx context.Context, client *kgo.Client) (committed kadm.OffsetResponses, err error) {
	err = patiently(ctx, "committed offsets of "+c.Group, func() (err error) {
		committed, err = kadm.NewClient(client).FetchOffsetsForTopics(ctx, c.Group, c.Topic)
		if errors.Is(err, kerr.GroupIDNotFound) {
			return nil // the client has not joined yet, and nobody has before: nothing is committed
		}
		return err
	})
	return committed, err
}

func (u unread) seen(r *kgo.Record) {
	if end, ok := u[r.Partition]; ok && r.Offset+1 >= end {
		delete(u, r.Partition)
	}
}

// workers runs n of fn and waits; the first error ends the others' context.
func workers(ctx context.Context, n int, fn func(ctx context.Context, worker int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := fn(ctx, i); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
