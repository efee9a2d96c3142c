package broker

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestFlippedBitIsNeverSent flips a bit in the closed segments of each running node in turn and reads everything through
// that node, and from the leaders: clients get what was written, from wherever it is whole, and never the damage.
func TestFlippedBitIsNeverSent(t *testing.T) {
	c := startCluster(t, 3)
	c.create("t", 1, map[string]string{"segment.bytes": "1048576"})
	ctx := testContext(t)
	producer, err := kgo.NewClient(kgo.SeedBrokers(c.bootstrap()...), kgo.DefaultProduceTopic("t"), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	value := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", i), 1000) }
	const records = 600
	for i := range records {
		producer.Produce(ctx, &kgo.Record{Value: value(i)}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := producer.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	c.await("equal segments everywhere", func() bool { return sameSegments(c.nodes, "t-0") })
	for _, n := range c.nodes {
		for i, name := range closedSegments(n, "t-0") {
			flipBit(t, name, int64(100_000+70_000*i))
		}
		// Until it is mended: the damage is found by who reads there, which nobody does while the node is not in sync. What is damaged everywhere
		// before that is lost.
		c.await(fmt.Sprintf("the repair of node %d", n.id), func() bool {
			for _, rack := range []string{fmt.Sprint("rack", n.id), ""} {
				readBack(ctx, t, c, rack, records, value)
			}
			return sameSegments(c.nodes, "t-0")
		})
	}
}

// readBack reads all records of t as a client in a rack does, and fails for what was not written.
func readBack(ctx context.Context, t *testing.T, c *testCluster, rack string, records int, value func(int) []byte) {
	t.Helper()
	consumer, err := kgo.NewClient(kgo.SeedBrokers(c.bootstrap()...), kgo.ConsumeTopics("t"), kgo.Rack(rack),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	for i := 0; i < records; {
		fetches := consumer.PollFetches(ctx)
		fetches.EachError(func(_ string, _ int32, err error) { t.Fatalf("rack %q: %v", rack, err) })
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset != int64(i) || !bytes.Equal(r.Value, value(i)) {
				t.Fatalf("rack %q: record %d at %d is not what was written", rack, r.Offset, i)
			}
			i++
		})
	}
}

// closedSegments returns a node's segments that nothing is written to any more.
func closedSegments(n *testNode, partition string) []string {
	files, _ := filepath.Glob(filepath.Join(n.dir, partition, "*.log")) // its only error is a bad pattern
	slices.Sort(files)
	return files[:max(len(files)-1, 0)]
}

func flipBit(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (at % 8)
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// sameSegments tells whether all nodes have the same closed segments, some of them. One that is being mended may be away for a moment.
func sameSegments(nodes []*testNode, partition string) bool {
	names := closedSegments(nodes[0], partition)
	if len(names) < 2 {
		return false
	}
	for _, name := range names {
		want, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		for _, n := range nodes[1:] {
			if len(closedSegments(n, partition)) != len(names) {
				return false
			}
			got, err := os.ReadFile(filepath.Join(n.dir, partition, filepath.Base(name)))
			if err != nil || !bytes.Equal(got, want) {
				return false
			}
		}
	}
	return true
}
