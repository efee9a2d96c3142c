package broker

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/record"
)

// TestFetchWindow checks that a connection gets little until it has read that, then ever more, that it waits for no more than it can get, and that nothing is left out.
func TestFetchWindow(t *testing.T) {
	c := startCluster(t, 1)
	c.create("window", 1, nil)
	producer := dialRaw(t, c.nodes[0].kafka)
	b := bigBatch(900_000)
	const batches = 12
	for range batches {
		producer.produce(produceRequest(9, "window", [16]byte{}, 0, bigBatch(900_000)))
	}
	const tries = 5 // a machine that stands still makes a client look slow
	for try := range tries {
		sizes := windowSizes(t, c, batches, len(b))
		if slices.Equal(sizes[:min(4, len(sizes))], []int{1, 2, 4, 5}) { // of 1, 2, 4, 8 MiB
			return
		}
		t.Logf("try %d: answers of %v batches", try, sizes)
	}
	t.Errorf("the window did not grow in %d tries", tries)
}

// windowSizes reads a topic over a new connection and returns how many batches each answer had.
func windowSizes(t *testing.T, c *testCluster, batches int64, batchBytes int) (sizes []int) {
	t.Helper()
	conn := dialRaw(t, c.nodes[0].kafka)
	for offset := int64(0); offset < batches; {
		req := fetchOne(12, "window", [16]byte{}, 0, offset)
		req.MaxBytes, req.Topics[0].Partitions[0].PartitionMaxBytes = math.MaxInt32, math.MaxInt32
		if req.MinBytes = math.MaxInt32; offset >= 1+2+4 { // the rest is less than the window then: no reason to answer before the time
			req.MinBytes = 1
		}
		req.MaxWaitMillis = int32((5 * time.Minute).Milliseconds())
		p := conn.fetch(req)
		if p.ErrorCode != codeNone || len(p.RecordBatches) == 0 {
			t.Fatalf("at %d: code %d, %d bytes", offset, p.ErrorCode, len(p.RecordBatches))
		}
		for rest := p.RecordBatches; len(rest) > 0; {
			got, after, err := record.Next(rest)
			if err != nil || got.BaseOffset() != offset || got.Validate() != nil {
				t.Fatalf("at %d: %v, offset %d, %v", offset, err, got.BaseOffset(), got.Validate())
			}
			offset, rest = got.NextOffset(), after
		}
		sizes = append(sizes, len(p.RecordBatches)/batchBytes)
	}
	return sizes
}

// TestFetchWindowTurns checks that no partition waits behind another for good, when each could fill the window.
func TestFetchWindowTurns(t *testing.T) {
	c := startCluster(t, 1)
	const partitions = 4
	c.create("turns", partitions, nil)
	producer := dialRaw(t, c.nodes[0].kafka)
	req := fetchOne(12, "turns", [16]byte{}, 0, 0)
	req.MaxBytes = math.MaxInt32
	list := &req.Topics[0].Partitions
	for p := range int32(partitions) {
		producer.produce(produceRequest(9, "turns", [16]byte{}, p, bigBatch(900_000)))
		part := (*list)[0]
		part.Partition, part.PartitionMaxBytes = p, math.MaxInt32
		*list = append((*list)[:p], part)
	}
	served := make(map[int32]bool)
	for range 200 { // that one of four is not first among them: less than 10^-24
		conn := dialRaw(t, c.nodes[0].kafka) // a new one has the smallest window
		for _, p := range ask[*kmsg.FetchResponse](conn, req).Topics[0].Partitions {
			if len(p.RecordBatches) > 0 {
				served[p.Partition] = true
			}
		}
		conn.nc.Close()
		if len(served) == partitions {
			return
		}
	}
	t.Errorf("served only %v", served)
}

// bigBatch is a batch of one record of that size.
func bigBatch(size int) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{})
	b.Add(time.Now().UnixMilli(), nil, make([]byte, size), nil)
	return b.Build(nil)
}

// An answer that is empty because nothing can be read is not one that was cut short: it waits.
func TestEmptyAnswerIsNotCut(t *testing.T) {
	r := &fetchRead{want: &fetchPartition{offset: 5, maxBytes: 8 << 20}, limit: 9, room: 1 << 20}
	if r.short(0) {
		t.Error("nothing was readable, and the answer does not wait")
	}
	if !r.short(1 << 20) {
		t.Error("others have taken the room, and the answer waits for more")
	}
}
