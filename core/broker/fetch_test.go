package broker

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/record"
)

// TestFetchWaits checks min_bytes and max_wait: an answer comes when there is enough or the time is over, never before and always.
func TestFetchWaits(t *testing.T) {
	c := startCluster(t, 1)
	c.create("waits", 2, nil)
	conn, producer := dialRaw(t, c.nodes[0].kafka), dialRaw(t, c.nodes[0].kafka)
	req := fetchOne(12, "waits", [16]byte{}, 0, 0)
	req.MaxWaitMillis = 300
	began := time.Now()
	if p := conn.fetch(req); len(p.RecordBatches) != 0 || p.ErrorCode != 0 || time.Since(began) < 300*time.Millisecond {
		t.Errorf("empty: %+v after %v", p, time.Since(began))
	}
	// One batch wakes a fetch that wants a byte, and not one that wants more than a batch has.
	other := dialRaw(t, c.nodes[0].kafka)
	req.MaxWaitMillis = 30_000
	id := conn.send(req)
	greedy := fetchOne(12, "waits", [16]byte{}, 0, 0)
	greedy.MaxWaitMillis, greedy.MinBytes = 30_000, 700
	greedyID := other.send(greedy)
	producer.produce(produceRequest(9, "waits", [16]byte{}, 0, batch(record.None, "a")))
	p := conn.receive(req, id).(*kmsg.FetchResponse).Topics[0].Partitions[0]
	if b, _, err := record.Next(p.RecordBatches); err != nil || b.Count() != 1 {
		t.Errorf("woken: %v %+v", err, p)
	}
	producer.produce(produceRequest(9, "waits", [16]byte{}, 0, batch(record.None, "a")))
	p = other.receive(greedy, greedyID).(*kmsg.FetchResponse).Topics[0].Partitions[0]
	if len(p.RecordBatches) < 700 {
		t.Errorf("a fetch of 700 bytes got %d", len(p.RecordBatches))
	}
}

// TestFetchLimits checks that the limits hold, except that something is always sent.
func TestFetchLimits(t *testing.T) {
	c := startCluster(t, 1)
	c.create("limits", 2, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	b := batch(record.None, "a")
	for partition := range int32(2) {
		for range 5 {
			conn.produce(produceRequest(9, "limits", [16]byte{}, partition, batch(record.None, "a")))
		}
	}
	for _, step := range []struct {
		max, partitionMax int32
		first, second     int // batches
	}{
		{1 << 20, 1 << 20, 5, 5},
		{1, 1 << 20, 1, 0},
		{1 << 20, 1, 1, 1},
		{int32(2*len(b) + 10), 1 << 20, 2, 0},
		{int32(7*len(b) + 10), 1 << 20, 5, 2},
		{1 << 20, int32(3 * len(b)), 3, 3},
	} {
		req := fetchOne(11, "limits", [16]byte{}, 0, 0)
		two := req.Topics[0].Partitions[0]
		two.Partition = 1
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, two)
		req.MaxBytes = step.max
		for i := range req.Topics[0].Partitions {
			req.Topics[0].Partitions[i].PartitionMaxBytes = step.partitionMax
		}
		resp := ask[*kmsg.FetchResponse](conn, req)
		for i, want := range []int{step.first, step.second} {
			if got := len(resp.Topics[0].Partitions[i].RecordBatches) / len(b); got != want {
				t.Errorf("max %d, of partition %d: partition %d has %d batches, want %d", step.max, step.partitionMax, i, got, want)
			}
		}
	}
}

