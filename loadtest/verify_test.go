package loadtest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

// fake starts a Kafka-like cluster that we did not write.
func fake(t *testing.T) Kafka {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.AllowAutoTopicCreation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return Kafka{Brokers: c.ListenAddrs(), Partitions: 2, ReplicationFactor: 1}
}

func verify(t *testing.T, k Kafka) (recorded, []*kgo.Record) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "history.json")
	r, err := Verify{Kafka: k, Writers: 2, Rate: 400, Duration: 500 * time.Millisecond, Size: 50, Late: time.Minute, History: file}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !r.Verdict.OK() || r.Verdict.Acked < 100 || r.Verdict.Found != r.Verdict.Acked || r.Errors != 0 || len(r.PartitionPauseMs) != 2 {
		t.Fatalf("result = %+v, verdict %+v", r, r.Verdict)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rec recorded
	if err := json.Unmarshal(data, &rec); err != nil {
		t.Fatal(err)
	}
	return rec, readAll(t, k, rec.Topic, int(r.Verdict.Found))
}

func readAll(t *testing.T, k Kafka, topic string, n int) (all []*kgo.Record) {
	t.Helper()
	c, err := k.client(kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for len(all) < n {
		f := c.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d of %d records", len(all), n)
		}
		all = append(all, f.Records()...)
	}
	return all
}

// tampered writes a copy of a log under another name, and checks that against the same history.
func tampered(t *testing.T, k Kafka, rec recorded, name string, records []*kgo.Record) *history.Verdict {
	t.Helper()
	rec.Topic = name
	k.Topic = name
	c, err := k.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	if err := k.ensure(ctx, c); err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := c.ProduceSync(ctx, &kgo.Record{Topic: name, Partition: r.Partition, Key: r.Key, Value: r.Value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), name)
	if err := rec.save(file); err != nil {
		t.Fatal(err)
	}
	got, err := Verify{Kafka: k, Late: time.Second}.Check(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	return got.Verdict
}

func TestVerifyFailsOnATamperedLog(t *testing.T) {
	k := fake(t)
	rec, records := verify(t, k)
	same := func(i int) int { // a later record of the same partition and writer
		for j := i + 1; j < len(records); j++ {
			if records[j].Partition == records[i].Partition && string(records[j].Key) == string(records[i].Key) {
				return j
			}
		}
		t.Fatal("no two records of one writer in a partition")
		return 0
	}
	i := len(records) / 3
	swapped := slices.Clone(records)
	swapped[i], swapped[same(i)] = swapped[same(i)], swapped[i]
	for name, c := range map[string]struct {
		log  []*kgo.Record
		want history.Kind
	}{
		"removed": {slices.Delete(slices.Clone(records), i, i+1), history.Lost},
		"doubled": {slices.Insert(slices.Clone(records), i, records[i]), history.Doubled},
		"swapped": {swapped, history.Reordered},
	} {
		if v := tampered(t, k, rec, "copy-"+name, c.log); v.Counts[c.want] != 1 {
			t.Errorf("%s: verdict %v, want one %s", name, v.Counts, c.want)
		}
	}
	if v := tampered(t, k, rec, "copy-whole", records); !v.OK() {
		t.Errorf("a faithful copy fails: %v", v.Violations)
	}
}

func TestProduceAndConsume(t *testing.T) {
	k := fake(t)
	k.Topic = "load"
	p := Produce{Kafka: k, Size: 100, Records: 5000, Acks: "all", Idempotent: true, Compression: "zstd", BatchBytes: 1 << 20}
	r, err := p.Run(context.Background())
	if err != nil || r.Operations != 5000 || r.Bytes != 500000 || r.Errors != 0 || r.LatencyMs["p99"] <= 0 {
		t.Fatalf("produce: %+v, %v", r, err)
	}
	r, err = Consume{Kafka: k}.Run(context.Background())
	if err != nil || r.Operations != 5000 || r.Bytes != 500000 {
		t.Fatalf("consume: %+v, %v", r, err)
	}
	for run, want := range []int64{5000, 0} { // the second finds nothing that the group has not read
		r, err = Consume{Kafka: k, Group: "readers"}.Run(context.Background())
		if err != nil || r.Operations != want {
			t.Fatalf("run %d of a group: %+v, %v", run, r, err)
		}
	}
	p.Acks = "some"
	if _, err := p.Run(context.Background()); err == nil {
		t.Error("acks=some is accepted")
	}
}

// TestProduceKeys: each key in one partition, and all of them are written.
func TestProduceKeys(t *testing.T) {
	k := fake(t)
	k.Topic = "keyed"
	p := Produce{Kafka: k, Size: 10, Records: 1000, Acks: "all", Idempotent: true, Compression: "none", BatchBytes: 1 << 20, Keys: 50}
	if r, err := p.Run(context.Background()); err != nil || r.Operations != 1000 {
		t.Fatalf("produce: %+v, %v", r, err)
	}
	c, err := k.client(kgo.ConsumeTopics(k.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	where, partitions := map[string]int32{}, map[int32]bool{}
	for n := 0; n < 1000; {
		fetches := c.PollFetches(context.Background())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			n++
			if at, ok := where[string(r.Key)]; ok && at != r.Partition {
				t.Fatalf("%s is in partitions %d and %d", r.Key, at, r.Partition)
			}
			where[string(r.Key)], partitions[r.Partition] = r.Partition, true
		})
	}
	if len(where) != 50 || len(partitions) < 2 {
		t.Errorf("%d keys in %d partitions", len(where), len(partitions))
	}
}

// TestConsumeEndsWhereOffsetsHaveGaps: a topic ends at an offset, not after a number of records.
func TestConsumeEndsWhereOffsetsHaveGaps(t *testing.T) {
	k := fake(t)
	k.Topic, k.Partitions = "gaps", 1
	c, err := k.client(kgo.TransactionalID("gaps"), kgo.DefaultProduceTopic(k.Topic))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := k.ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for range 3 { // the marker of a transaction's end takes an offset
		if err := c.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := c.ProduceSync(t.Context(), kgo.StringRecord("a"), kgo.StringRecord("b")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := c.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := Consume{Kafka: k}.Run(ctx)
	if err != nil || ctx.Err() != nil || r.Operations != 6 || r.Bytes != 6 {
		t.Fatalf("%+v, %v, %v", r, err, ctx.Err())
	}
}
