package broker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/core/record"
)

// TestCodecsThroughTheCluster produces with every codec to topics of every compression.type and reads all back.
func TestCodecsThroughTheCluster(t *testing.T) {
	c := startCluster(t, 3)
	ctx := testContext(t)
	for _, kind := range []string{"producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"} {
		topic := "codecs-" + kind
		c.create(topic, 3, map[string]string{"compression.type": kind})
		sent := make(map[string]bool)
		for name, codec := range map[string]kgo.CompressionCodec{
			"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
		} {
			cl := c.client(kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
			var records []*kgo.Record
			for i := range 30 {
				value := fmt.Sprintf("%s %d %s", name, i, bytes.Repeat([]byte("x"), 200))
				sent[value] = true
				records = append(records, kgo.StringRecord(value))
			}
			if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
				t.Fatalf("%s to %s: %v", name, topic, err)
			}
		}
		consumeExactly(ctx, t, c, topic, sent)
	}
}

// consumeExactly reads a topic until it has seen every value, and fails on a stranger, a double, or a gap in the offsets.
func consumeExactly(ctx context.Context, t *testing.T, c *testCluster, topic string, want map[string]bool) {
	t.Helper()
	cl := c.client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer cl.Close()
	next := make(map[int32]int64)
	for seen := make(map[string]bool); len(seen) < len(want); {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("consume %s after %d of %d: %v", topic, len(seen), len(want), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			value := string(r.Value)
			if !want[value] || seen[value] {
				t.Errorf("%s has %q, wanted %v, seen %v", topic, value, want[value], seen[value])
			}
			if r.Offset != next[r.Partition] {
				t.Errorf("%s/%d: offset %d follows %d", topic, r.Partition, r.Offset, next[r.Partition]-1)
			}
			seen[value], next[r.Partition] = true, r.Offset+1
		})
	}
}

// TestProduceVersions produces and fetches in every version.
func TestProduceVersions(t *testing.T) {
	c := startCluster(t, 1)
	c.create("versions", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	id := conn.topicID("versions")
	offset := int64(0)
	for v := int16(3); v <= 13; v++ {
		p := conn.produce(produceRequest(v, "versions", id, 0, batch(record.LZ4, "a", "b")))
		if p.ErrorCode != 0 || p.BaseOffset != offset || p.LogAppendTime != -1 {
			t.Fatalf("v%d: %+v", v, p)
		}
		offset += 2
	}
	for v := int16(4); v <= 18; v++ {
		p := conn.fetch(fetchOne(v, "versions", id, 0, 1)) // within the first batch: the whole of it is sent
		b, _, err := record.Next(p.RecordBatches)
		if p.ErrorCode != 0 || err != nil || b.BaseOffset() != 0 || p.HighWatermark != offset {
			t.Errorf("fetch v%d: %+v %v", v, p, err)
		}
		if p.AbortedTransactions != nil {
			t.Errorf("fetch v%d: a list of aborted transactions for who reads uncommitted", v)
		}
		if err := b.Validate(); err != nil {
			t.Errorf("fetch v%d: %v", v, err)
		}
	}
}

// TestIdempotence checks sequences and epochs of one producer as a client sees them.
func TestIdempotence(t *testing.T) {
	c := startCluster(t, 1)
	c.create("idempotent", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	send := func(b record.Batch) (int16, int64) {
		p := conn.produce(produceRequest(12, "idempotent", [16]byte{}, 0, b))
		return p.ErrorCode, p.BaseOffset
	}
	for name, step := range []struct {
		b    record.Batch
		code int16
		base int64
	}{
		{sequenced(9, 0, 0, 3), 0, 0},
		{sequenced(9, 0, 0, 3), 0, 0}, // again: recognised
		{sequenced(9, 0, 5, 1), codeOutOfOrderSequence, -1},
		{sequenced(9, 0, 3, 2), 0, 3},
		{sequenced(9, 1, 0, 1), 0, 5},
		{sequenced(9, 0, 5, 1), codeInvalidProducerEpoch, -1},
		{sequenced(9, 1, 1, 1), 0, 6},
	} {
		if code, base := send(step.b); code != step.code || base != step.base {
			t.Errorf("step %d: code %d base %d, want %d %d", name, code, base, step.code, step.base)
		}
	}
}

// TestProducePipelined sends many requests without waiting: they are appended in their order.
func TestProducePipelined(t *testing.T) {
	c := startCluster(t, 3)
	try := 0
	c.without("200 requests with the same leader", func() string {
		try++
		return pipelined(t, c, fmt.Sprint("pipelined", try))
	})
}

// pipelined sends many requests to a new topic without waiting and says why it had to stop: the leader has changed.
func pipelined(t *testing.T, c *testCluster, topic string) (stopped string) {
	c.create(topic, 1, nil)
	conn := dialRaw(t, c.node(c.steady(topic, 0)).kafka)
	const n = 200
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		for i := range n {
			conn.send(produceRequest(12, topic, [16]byte{}, 0, sequenced(4, 0, int32(i), 1)))
		}
	})
	for i := range n {
		p := partitionOf(conn.receive(produceRequest(12, "", [16]byte{}, 0, nil), int32(i+1)))
		switch {
		case stopped != "":
		case p.ErrorCode != 0 && kerr.IsRetriable(kerr.ErrorForCode(p.ErrorCode)):
			stopped = fmt.Sprintf("request %d: %+v", i, p)
		case p.ErrorCode != 0 || p.BaseOffset != int64(i):
			t.Fatalf("request %d: %+v", i, p)
		}
	}
	return stopped
}

