//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest"
)

// faultTime is how long each load runs while processes are killed.
const faultTime = 30 * time.Second

// storm kills processes in turn until ctx ends: each is given time to be missed, started again, and waited for.
func (c *cluster) storm(ctx context.Context, names []string) (kills int) {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	for pause(2 * time.Second); ctx.Err() == nil; kills++ {
		name := names[r.IntN(len(names))]
		c.kill(name)
		pause(time.Duration(1+r.IntN(3)) * time.Second)
		c.restart(name)
		c.ready(name)
		pause(time.Second)
	}
	return kills
}

func (c *cluster) verify(v loadtest.Verify, names ...string) loadtest.VerifyResult {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), v.Duration)
	defer cancel()
	var r loadtest.VerifyResult
	ran := make(chan error, 1)
	go func() {
		var err error
		r, err = v.Run(context.Background())
		ran <- err
	}()
	kills := c.storm(ctx, names)
	if err := <-ran; err != nil {
		c.t.Fatal(err)
	}
	if !r.Verdict.OK() {
		c.t.Errorf("after %d kills: %v", kills, r.Verdict.Violations)
	}
	if kills < 3 || r.Verdict.Acked < int64(v.Rate*v.Duration.Seconds()/2) {
		c.t.Errorf("%d kills, %d records acknowledged: the test has not tested much", kills, r.Verdict.Acked)
	}
	c.t.Logf("%d kills, %d acknowledged, %d found, %d resent by devices, pauses %v", kills, r.Verdict.Acked, r.Verdict.Found, r.Verdict.Resent, r.PartitionPauseMs)
	return r
}

func TestKillCoreNodes(t *testing.T) {
	c := startCluster(t, t.TempDir())
	r := c.verify(loadtest.Verify{
		Kafka: loadtest.Kafka{Brokers: brokers, Partitions: 6, ReplicationFactor: 3}, Writers: 3, Rate: 500, Duration: faultTime, Size: 200, Late: patience,
	}, "core-1", "core-2", "core-3")
	c.stop(syscall.SIGTERM)
	sameSegments(t, c.data, r.Topic, 6)
}

// sameSegments compares the replicas of a topic byte for byte, after all nodes have stopped. A follower may have stopped before it heard
// that the last entries are committed: then what it has is the beginning of what the others have.
func sameSegments(t *testing.T, data, topic string, partitions int) {
	t.Helper()
	for p := range partitions {
		var longest []byte
		for node := 1; node <= 3; node++ {
			b := replica(t, filepath.Join(data, fmt.Sprintf("core-%d", node), fmt.Sprintf("%s-%d", topic, p)))
			if len(b) > len(longest) {
				longest, b = b, longest
			}
			if !bytes.HasPrefix(longest, b) {
				t.Errorf("%s-%d: the replica on core-%d, or one before it, differs from the others", topic, p, node)
			}
		}
		if len(longest) == 0 {
			t.Errorf("%s-%d: no replica holds anything", topic, p)
		}
	}
}

// replica is a partition's segments, one after the other.
func replica(t *testing.T, dir string) (all []byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no segments in %s: %v", dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func TestKillGatewayAndCoreNodes(t *testing.T) {
	c := startCluster(t, t.TempDir())
	c.verify(loadtest.Verify{
		Kafka: loadtest.Kafka{Brokers: brokers, Topic: "mqtt"}, Writers: 20, Rate: 400, Duration: faultTime, Size: 100, Late: patience,
		Gateway: mqtt, MQTT: "verify", Window: 10,
	}, "edge", "edge", "core-1", "core-2", "core-3")
}

