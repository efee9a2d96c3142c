package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// reassign begins a move of one partition; no replicas cancel it.
func (c *testCluster) reassign(topic string, partition int32, replicas ...int32) error {
	c.t.Helper()
	var req kadm.AlterPartitionAssignmentsReq
	if len(replicas) == 0 {
		req.CancelAssign(topic, partition)
	} else {
		req.Assign(topic, partition, replicas)
	}
	r, err := c.admin().AlterPartitionAssignments(testContext(c.t), req)
	if err == nil {
		err = r.Error()
	}
	return err
}

// moved waits until a partition has its replicas there.
func (c *testCluster) moved(topic string, partition int32, replicas ...int32) {
	c.t.Helper()
	cl := c.client()
	adm := kadm.NewClient(cl)
	c.await(fmt.Sprintf("%s-%d on %v", topic, partition, replicas), func() bool {
		var set kadm.TopicsSet
		set.Add(topic, partition)
		list, err := adm.ListPartitionReassignments(testContext(c.t), set)
		if err != nil || len(list[topic]) > 0 {
			return false
		}
		req := kmsg.NewPtrMetadataRequest() // kadm may answer from its cache
		req.Topics = append(req.Topics, kmsg.MetadataRequestTopic{Topic: &topic})
		m, err := req.RequestWith(testContext(c.t), cl)
		return err == nil && slices.Equal(m.Topics[0].Partitions[partition].Replicas, replicas)
	})
}

// load produces numbered records to one partition, waits for each of some, and checks at the end that each acknowledged one is read once and in order.
type load struct {
	c         *testCluster
	topic     string
	cancel    context.CancelFunc
	done      sync.WaitGroup
	acked     atomic.Int64
	mu        sync.Mutex
	offsets   map[int]int64
	longest   time.Duration
	lastAcked time.Time
}

func (c *testCluster) load(topic string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{c: c, topic: topic, cancel: cancel, offsets: make(map[int]int64), lastAcked: time.Now()}
	cl := c.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(200), kgo.RecordDeliveryTimeout(testTimeout),
		kgo.ProducerLinger(time.Millisecond), kgo.MetadataMinAge(10*time.Millisecond), kgo.UnknownTopicRetries(-1))
	l.done.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			r := &kgo.Record{Topic: topic, Partition: 0, Value: []byte(strconv.Itoa(n))}
			cl.Produce(context.Background(), r, func(r *kgo.Record, err error) { l.answered(n, r, err) })
			if n%20 == 0 {
				<-time.After(time.Millisecond)
			}
		}
		if err := cl.Flush(testContext(c.t)); err != nil {
			c.t.Errorf("flush: %v", err)
		}
	})
	c.t.Cleanup(func() { cancel(); l.done.Wait() })
	return l
}

func (l *load) answered(n int, r *kgo.Record, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.c.t.Errorf("record %d: %v", n, err)
		return
	}
	l.offsets[n] = r.Offset
	l.longest = max(l.longest, time.Since(l.lastAcked))
	l.lastAcked = time.Now()
	l.acked.Add(1)
}

// more waits until some more records are acknowledged.
func (l *load) more(n int64) {
	l.c.t.Helper()
	until := l.acked.Load() + n
	l.c.await("acknowledged records", func() bool { return l.acked.Load() >= until })
}

// stop ends the load and reads everything back.
func (l *load) stop() {
	l.c.t.Helper()
	l.cancel()
	l.done.Wait()
	l.c.t.Logf("%d records, longest pause %v", len(l.offsets), l.longest)
	cl := l.c.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.topic: {0: kgo.NewOffset().AtStart()}}))
	for next := 0; next < len(l.offsets); {
		fetches := cl.PollFetches(testContext(l.c.t))
		if err := fetches.Err0(); err != nil {
			l.c.t.Fatalf("read after %d records: %v", next, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if n, err := strconv.Atoi(string(r.Value)); err != nil || n != next || l.offsets[n] != r.Offset {
				l.c.t.Fatalf("record %q at %d, expected %d at %d", r.Value, r.Offset, next, l.offsets[next])
			}
			next++
		})
	}
}

func TestMovesUnderLoad(t *testing.T) {
	c := startCluster(t, 3)
	c.create("t", 1, map[string]string{"segment.bytes": "1048576"})
	l := c.load("t")
	for _, replicas := range [][]int32{{2}, {1, 2, 3}, {3, 1}, {1, 3}, {2, 3, 1}, {3}, {1}} {
		l.more(500)
		began := time.Now()
		if err := c.reassign("t", 0, replicas...); err != nil {
			t.Fatal(err)
		}
		c.moved("t", 0, replicas...)
		t.Logf("moved to %v in %v", replicas, time.Since(began))
	}
	l.more(500)
	l.stop()
}

func TestReassignmentsAreChecked(t *testing.T) {
	c := startCluster(t, 3)
	c.create("t", 2, nil)
	for _, test := range []struct {
		name      string
		partition int32
		replicas  []int32
		want      error
	}{
		{"unknown partition", 7, []int32{1}, kerr.UnknownTopicOrPartition},
		{"unknown broker", 0, []int32{1, 9}, kerr.InvalidReplicaAssignment},
		{"twice the same", 0, []int32{1, 1}, kerr.InvalidReplicaAssignment},
		{"nothing to cancel", 0, nil, kerr.NoReassignmentInProgress},
	} {
		if err := c.reassign("t", test.partition, test.replicas...); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, expected %v", test.name, err, test.want)
		}
	}
	if err := c.reassign("other", 0, 1); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("unknown topic: %v", err)
	}
	req := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	req.AllowReplicationFactorChange = false
	req.Topics = []kmsg.AlterPartitionAssignmentsRequestTopic{{Topic: "t", Partitions: []kmsg.AlterPartitionAssignmentsRequestTopicPartition{
		{Partition: 0, Replicas: []int32{}}, {Partition: 1, Replicas: []int32{1}},
	}}}
	resp, err := req.RequestWith(testContext(t), c.client())
	if err != nil {
		t.Fatal(err)
	}
	codes := []int16{resp.Topics[0].Partitions[0].ErrorCode, resp.Topics[0].Partitions[1].ErrorCode}
	if resp.AllowReplicationFactorChange || !slices.Equal(codes, []int16{kerr.InvalidReplicaAssignment.Code, kerr.InvalidReplicationFactor.Code}) {
		t.Errorf("empty list and another factor without leave: %+v", resp)
	}
}
