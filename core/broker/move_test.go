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
	ctx, adm := testContext(c.t), c.admin()
	for {
		r, err := adm.AlterPartitionAssignments(ctx, req)
		if err == nil {
			err = r.Error()
		}
		if !errors.Is(err, kerr.RequestTimedOut) || ctx.Err() != nil {
			return err
		}
	}
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
		if err != nil || len(m.Topics[0].Partitions) <= int(partition) {
			return false
		}
		return slices.Equal(m.Topics[0].Partitions[partition].Replicas, replicas)
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
	beside(t)
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

// throttle sets how many bytes a second are copied for moves; empty takes the setting away.
func (c *testCluster) throttle(rate string) {
	c.t.Helper()
	var changes []kadm.AlterConfig
	for _, name := range []string{"leader.replication.throttled.rate", "follower.replication.throttled.rate"} {
		change := kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &rate}
		if rate == "" {
			change = kadm.AlterConfig{Op: kadm.DeleteConfig, Name: name}
		}
		changes = append(changes, change)
	}
	r, err := c.admin().AlterBrokerConfigs(testContext(c.t), changes)
	if err == nil {
		_, err = r.On("", nil)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// listed returns what ListPartitionReassignments says of a partition.
func (c *testCluster) listed(topic string, partition int32) (r kadm.ListPartitionReassignmentsResponse, ok bool) {
	c.t.Helper()
	var set kadm.TopicsSet
	set.Add(topic, partition)
	list, err := c.admin().ListPartitionReassignments(testContext(c.t), set)
	if err != nil {
		c.t.Fatal(err)
	}
	r, ok = list[topic][partition]
	return r, ok
}

// TestMoveIsHeldBackAndCancelled: a move that is throttled is seen to be under way, can be cancelled, and goes on once it may.
func TestMoveIsHeldBackAndCancelled(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	if err := c.createOn("t", []int32{1}); err != nil {
		t.Fatal(err)
	}
	cl := c.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for range 20 {
		r := &kgo.Record{Topic: "t", Value: make([]byte, 100_000)}
		if err := cl.ProduceSync(testContext(t), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	c.throttle("20000")
	if err := c.reassign("t", 0, 2, 3); err != nil {
		t.Fatal(err)
	}
	c.await("some of the copy", func() bool {
		dirs, err := c.admin().DescribeAllLogDirs(testContext(t), nil)
		if err != nil {
			return false
		}
		p, ok := dirs[2].LookupPartition("t", 0)
		return ok && p.Size > 0 && p.Size < 1_000_000
	})
	c.without("the move in the list", func() string { // that of any node
		r, ok := c.listed("t", 0)
		if !ok || !slices.Equal(r.Replicas, []int32{2, 3, 1}) || !slices.Equal(r.AddingReplicas, []int32{2, 3}) || !slices.Equal(r.RemovingReplicas, []int32{1}) {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
	if err := c.reassign("t", 0); err != nil {
		t.Fatal(err)
	}
	c.moved("t", 0, 1)
	if err := c.reassign("t", 0, 2, 3); err != nil {
		t.Fatal(err)
	}
	c.await("the move to be under way: a throttled one is not done at once", func() bool { _, ok := c.listed("t", 0); return ok })
	c.throttle("")
	c.moved("t", 0, 2, 3)
	read := c.client(kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for n := 0; n < 20; {
		fetches := read.PollFetches(testContext(t))
		if err := fetches.Err0(); err != nil {
			t.Fatal(err)
		}
		n += fetches.NumRecords()
	}
}

// createOn creates a topic of one partition with replicas on certain nodes.
func (c *testCluster) createOn(topic string, replicas []int32) error {
	req := kmsg.NewPtrCreateTopicsRequest()
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topic, -1, -1
	a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
	a.Replicas = replicas
	t.ReplicaAssignment = append(t.ReplicaAssignment, a)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(testContext(c.t), c.client())
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].ErrorCode)
}

// TestCoordinatorFollowsItsPartition: committed offsets are told by whoever has the group after the move of its partition, and never older ones.
func TestCoordinatorFollowsItsPartition(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("t", 1, nil)
	adm := c.admin()
	commit := func(offset int64) {
		t.Helper()
		c.await("an offset to be committed", func() bool {
			var o kadm.Offsets
			o.Add(kadm.Offset{Topic: "t", Partition: 0, At: offset, LeaderEpoch: -1})
			r, err := adm.CommitOffsets(testContext(t), "g", o)
			return err == nil && r.Error() == nil
		})
	}
	committed := func() int64 {
		t.Helper()
		var at int64
		c.await("an offset to be told", func() bool {
			r, err := adm.FetchOffsets(testContext(t), "g")
			o, ok := r.Lookup("t", 0)
			at = o.At
			return err == nil && ok && o.Err == nil
		})
		return at
	}
	commit(1)
	ctl := c.nodes[0].ctl
	c.await("the offsets' topic", func() bool { return ctl.Image().Topic("__consumer_offsets") != nil })
	index := coordinatorPartition("g", len(ctl.Image().Topic("__consumer_offsets").Partitions))
	for i, replicas := range [][]int32{{2}, {3, 1, 2}, {1, 2, 3}, {2, 3}} {
		if err := c.reassign("__consumer_offsets", index, replicas...); err != nil {
			t.Fatal(err)
		}
		for n := range int64(20) {
			offset := int64(i+1)*100 + n
			commit(offset)
			if got := committed(); got != offset {
				t.Fatalf("committed %d, told %d", offset, got)
			}
		}
		c.moved("__consumer_offsets", index, replicas...)
		if got := committed(); got != int64(i+1)*100+19 {
			t.Fatalf("told %d after the move", got)
		}
	}
}
