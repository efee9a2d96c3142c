package scale

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestParseCPU(t *testing.T) {
	stat := "4711 (a (strange) name) S 1 4711 4711 0 -1 4194560 1000 0 0 0 250 130 0 0 20 0 9 0 12345 1 2"
	got, err := parseCPU(stat)
	if err != nil || got != 3800*time.Millisecond {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 eleven 12"} {
		if got, err := parseCPU(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestParseRSS(t *testing.T) {
	if got, err := parseRSS("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t   81234 kB\n"); err != nil || got != 81234<<10 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := parseRSS("Name:\tx\n"); err == nil {
		t.Error("nothing was taken for a size")
	}
}

func TestUsageOfThisProcess(t *testing.T) {
	metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "go_goroutines 7\ngo_memstats_heap_alloc_bytes 1.5e+06\nother{label=\"x y\"} 3")
	}))
	defer metrics.Close()
	u, err := usage(t.Context(), os.Getpid(), strings.TrimPrefix(metrics.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if u.RSSBytes < 1<<20 || u.Files < 3 || u.HeapBytes != 1500000 || u.Goroutines != 7 {
		t.Errorf("%+v", u)
	}
	if used, err := cpuTime(os.Getpid()); err != nil || used < 0 {
		t.Errorf("%v, %v", used, err)
	}
}

func TestOneRecord(t *testing.T) {
	raw := oneRecord(time.UnixMilli(5000))
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		t.Fatal(err)
	}
	if int(b.Length) != len(raw)-12 || b.Magic != 2 || b.NumRecords != 1 || b.FirstTimestamp != 5000 {
		t.Errorf("%+v", b)
	}
	var r kmsg.Record
	if err := r.ReadFrom(b.Records); err != nil || string(r.Value) != "probe" || r.Key != nil {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestByTopic(t *testing.T) {
	var got []string
	byTopic([]part{{topic: "a"}, {topic: "a"}, {topic: "b"}}, func(topic string, _ [16]byte, parts []part) {
		got = append(got, fmt.Sprint(topic, len(parts)))
	})
	if !slices.Equal(got, []string{"a2", "b1"}) {
		t.Error(got)
	}
}

func TestTopicSizes(t *testing.T) {
	for partitions, want := range map[int]string{10: "[10]", 1000: "[1000]", 2500: "[1000 1000 500]"} {
		if got := fmt.Sprint(topicSizes(partitions, 1000)); got != want {
			t.Errorf("%d: %s", partitions, got)
		}
	}
}

// A program that ends instead of serving is told with where to look.
func TestNodeThatDoesNotStart(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	nodes := newNodes("/bin/false", t.TempDir(), free.Addr().(*net.TCPAddr).Port+1, 1, nil)
	if err := nodes[0].start(); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].healthy(t.Context()); err == nil || !strings.Contains(err.Error(), "core-1.log") {
		t.Errorf("%v", err)
	}
	nodes[0].kill() // it has ended
	if err := nodes[0].stop(); err != nil {
		t.Error(err)
	}
}

func TestReport(t *testing.T) {
	r := Report{Machine: "m", Rows: []Row{
		{Partitions: 10, Nodes: []Usage{{RSSBytes: 30e6, HeapBytes: 9e6}}},
		{Partitions: 10010, Nodes: []Usage{{RSSBytes: 80e6, HeapBytes: 39e6, Files: 77}}, IdleCPU: 4.25, Rates: []Rate{{Partitions: 5000, Spread: "each", PerSecond: 123456}}},
	}}
	r.perReplica()
	if x := r.Rows[1]; x.RSSPerReplica != 5000 || x.HeapPerReplica != 3000 {
		t.Errorf("%+v", x)
	}
	var out bytes.Buffer
	if err := r.Text(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10010", "5.0", "77", "4.2", "5000 each", "123456"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

func TestConfigWithoutSizes(t *testing.T) {
	for _, c := range []Config{{TopicPartitions: 1}, {Sizes: []int{10, 0}, TopicPartitions: 1}, {Sizes: []int{10}}} {
		if _, err := c.Run(t.Context()); err == nil {
			t.Errorf("%+v was measured", c)
		}
	}
}
