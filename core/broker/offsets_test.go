package broker

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/record"
)

// timed builds a batch with one record for each timestamp.
func timed(timestamps ...int64) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer})
	for _, ts := range timestamps {
		b.Add(ts, []byte("k"), []byte("v"), nil)
	}
	return b.Build(nil)
}

func TestListOffsets(t *testing.T) {
	c := startCluster(t, 1)
	c.create("offsets", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	empty := listOffset(conn, 8, "offsets", timestampMax, 0)
	if empty.ErrorCode != 0 || empty.Offset != -1 || empty.Timestamp != -1 {
		t.Errorf("the newest record of an empty log: %+v", empty)
	}
	for _, b := range []record.Batch{timed(1000, 3000), timed(2000), timed(5000, 4000)} {
		if p := conn.produce(produceRequest(9, "offsets", [16]byte{}, 0, b)); p.ErrorCode != 0 {
			t.Fatalf("%+v", p)
		}
	}
	for v := int16(1); v <= 11; v++ {
		for _, step := range []struct{ timestamp, offset, found int64 }{
			{timestampLatest, 5, -1}, {timestampEarliest, 0, -1}, {timestampMax, 3, 5000}, {timestampEarliestLocal, 0, -1},
			{timestampLatestTiered, -1, -1}, {timestampEarliestPendingUpload, -1, -1},
			{0, 0, 1000}, {1000, 0, 1000}, {1001, 1, 3000}, {3001, 3, 5000}, {5001, -1, -1},
		} {
			p := listOffset(conn, v, "offsets", step.timestamp, 0)
			if since := timestampVersions[step.timestamp]; step.timestamp < 0 && v < since {
				if p.ErrorCode != codeUnsupportedVersion {
					t.Errorf("v%d of %d: %+v", v, step.timestamp, p)
				}
				continue
			}
			if p.ErrorCode != 0 || p.Offset != step.offset || p.Timestamp != step.found {
				t.Errorf("v%d of %d: %+v, want %d at %d", v, step.timestamp, p, step.offset, step.found)
			}
			if v >= 4 && p.Offset >= 0 && p.LeaderEpoch < 0 {
				t.Errorf("v%d of %d: leader epoch %d", v, step.timestamp, p.LeaderEpoch)
			}
		}
	}
	if p := listOffset(conn, 11, "offsets", -77, 0); p.ErrorCode != codeUnsupportedVersion {
		t.Errorf("an unknown special timestamp: %+v", p)
	}
	if p := listOffset(conn, 5, "nowhere", timestampLatest, 0); p.ErrorCode != codeUnknownTopicOrPartition {
		t.Errorf("an unknown topic: %+v", p)
	}
}

func TestListOffsetsRefusesDoubles(t *testing.T) {
	c := startCluster(t, 1)
	c.create("doubles", 2, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version = 5
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = "doubles"
	for _, i := range []int32{0, 1, 0} {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp, p.CurrentLeaderEpoch = i, timestampLatest, -1
		topic.Partitions = append(topic.Partitions, p)
	}
	req.Topics = append(req.Topics, topic)
	resp := ask[*kmsg.ListOffsetsResponse](conn, req)
	for i, want := range []int16{codeInvalidRequest, codeNone, codeInvalidRequest} {
		if got := resp.Topics[0].Partitions[i].ErrorCode; got != want {
			t.Errorf("partition %d of the request: %d, want %d", i, got, want)
		}
	}
}

// epochEndOf asks where a leader epoch ends.
func epochEndOf(c *rawConn, topic string, current, epoch int32) kmsg.OffsetForLeaderEpochResponseTopicPartition {
	c.t.Helper()
	req := kmsg.NewPtrOffsetForLeaderEpochRequest()
	req.Version, req.ReplicaID = 4, -1
	t := kmsg.NewOffsetForLeaderEpochRequestTopic()
	t.Topic = topic
	p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
	p.CurrentLeaderEpoch, p.LeaderEpoch = current, epoch
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return ask[*kmsg.OffsetForLeaderEpochResponse](c, req).Topics[0].Partitions[0]
}

func TestOffsetForLeaderEpoch(t *testing.T) {
	c := startCluster(t, 1)
	c.create("epochs", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	conn.produce(produceRequest(9, "epochs", [16]byte{}, 0, timed(1, 2, 3)))
	first := listOffset(conn, 5, "epochs", timestampLatest, 0).LeaderEpoch
	if err := c.nodes[0].stop(); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].start()
	conn = dialRaw(t, c.nodes[0].kafka)
	c.await("the partition to be served again", func() bool {
		return conn.produce(produceRequest(9, "epochs", [16]byte{}, 0, timed(4))).ErrorCode == codeNone
	})
	latest := listOffset(conn, 5, "epochs", timestampLatest, 0)
	if latest.LeaderEpoch <= first || latest.Offset != 4 {
		t.Fatalf("after a restart: %+v, the epoch was %d", latest, first)
	}
	for name, step := range map[string]struct {
		current, epoch int32
		code           int16
		found          int32
		end            int64
	}{
		"the old one":  {-1, first, 0, first, 3},
		"the new one":  {latest.LeaderEpoch, latest.LeaderEpoch, 0, latest.LeaderEpoch, 4},
		"one to come":  {-1, latest.LeaderEpoch + 1, 0, -1, -1},
		"fenced":       {first, first, codeFencedLeaderEpoch, -1, -1},
		"from the far": {latest.LeaderEpoch + 5, first, codeUnknownLeaderEpoch, -1, -1},
	} {
		p := epochEndOf(conn, "epochs", step.current, step.epoch)
		if p.ErrorCode != step.code || p.LeaderEpoch != step.found || p.EndOffset != step.end {
			t.Errorf("%s: %+v, want %d of epoch %d", name, p, step.end, step.found)
		}
	}
	if p := listOffset(conn, 5, "epochs", timestampEarliest, 0); p.LeaderEpoch != first {
		t.Errorf("the first record's epoch is %d, want %d", p.LeaderEpoch, first)
	}
}

func TestInitProducerID(t *testing.T) {
	c := startCluster(t, 3)
	seen := make(map[int64]bool)
	for _, n := range c.nodes {
		conn := dialRaw(t, n.kafka)
		for v := range int16(6) {
			req := kmsg.NewPtrInitProducerIDRequest()
			req.Version = v
			var resp *kmsg.InitProducerIDResponse
			c.await("a producer id", func() bool { // while the metadata elects, nobody gives one
				resp = ask[*kmsg.InitProducerIDResponse](conn, req)
				return resp.ErrorCode == 0 || !kerr.IsRetriable(kerr.ErrorForCode(resp.ErrorCode))
			})
			if resp.ErrorCode != 0 || resp.ProducerEpoch != 0 || seen[resp.ProducerID] {
				t.Fatalf("node %d v%d: %+v, seen %v", n.id, v, resp, seen[resp.ProducerID])
			}
			seen[resp.ProducerID] = true
		}
		req := kmsg.NewPtrInitProducerIDRequest()
		req.Version, req.TransactionalID = 4, kmsg.StringPtr("tx")
		if resp := ask[*kmsg.InitProducerIDResponse](conn, req); resp.ErrorCode != codeUnsupportedVersion {
			t.Errorf("transactional: %+v", resp)
		}
	}
}
