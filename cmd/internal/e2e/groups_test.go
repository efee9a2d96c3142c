//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A group that is at work while nodes are killed, its coordinators among them: every record is delivered, and committed offsets never go back.
func TestGroupsSurviveKills(t *testing.T) {
	c := startCluster(t, t.TempDir())
	const topic, group, partitions = "work", "workers", 6
	producer := newClient(t, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	createTopic(t, kadm.NewClient(producer), partitions, topic)
	seen := &deliveries{values: map[string]int{}, changed: make(chan struct{}, 1)}
	working, stopWork := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range 3 {
		member := newClient(t, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.AutoCommitInterval(300*time.Millisecond), kgo.SessionTimeout(10*time.Second))
		all.Go(func() { seen.consume(working, member) })
	}
	watched := make(chan string, 1)
	all.Go(func() { watched <- watchCommits(working, group) })
	var produced int
	done := make(chan error, 1)
	producing, stopProducing := context.WithCancel(context.Background())
	defer stopProducing()
	go func() {
		var err error
		produced, err = produceSteadily(producing, producer, topic)
		done <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), faultTime)
	defer cancel()
	kills := c.storm(ctx, []string{"core-1", "core-2", "core-3"}, func(kills int) bool { return kills >= killsMin })
	stopProducing()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	seen.until(t, produced)
	stopWork()
	all.Wait()
	if back := <-watched; back != "" {
		t.Error(back)
	}
	t.Logf("%d kills, %d records, %d delivered more than once", kills, produced, seen.again())
	if kills < killsMin || produced < 1000 {
		t.Errorf("%d kills, %d records: the test has not tested much", kills, produced)
	}
}

func newClient(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(100 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// deliveries counts how often each value came.
type deliveries struct {
	mu      sync.Mutex
	values  map[string]int
	changed chan struct{}
}

func (d *deliveries) consume(ctx context.Context, member *kgo.Client) {
	for ctx.Err() == nil {
		member.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			d.mu.Lock()
			d.values[string(r.Value)]++
			d.mu.Unlock()
			select {
			case d.changed <- struct{}{}:
			default:
			}
		})
	}
}

func (d *deliveries) until(t *testing.T, n int) {
	t.Helper()
	late := time.After(patience)
	for {
		d.mu.Lock()
		have := len(d.values)
		d.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-d.changed:
		case <-late:
			t.Fatalf("%d of %d records were delivered", have, n)
		}
	}
}

func (d *deliveries) again() (n int) {
	for _, times := range d.values {
		if times > 1 {
			n++
		}
	}
	return n
}

func produceSteadily(ctx context.Context, c *kgo.Client, topic string) (n int, err error) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	var first error
	var mu sync.Mutex
	for ; ctx.Err() == nil; n++ {
		c.Produce(context.Background(), &kgo.Record{Topic: topic, Value: fmt.Append(nil, n)}, func(_ *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
			}
		})
		<-ticker.C
	}
	flush, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Flush(flush); err != nil {
		return n, err
	}
	mu.Lock()
	defer mu.Unlock()
	return n, first
}

// watchCommits asks for the group's offsets again and again, and says when one is below what was answered before.
func watchCommits(ctx context.Context, group string) string {
	highest := map[int32]int64{}
	for ctx.Err() == nil {
		client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RetryTimeout(3*time.Second)) // a new one each time: kadm keeps asking a coordinator that is gone
		if err != nil {
			return err.Error()
		}
		offsets, err := kadm.NewClient(client).FetchOffsets(ctx, group)
		client.Close()
		if err == nil {
			for _, o := range offsets.Sorted() {
				if o.Err == nil && o.At < highest[o.Partition] {
					return fmt.Sprintf("partition %d: committed offset %d after %d", o.Partition, o.At, highest[o.Partition])
				}
				highest[o.Partition] = max(highest[o.Partition], o.At)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	if len(highest) == 0 {
		return "no committed offset was ever seen"
	}
	return ""
}
