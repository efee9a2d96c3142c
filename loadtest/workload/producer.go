package workload

import (
	"context"
	"fmt"

	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

const (
	// produceTimeout is how long a broker may take to replicate; with RequestTimeout it is how long a silent broker holds its partitions up.
	produceTimeout = 500 * time.Millisecond
	// bufferedMax bounds what a writer holds back while partitions are not available: minutes at the usual rates, so that one partition's
	// silence does not silence the others.
	bufferedMax = 20_000
	// keysPerPartition makes several keys share a partition.
	keysPerPartition = 2
)

// producer writes numbered records to all partitions in turn. It never gives a record up.
type producer struct {
	s      *Set
	writer *history.Writer
	client *kgo.Client
	every  time.Duration
}

func (s *Set) newProducer(i int) (*producer, error) {
	client, err := s.c.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(time.Millisecond), kgo.MaxBufferedRecords(bufferedMax),
		kgo.ProduceRequestTimeout(produceTimeout), kgo.RecordRetries(1<<30))
	if err != nil {
		return nil, err
	}
	w := s.c.History.Writer(fmt.Sprintf("%s-w%d", s.c.Prefix, i), s.topic)
	return &producer{s: s, writer: w, client: client, every: time.Duration(float64(time.Second) * float64(s.c.Writers) / s.c.Rate)}, nil
}

func (p *producer) Name() string { return "producer " + p.writer.Name() }

// Run sends at an even rate. What could not be sent in time is sent as soon as there is room.
func (p *producer) Run(ctx context.Context) error {
	for due := time.Now(); ctx.Err() == nil; due = due.Add(p.every) {
		if early := time.Until(due); early > 0 {
			if sleep(ctx, early) != nil {
				return nil
			}
		}
		p.send()
	}
	return nil
}

// send produces one record. Its context is the client's life: the end of a run is no reason to give a record up.
func (p *producer) send() {
	n := p.writer.Next()
	key := n % int64(p.s.c.Partitions*keysPerPartition)
	r := &kgo.Record{
		Topic: p.s.topic.Name(), Partition: int32(key) % p.s.c.Partitions,
		Key: fmt.Appendf(nil, "%s-k%d", p.writer.Name(), key), Value: value(p.writer.Name(), n, p.s.c.Size),
	}
	p.writer.Send(r.Partition, history.Sum(r.Key, r.Value))
	p.s.stats.Sent.Add(1)
	p.client.Produce(context.Background(), r, func(r *kgo.Record, err error) {
		if err != nil {
			p.writer.Failed(n)
			p.s.stats.Errors.Add(1)
			p.s.c.Logger.Warn("record given up", "writer", p.writer.Name(), "number", n, "error", err)
			return
		}
		p.writer.Acked(n, r.Partition, r.Offset)
		p.s.stats.Acked.Add(1)
	})
}

// Finish waits for the last acknowledgements. What is missing then is not acknowledged, and may be there or not.
func (p *producer) Finish(ctx context.Context) error {
	err := p.client.Flush(ctx)
	p.client.Close()
	if err != nil {
		return fmt.Errorf("acknowledgements are missing: %w", err)
	}
	return nil
}
