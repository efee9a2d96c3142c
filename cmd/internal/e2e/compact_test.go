//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	compactTopic   = "states"
	compactRecords = 100_000
	compactKeys    = 100
)

// A topic with cleanup.policy=compact becomes small on all nodes and keeps the last value of each key, through a kill of each node; and a reader comes from any offset
// to the end.
func TestCompactedTopic(t *testing.T) {
	data := t.TempDir()
	c := startCluster(t, data)
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	compactTopicMade(t, ctx)
	last := writeStates(t, ctx)
	wait(t, "the topic is small everywhere", func() error { return smallEverywhere(data) })
	lastStates(t, ctx, 0, last)
	for _, name := range []string{"core-1", "core-2", "core-3"} {
		c.kill(name)
		lastStates(t, ctx, 0, last)
		c.restart(name)
		c.ready(name)
	}
	wait(t, "the topic is small everywhere after kills, and the same", func() error { return errors.Join(smallEverywhere(data), sameEverywhere(data)) })
	for from := int64(0); from < compactRecords; from += 9_973 {
		lastStates(t, ctx, from, nil)
	}
	c.stop(syscall.SIGINT)
	sameSegments(t, data, compactTopic, 1)
}

func compactTopicMade(t *testing.T, ctx context.Context) {
	adm := kadm.NewClient(newClient(t))
	value := func(s string) *string { return &s }
	wait(t, "the topic is created", func() error {
		_, err := adm.CreateTopic(ctx, 1, 3, map[string]*string{
			"cleanup.policy": value("compact"), "segment.bytes": value("1048576"), "min.cleanable.dirty.ratio": value("0.1"),
		}, compactTopic)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return nil // an earlier try was carried out, though its answer did not say so
		}
		return err
	})
	wait(t, "the cleaner looks often", func() error {
		_, err := adm.AlterBrokerConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "log.cleaner.backoff.ms", Value: value("500")}})
		return err
	})
}

func writeStates(t *testing.T, ctx context.Context) (last map[string]string) {
	client := newClient(t, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.DefaultProduceTopic(compactTopic))
	last = map[string]string{}
	for n := range compactRecords {
		k, v := fmt.Sprint("device-", n%compactKeys), fmt.Sprintf("%d of many, %0150d", n, n)
		last[k] = v
		client.Produce(ctx, &kgo.Record{Key: []byte(k), Value: []byte(v)}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := client.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	return last
}

// smallEverywhere looks at the partition's directory on each node: the segment that is written to, one that is compacted, and their indexes.
func smallEverywhere(data string) error {
	for node := 1; node <= 3; node++ {
		var bytes int64
		files, err := filepath.Glob(filepath.Join(data, fmt.Sprintf("core-%d", node), compactTopic+"-0", "*"))
		if err != nil {
			return err
		}
		for _, f := range files {
			info, err := os.Stat(f)
			if err != nil {
				return err
			}
			bytes += info.Size()
		}
		if bytes > 3<<20 || len(files) == 0 {
			return fmt.Errorf("%d bytes in %d files on core-%d", bytes, len(files), node)
		}
	}
	return nil
}

// sameEverywhere tells which node has other segments than the first: one that is behind, or has not yet swapped what the others have.
func sameEverywhere(data string) error {
	var first string
	for node := 1; node <= 3; node++ {
		files, err := filepath.Glob(filepath.Join(data, fmt.Sprintf("core-%d", node), compactTopic+"-0", "*.log"))
		if err != nil {
			return err
		}
		var segments string
		for _, f := range files {
			info, err := os.Stat(f)
			if err != nil {
				return err
			}
			segments += fmt.Sprintf("%s: %d bytes; ", filepath.Base(f), info.Size())
		}
		if node == 1 {
			first = segments
		} else if segments != first {
			return fmt.Errorf("core-%d has %s core-1 has %s", node, segments, first)
		}
	}
	return nil
}

// lastStates reads from an offset to the end, and compares what is the last of each key when last is given.
func lastStates(t *testing.T, ctx context.Context, from int64, last map[string]string) {
	t.Helper()
	client := newClient(t, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{compactTopic: {0: kgo.NewOffset().At(from)}}))
	defer client.Close()
	got, records := map[string]string{}, 0
	for at := from; at < compactRecords; {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read from %d stands at %d", from, at)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset < at {
				t.Fatalf("read from %d: %d after %d", from, r.Offset, at)
			}
			at = r.Offset + 1
			got[string(r.Key)] = string(r.Value)
			records++
		})
	}
	for k, v := range last {
		if got[k] != v {
			t.Errorf("the last of %s is %.20q, was written as %.20q", k, got[k], v)
		}
	}
	if last != nil && records > compactRecords/4 {
		t.Errorf("%d records are left", records)
	}
	t.Logf("%d records from %d on", records, from)
}