// A child that dies is left dead; all four stop when the script is told to, also those started again; and all of it is found again.
func TestClusterStopsAndStartsAgain(t *testing.T) {
	data := t.TempDir()
	c := startCluster(t, data)
	topic := loadtest.Verify{Kafka: loadtest.Kafka{Brokers: brokers, Topic: "kept", Partitions: 3, ReplicationFactor: 3}, Writers: 1, Rate: 200, Duration: 2 * time.Second, Size: 100, Late: patience,
		History: filepath.Join(t.TempDir(), "history")}
	if r, err := topic.Run(context.Background()); err != nil || !r.Verdict.OK() {
		t.Fatal(r.Verdict, err)
	}
	c.kill("core-2")
	c.restart("core-2")
	c.ready("core-2")
	var pids []int
	for _, name := range []string{"core-1", "core-2", "core-3", "edge"} {
		pids = append(pids, c.pid(name))
	}
	c.stop(syscall.SIGINT)
	for _, pid := range pids {
		if running(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
	c = startCluster(t, data)
	if r, err := topic.Check(context.Background(), topic.History); err != nil || !r.Verdict.OK() {
		t.Errorf("after a new start: %+v, %v", r.Verdict, err)
	}
	c.stop(syscall.SIGTERM)
}

// A fourth node joins from an empty directory, and topics are placed on it.
func TestJoin(t *testing.T) {
	c := startCluster(t, t.TempDir())
	launch(t, "sluice core 4 serves", nil, filepath.Join(root(t), "bin", "sluice"), "core", "--id", "4", "--data", filepath.Join(c.data, "core-4"),
		"--kafka", port(9392), "--node", port(9393), "--http", port(9944), "--rack", "rack4", "--join", port(9093)+","+port(9193))
	client, err := kgo.NewClient(kgo.SeedBrokers(port(9392)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := adm.CreateTopic(ctx, 12, 3, nil, "spread"); err != nil {
		t.Fatal(err)
	}
	topics, err := adm.ListTopics(ctx, "spread")
	if err != nil {
		t.Fatal(err)
	}
	on := map[int32]int{}
	topics.EachPartition(func(p kadm.PartitionDetail) {
		for _, r := range p.Replicas {
			on[r]++
		}
	})
	if len(on) != 4 {
		t.Errorf("replicas by node: %v; want some on each of four", on)
	}
	for i := range 24 {
		if err := client.ProduceSync(ctx, &kgo.Record{Topic: "spread", Value: fmt.Append(nil, i)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// recordings are ours (a night in which the clock is set back, so that local times repeat) and those in the directory RECORDINGS names.
func recordings() ([]string, error) {
	ours, err := filepath.Glob(filepath.Join("testdata", "*.csv"))
	if err != nil {
		return nil, err
	}
	more, err := filepath.Glob(filepath.Join(os.Getenv("RECORDINGS"), "*.csv"))
	return append(ours, more...), err
}

// Every row of real recordings, replayed over MQTT, is in its core topic once, in the file's order.
func TestRecordingsAreWholeAndInOrder(t *testing.T) {
	c := startCluster(t, t.TempDir())
	files, err := recordings()
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	want := map[string][]string{}
	for _, f := range files {
		topic := "rec/" + strings.TrimSuffix(filepath.Base(f), ".csv")
		out, err := exec.Command(filepath.Join(root(t), "bin", "firmware-sim"), "replay", f, "--topic", topic, "--broker", "tcp://"+mqtt, "--quiet").CombinedOutput()
		if err != nil {
			t.Fatalf("replay %s: %v\n%s", f, err, out)
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n")[1:] {
			at, value, _ := strings.Cut(strings.TrimSpace(line), ",")
			want[topic] = append(want[topic], `{"timestamp":"`+at+`","value":`+value+`}`)
		}
	}
	got := readKeys(t, "mqtt", want)
	for topic, rows := range want {
		for i := range rows {
			if len(got[topic]) != len(rows) || got[topic][i] != rows[i] {
				t.Fatalf("%s: %d rows of %d; row %d", topic, len(got[topic]), len(rows), i)
			}
		}
	}
	c.stop(syscall.SIGTERM)
}

// readKeys reads a topic until it has as many values for every key as wanted, and then a little longer.
func readKeys(t *testing.T, topic string, want map[string][]string) map[string][]string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	left := 0
	for _, rows := range want {
		left += len(rows)
	}
	got := map[string][]string{}
	poll := func(d time.Duration) bool {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		fetches := client.PollFetches(ctx)
		fetches.EachRecord(func(r *kgo.Record) { got[string(r.Key)] = append(got[string(r.Key)], string(r.Value)); left-- })
		return fetches.NumRecords() > 0
	}
	for left > 0 {
		if !poll(patience) {
			t.Fatalf("%d records are missing", left)
		}
	}
	for poll(time.Second) {
	}
	return got
}
