package broker

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/vfs"
)

func TestProduceWaitsForADisk(t *testing.T) {
	beside(t)
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) { produceWaitsForADisk(t, nodes) })
	}
}

// produceWaitsForADisk has the disk of one node, a follower where there is one, run low and then full: produce is refused by name, fetches and offsets go
// on, until the latter are refused as well; and a producer that kept trying loses nothing and doubles nothing.
func produceWaitsForADisk(t *testing.T, nodes int) {
	var disks []*vfs.Fault
	c := startClusterWith(t, nodes, func(n *testNode) {
		disk := vfs.NewFault(n.fs)
		disk.SetFree(1 << 40)
		disks = append(disks, disk)
		n.fs, n.reserve = disk, 64<<20
	})
	c.create("readings", 1, nil)
	ctx := testContext(t)
	sent := map[string]bool{"before": true}
	producer := c.client(kgo.DefaultProduceTopic("readings"))
	if err := producer.ProduceSync(ctx, kgo.StringRecord("before")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	commit := func(at int64) {
		t.Helper()
		offsets := make(kadm.Offsets)
		offsets.AddOffset("readings", 0, at, -1)
		c.eventually(func(ctx context.Context, adm *kadm.Client) error {
			return adm.CommitAllOffsets(ctx, "readers", offsets)
		})
	}
	commit(0)
	again := sequenced(1<<40, 0, 0, 1) // is taken once, however often it comes
	sent["0"] = true
	leader := c.steady("readings", 0)
	victim := leader%int32(nodes) + 1
	disk, conn := disks[victim-1], dialRaw(t, c.node(leader).kafka)
	id := conn.topicID("readings")
	var p kmsg.ProduceResponseTopicPartition
	produce := func(want int16) {
		t.Helper()
		c.without("the answer "+errorName(want), func() string { // what is not heard of for seconds holds nobody up, and leaders change
			if p = conn.produce(produceRequest(13, "readings", id, 0, again)); p.ErrorCode != want {
				return fmt.Sprintf("%+v", p)
			}
			return ""
		})
	}
	produce(codeNone)

	disk.SetFree(40 << 20)
	shardID := c.node(leader).ctl.Image().Topic("readings").Partitions[0].Shard
	c.await("the leader to know", func() bool { _, low := c.node(leader).ctl.LowDisk(shardID); return low })
	produce(codeStorageError)
	if p.BaseOffset != -1 || p.ErrorMessage == nil {
		t.Fatalf("produce to a low disk: %+v", p)
	}
	for _, part := range []string{fmt.Sprintf("disk of node %d is low", victim), "40.0 MiB free", "64.0 MiB", "delete topics or records"} {
		if !strings.Contains(*p.ErrorMessage, part) {
			t.Errorf("the message lacks %q: %s", part, *p.ErrorMessage)
		}
	}
	var metrics strings.Builder
	c.node(leader).broker.WritePrometheus(&metrics)
	if !strings.Contains(metrics.String(), "sluice_broker_produce_refused_low_disk_total 1\n") {
		t.Errorf("the refusal is not counted:\n%s", &metrics)
	}
	var promises []<-chan error
	for i := range 20 { // an idempotent producer keeps them, in order
		value, done := fmt.Sprint("meanwhile ", i), make(chan error, 1)
		sent[value] = true
		producer.Produce(ctx, kgo.StringRecord(value), func(_ *kgo.Record, err error) { done <- err })
		promises = append(promises, done)
	}
	commit(1)
	fetch := func(what string) {
		t.Helper()
		c.without(what, func() string {
			if f := conn.fetch(fetchOne(13, "readings", id, 0, 0)); f.ErrorCode != codeNone || f.HighWatermark < 2 || len(f.RecordBatches) == 0 {
				return fmt.Sprintf("%+v", f)
			}
			return ""
		})
	}
	fetch("a fetch from a low disk")

	disk.SetFree(10 << 20)
	offsets := meta.TopicID(conn.topicID(meta.OffsetsTopic))
	for _, n := range c.nodes {
		at := n.ctl.Image().TopicByID(offsets).Partitions[coordinatorPartition("readers", offsetsPartitions)].Shard
		c.await("all to know", func() bool { _, full := n.ctl.FullDisk(at); return full })
	}
	c.without("the refusal of a commit to a full disk", func() string {
		if code := c.commitRaw("readers", "readings", id); code != codeCoordinatorNotAvailable {
			return fmt.Sprintf("it is answered %s", errorName(code))
		}
		return ""
	})
	fetch("a fetch from a full disk")

	disk.SetFree(1 << 40)
	for i, done := range promises {
		if err := <-done; err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	commit(2)
	consumeExactly(ctx, t, c, "readings", sent)
}

// TestWhatFollowsARefusedBatchWaits has a batch refused: what follows it waits, whatever else goes on, until it comes again.
func TestWhatFollowsARefusedBatchWaits(t *testing.T) {
	var r refusedBatches
	term := uint64(3)
	here, there := partition.Key{Index: 1}, partition.Key{Index: 2}
	at := func(epoch int16, sequence int32) record.Batch { return sequenced(7, epoch, sequence, 2) }
	expect := func(want bool, key partition.Key, b record.Batch) {
		t.Helper()
		if got := r.behind(key, term, b); got != want {
			t.Errorf("%v, producer %d, epoch %d, sequence %d: behind is %v", key, b.ProducerID(), b.ProducerEpoch(), b.BaseSequence(), got)
		}
	}
	expect(false, here, at(0, 2))
	r.refused(here, term, at(0, 4))
	r.refused(here, term, batch(record.None, "a")) // not idempotent
	expect(true, here, at(0, 6))
	expect(true, here, at(0, 8))
	expect(false, here, at(0, 2)) // sent again, stored long ago
	expect(false, there, at(0, 6))
	expect(false, here, sequenced(8, 0, 6, 2))
	expect(false, here, batch(record.None, "a"))
	expect(false, here, at(0, 4))
	expect(false, here, at(0, 6))
	r.refused(here, term, at(0, 1<<31-2))
	expect(true, here, at(0, 0)) // sequences wrap
	expect(false, here, at(1, 0))
	expect(false, here, at(1, 2))
	// Another leader took it meanwhile, and then this node leads again: the producer is far ahead and comes with nothing older.
	r.refused(here, term, at(1, 4))
	term += 2
	expect(false, here, at(1, 20))
	expect(false, here, at(1, 22))
	if n := r.count.Load(); n != 0 {
		t.Errorf("%d are kept", n)
	}
}

// commitRaw commits an offset with one request to the group's coordinator and returns its code, or that of the last node when none is.
func (c *testCluster) commitRaw(groupID, topic string, id [16]byte) int16 {
	c.t.Helper()
	for _, n := range c.nodes {
		req := kmsg.NewPtrOffsetCommitRequest()
		req.Version, req.Group, req.Generation = 10, groupID, -1
		req.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: topic, TopicID: id, Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Offset: 7, LeaderEpoch: -1}}}}
		conn := dialRaw(c.t, n.kafka)
		resp := ask[*kmsg.OffsetCommitResponse](conn, req)
		if code := resp.Topics[0].Partitions[0].ErrorCode; code != int16(group.NotCoordinator) {
			return code
		}
	}
	return int16(group.NotCoordinator)
}