func TestAcksZero(t *testing.T) {
	c := startCluster(t, 1)
	c.create("none", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	req := produceRequest(9, "none", [16]byte{}, 0, batch(record.None, "a"))
	req.Acks = 0
	conn.send(req)
	if p := conn.produce(produceRequest(9, "none", [16]byte{}, 0, batch(record.None, "b"))); p.BaseOffset != 1 {
		t.Errorf("after one without an answer: %+v", p)
	}
	// A refused one closes the connection, as nothing else can say so.
	req = produceRequest(9, "unknown", [16]byte{}, 0, batch(record.None, "a"))
	req.Acks = 0
	conn.send(req)
	if _, err := conn.br.ReadByte(); err != io.EOF {
		t.Errorf("the connection of a refused request: %v", err)
	}
}

// TestProduceErrors checks the answers to what cannot be appended.
func TestProduceErrors(t *testing.T) {
	c := startCluster(t, 1)
	c.create("errors", 1, map[string]string{"max.message.bytes": "500", "min.insync.replicas": "2"})
	c.create("compacted", 1, map[string]string{"cleanup.policy": "compact"})
	conn := dialRaw(t, c.nodes[0].kafka)
	small := func() record.Batch { return sequenced(1, 0, 0, 1) }
	for name, step := range map[string]struct {
		topic     string
		partition int32
		acks      int16
		records   []byte
		code      int16
	}{
		"topic":     {"nowhere", 0, -1, small(), codeUnknownTopicOrPartition},
		"partition": {"errors", 1, -1, small(), codeUnknownTopicOrPartition},
		"negative":  {"errors", -1, -1, small(), codeUnknownTopicOrPartition},
		"acks":      {"errors", 0, 2, small(), codeInvalidRequiredAcks},
		"size":      {"errors", 0, -1, batch(record.None, "a", "b"), codeMessageTooLarge},
		"corrupt":   {"errors", 0, -1, small()[:40], codeCorruptMessage},
		"keyless":   {"compacted", 0, -1, batch(record.None, ""), codeInvalidRecord},
		"good":      {"errors", 0, 1, small(), codeNone}, // min.insync.replicas is never more than there are
	} {
		req := produceRequest(11, step.topic, [16]byte{}, step.partition, step.records)
		req.Acks = step.acks
		if p := conn.produce(req); p.ErrorCode != step.code {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if p := conn.produce(produceRequest(13, "", [16]byte{1, 2}, 0, small())); p.ErrorCode != codeUnknownTopicID {
		t.Errorf("unknown id: %+v", p)
	}
}

func TestLogAppendTime(t *testing.T) {
	c := startCluster(t, 1)
	c.create("times", 1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	conn := dialRaw(t, c.nodes[0].kafka)
	p := conn.produce(produceRequest(9, "times", [16]byte{}, 0, batch(record.Gzip, "a")))
	if p.ErrorCode != 0 || p.LogAppendTime <= 1_000_000 {
		t.Fatalf("%+v", p)
	}
	got := conn.fetch(fetchOne(12, "times", [16]byte{}, 0, 0))
	b, _, err := record.Next(got.RecordBatches)
	if err != nil || b.TimestampType() != 1 || b.MaxTimestamp() != p.LogAppendTime || b.Validate() != nil {
		t.Errorf("fetched type %d, time %d of %d: %v", b.TimestampType(), b.MaxTimestamp(), p.LogAppendTime, err)
	}
}

// TestWrongLeader checks that a follower's answer names the leader (KIP-951).
func TestWrongLeader(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("led", 1, nil)
	c.without("the leader's name", func() string {
		leader := c.steady("led", 0)
		follower := leader%3 + 1
		conn := dialRaw(t, c.node(follower).kafka)
		req := produceRequest(12, "led", [16]byte{}, 0, batch(record.None, "a"))
		resp := conn.receive(req, conn.send(req))
		p := partitionOf(resp)
		if b := brokersOf(resp); p.ErrorCode != codeNotLeaderOrFollower || p.CurrentLeader.LeaderID != leader || len(b) != 1 || b[0].NodeID != leader {
			return fmt.Sprintf("answered %+v with the hints %+v, the leader is %d", p, b, leader)
		}
		return ""
	})
}

// TestMinInsyncReplicas stops one of three nodes: what asks for all three is refused, what asks for two goes on.
func TestMinInsyncReplicas(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("all", 1, map[string]string{"min.insync.replicas": "3"})
	c.create("most", 1, map[string]string{"min.insync.replicas": "2"})
	conns := make(map[int32]*rawConn)
	send := func(topic string, acks int16) int16 {
		leader := c.leaderOf(topic, 0)
		if leader < 1 || c.node(leader).down {
			return codeNotLeaderOrFollower
		}
		if conns[leader] == nil {
			conns[leader] = dialRaw(t, c.node(leader).kafka)
		}
		req := produceRequest(9, topic, [16]byte{}, 0, batch(record.None, "a"))
		req.Acks = acks
		return conns[leader].produce(req).ErrorCode
	}
	for _, topic := range []string{"all", "most"} {
		c.await(topic+" to be in sync", func() bool { return send(topic, -1) == codeNone })
	}
	if err := c.nodes[2].stop(); err != nil {
		t.Fatal(err)
	}
	c.nodes[2].down = true
	c.await("too few replicas", func() bool { return send("all", -1) == codeNotEnoughReplicas })
	c.await("acks=1 in spite of that", func() bool { return send("all", 1) == codeNone })
	c.await("a majority", func() bool { return send("most", -1) == codeNone })
}
