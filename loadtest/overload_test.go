package loadtest

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestRawBatchesAreBatches reads a batch of ours with the client library's eyes.
func TestRawBatchesAreBatches(t *testing.T) {
	raw := batchOf(3, 100)
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		t.Fatal(err)
	}
	if b.NumRecords != 3 || int(b.Length)+12 != len(raw) || b.Magic != 2 {
		t.Errorf("%d records, length %d of %d bytes", b.NumRecords, b.Length, len(raw))
	}
	p := kmsg.NewFetchResponseTopicPartition()
	p.RecordBatches, p.HighWatermark = raw, 3
	got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t"}, &p, kgo.DefaultDecompressor(), nil)
	if got.Err != nil || len(got.Records) != 3 || len(got.Records[2].Value) != 100 {
		t.Errorf("read %d records, %v", len(got.Records), got.Err)
	}
}

func TestMQTTPackets(t *testing.T) {
	if got := mqttConnect("id"); !bytes.Equal(got, []byte("\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02id")) {
		t.Errorf("CONNECT %q", got)
	}
	if got := mqttPublish("t", make([]byte, 200)); !bytes.Equal(got[:6], []byte{0x30, 203, 1, 0, 1, 't'}) || len(got) != 206 {
		t.Errorf("PUBLISH of %d bytes begins with %x", len(got), got[:6])
	}
}

func TestNodesOfARunningCluster(t *testing.T) {
	dir := t.TempDir()
	if _, err := findNodes(dir); err == nil {
		t.Error("nodes were found in an empty directory")
	}
	script := "#!/bin/sh\nexec bin/sluice core --id 1 --data d --kafka 127.0.0.1:9092 --node 127.0.0.1:9093 --http 127.0.0.1:9644 $JOIN\n"
	for name, text := range map[string]string{"core-1.sh": script, "core-1.pid": "4711\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	nodes, err := findNodes(dir)
	if err != nil || len(nodes) != 1 {
		t.Fatal(nodes, err)
	}
	if n := nodes[0]; n.Name != "core-1" || n.Kafka != "127.0.0.1:9092" || n.HTTP != "127.0.0.1:9644" || n.PID() != 4711 {
		t.Errorf("found %s %s %s %d", n.Name, n.Kafka, n.HTTP, n.PID())
	}
}

func TestMetricIsSummed(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("a_total{shard=\"1\"} 5\na_total{shard=\"2\"} 1e3\na_total_more 7\na_total 2\n")) // to ourselves
	}))
	defer s.Close()
	n := &Node{HTTP: strings.TrimPrefix(s.URL, "http://")}
	if got, ok := metric(context.Background(), n, "a_total"); !ok || got != 1007 {
		t.Errorf("%v, %v", got, ok)
	}
}

func TestUsageOfThisProcess(t *testing.T) {
	u, err := usageOf(os.Getpid())
	if err != nil || u.rss < 1<<20 || u.files < 3 {
		t.Errorf("%+v, %v", u, err)
	}
}