func TestFetchErrors(t *testing.T) {
	c := startCluster(t, 1)
	c.create("errors", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	conn.produce(produceRequest(9, "errors", [16]byte{}, 0, batch(record.None, "a")))
	epoch := listOffset(conn, 4, "errors", timestampLatest, 0).LeaderEpoch
	at := func(v int16, topic string, id [16]byte, partition int32, offset int64, epoch int32) *kmsg.FetchRequest {
		req := fetchOne(v, topic, id, partition, offset)
		req.MaxWaitMillis = int32(2 * testTimeout.Milliseconds()) // an error does not wait
		req.Topics[0].Partitions[0].CurrentLeaderEpoch = epoch
		return req
	}
	for name, step := range map[string]struct {
		req  *kmsg.FetchRequest
		code int16
	}{
		"topic":     {at(12, "nowhere", [16]byte{}, 0, 0, -1), codeUnknownTopicOrPartition},
		"id":        {at(13, "", [16]byte{1}, 0, 0, -1), codeUnknownTopicID},
		"partition": {at(12, "errors", [16]byte{}, 5, 0, -1), codeUnknownTopicOrPartition},
		"beyond":    {at(12, "errors", [16]byte{}, 0, 2, -1), codeOffsetOutOfRange},
		"negative":  {at(12, "errors", [16]byte{}, 0, -1, -1), codeOffsetOutOfRange},
		"fenced":    {at(12, "errors", [16]byte{}, 0, 0, epoch-1), codeFencedLeaderEpoch},
		"unknown":   {at(12, "errors", [16]byte{}, 0, 0, epoch+1), codeUnknownLeaderEpoch},
		"right":     {at(12, "errors", [16]byte{}, 0, 0, epoch), codeNone},
	} {
		if p := conn.fetch(step.req); p.ErrorCode != step.code {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// TestFetchSession walks through a session (KIP-227).
func TestFetchSession(t *testing.T) {
	c := startCluster(t, 1)
	c.create("session", 3, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	id := conn.topicID("session")
	req := fetchOne(13, "", id, 0, 0)
	for i := int32(1); i < 3; i++ {
		p := req.Topics[0].Partitions[0]
		p.Partition = i
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, p)
	}
	req.SessionEpoch = 0
	first := ask[*kmsg.FetchResponse](conn, req)
	if first.ErrorCode != 0 || first.SessionID == 0 || len(first.Topics[0].Partitions) != 3 {
		t.Fatalf("first: %+v", first)
	}
	next := func(epoch int32, topics []kmsg.FetchRequestTopic) *kmsg.FetchResponse {
		r := fetchOne(13, "", id, 0, 0)
		r.SessionID, r.SessionEpoch, r.Topics = first.SessionID, epoch, topics
		return ask[*kmsg.FetchResponse](conn, r)
	}
	if r := next(1, nil); r.ErrorCode != 0 || r.SessionID != first.SessionID || len(r.Topics) != 0 {
		t.Errorf("nothing new: %+v", r)
	}
	conn.produce(produceRequest(13, "", id, 2, batch(record.None, "a")))
	r := next(2, nil)
	if len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 || r.Topics[0].Partitions[0].Partition != 2 || len(r.Topics[0].Partitions[0].RecordBatches) == 0 {
		t.Fatalf("one has records: %+v", r)
	}
	// The client goes on behind them: nothing is new again.
	advance := fetchOne(13, "", id, 2, 1).Topics
	if r := next(3, advance); len(r.Topics) != 0 {
		t.Errorf("after them: %+v", r)
	}
	if r := next(3, nil); r.ErrorCode != codeInvalidFetchSessionEpoch {
		t.Errorf("an epoch twice: %+v", r)
	}
	end := fetchOne(13, "", id, 0, 0)
	end.SessionID, end.SessionEpoch, end.Topics = first.SessionID, -1, nil
	if r := ask[*kmsg.FetchResponse](conn, end); r.ErrorCode != 0 || r.SessionID != 0 {
		t.Errorf("end: %+v", r)
	}
	if r := next(4, nil); r.ErrorCode != codeFetchSessionNotFound {
		t.Errorf("after the end: %+v", r)
	}
}

// TestFollowerFetch checks that a client is sent to the replica in its rack, and served there (KIP-392).
func TestFollowerFetch(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("racks", 1, nil)
	leader := c.steady("racks", 0)
	follower := leader%3 + 1
	conn := dialRaw(t, c.node(leader).kafka)
	c.without("a record to be taken", func() string {
		c.steady("racks", 0) // it gets the lead back, where it has lost it
		if p := conn.produce(produceRequest(9, "racks", [16]byte{}, 0, sequenced(9, 0, 0, 1))); p.ErrorCode != 0 {
			return fmt.Sprintf("%+v", p)
		}
		return ""
	})
	req := fetchOne(12, "racks", [16]byte{}, 0, 0)
	req.Rack = "rack" + string(rune('0'+follower))
	var p kmsg.FetchResponseTopicPartition
	c.without("the leader to send to the follower", func() string { // once that is in sync
		c.steady("racks", 0)
		if p = conn.fetch(req); p.PreferredReadReplica != follower {
			return fmt.Sprintf("not to %d: %+v", follower, p)
		}
		return ""
	})
	if len(p.RecordBatches) != 0 {
		t.Error("the leader sends the records as well")
	}
	near := dialRaw(t, c.node(follower).kafka)
	req.MaxWaitMillis = 10_000
	// In sync means that the follower has the entries; that they are committed it may hear a moment later, the partition's creation included.
	c.await("the follower's records", func() bool { p = near.fetch(req); return len(p.RecordBatches) > 0 })
	if b, _, err := record.Next(p.RecordBatches); err != nil || b.Count() != 1 {
		t.Errorf("the follower answered %+v: %v", p, err)
	}
	for name, step := range map[string]struct {
		req  *kmsg.FetchRequest
		code int16
	}{
		"beyond the follower's end":     {fetchOne(12, "racks", [16]byte{}, 0, 100), codeOffsetNotAvailable},
		"an old client at the follower": {fetchOne(10, "racks", [16]byte{}, 0, 0), codeNotLeaderOrFollower}, // knows nothing of followers
	} {
		c.without(name, func() string { // leaders may change for a moment
			if p := near.fetch(step.req); p.ErrorCode != step.code {
				return fmt.Sprintf("%+v", p)
			}
			return ""
		})
	}
}

// listOffset asks for one partition's offset.
func listOffset(c *rawConn, version int16, topic string, timestamp int64, partition int32) kmsg.ListOffsetsResponseTopicPartition {
	c.t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version, req.ReplicaID = version, -1
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic = topic
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp, p.CurrentLeaderEpoch = partition, timestamp, -1
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp := ask[*kmsg.ListOffsetsResponse](c, req)
	return resp.Topics[0].Partitions[0]
}
