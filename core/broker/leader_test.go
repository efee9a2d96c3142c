package broker

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestLeadersStopUnderLoad stops and starts each node in turn while an idempotent producer writes: every acknowledged record is read once, in order,
// and nothing else.
func TestLeadersStopUnderLoad(t *testing.T) {
	c := startCluster(t, 3)
	c.create("load", 3, nil)
	ctx := testContext(t)
	produceCtx, stopProducing := context.WithCancel(ctx)
	defer stopProducing()
	var sent atomic.Int64
	failed := make(chan error, 1)
	done := make(chan int64, 1)
	go func() {
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.bootstrap()...), kgo.DefaultProduceTopic("load"), kgo.RecordPartitioner(kgo.ManualPartitioner()),
			kgo.MetadataMinAge(50*time.Millisecond))
		if err != nil {
			failed <- err
			return
		}
		defer cl.Close()
		n := int64(0)
		for ; produceCtx.Err() == nil; n++ {
			r := kgo.StringRecord(fmt.Sprint(n))
			r.Partition = int32(n % 3)
			cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
				if err != nil {
					select {
					case failed <- err:
					default:
					}
				}
				sent.Add(1)
			})
			for sent.Load() < n-100 && produceCtx.Err() == nil { // a bounded lead over what is acknowledged
				if err := cl.Flush(ctx); err != nil {
					break
				}
			}
		}
		if err := cl.Flush(ctx); err != nil {
			failed <- err
			return
		}
		done <- n
	}()
	for _, n := range c.nodes {
		before := sent.Load()
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		c.await("records while a node is down", func() bool { return sent.Load() > before+300 })
		n.start()
		before = sent.Load()
		c.await("records after it is back", func() bool { return sent.Load() > before+300 })
	}
	stopProducing()
	select {
	case err := <-failed:
		t.Fatalf("produce: %v", err)
	case n := <-done:
		t.Logf("%d records", n)
		readNumbers(ctx, t, c, "load", n)
	}
}

// readNumbers reads a topic of three partitions that holds the numbers below n, each in partition n mod 3, in order.
func readNumbers(ctx context.Context, t *testing.T, c *testCluster, topic string, n int64) {
	t.Helper()
	cl := c.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	next := map[int32]int64{0: 0, 1: 1, 2: 2}
	for seen := int64(0); seen < n; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("consume after %d of %d: %v", seen, n, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if want := fmt.Sprint(next[r.Partition]); string(r.Value) != want {
				t.Fatalf("partition %d offset %d has %s, want %s", r.Partition, r.Offset, r.Value, want)
			}
			next[r.Partition] += 3
			seen++
		})
	}
}
