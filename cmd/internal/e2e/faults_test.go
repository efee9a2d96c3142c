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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest"
)

const (
	// faultTime is how long each load runs while processes are killed; longer where that was not enough for killsMin or cutsMin of them and ackedMin
	// records, as on a slow machine.
	faultTime = 30 * time.Second
	killsMin  = 3
	cutsMin   = 6
	ackedMin  = 2000
)

// storm kills processes in turn until ctx ends and enough says so: each is given time to be missed, started again, and waited for.
func (c *cluster) storm(ctx context.Context, names []string, enough func(kills int) bool) (kills int) {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	late := time.Now().Add(faultTime + patience)
	over := func() bool { return ctx.Err() != nil && (enough(kills) || time.Now().After(late)) }
	pause := func(d time.Duration) {
		done := ctx.Done()
		if !over() {
			done = nil
		}
		select {
		case <-done:
		case <-time.After(d):
		}
	}
	for pause(2 * time.Second); !over(); kills++ {
		name := names[r.IntN(len(names))]
		c.kill(name)
		pause(time.Duration(1+r.IntN(3)) * time.Second)
		c.restart(name)
		c.ready(name)
		pause(time.Second)
	}
	return kills
}

// load is a verified load in the background, until it is told to finish.
type load struct {
	t     *testing.T
	acked atomic.Int64
	until chan struct{}
	ran   chan error
	r     loadtest.VerifyResult
}

// startLoad returns when the first record is acknowledged: the topic is there.
func (c *cluster) startLoad(v loadtest.Verify) *load {
	c.t.Helper()
	l := &load{t: c.t, until: make(chan struct{}), ran: make(chan error, 1)}
	heard := make(chan struct{})
	first := sync.OnceFunc(func() { close(heard) })
	v.Heard = func(string, time.Time) { l.acked.Add(1); first() }
	v.Until, v.Duration, v.Late = l.until, 10*patience, patience
	go func() {
		var err error
		l.r, err = v.Run(context.Background())
		l.ran <- err
	}()
	select {
	case <-heard:
	case err := <-l.ran:
		c.t.Fatalf("nothing was acknowledged: %v", err)
	}
	return l
}

func (l *load) finish() loadtest.VerifyResult {
	l.t.Helper()
	close(l.until)
	if err := <-l.ran; err != nil {
		l.t.Fatal(err)
	}
	return l.r
}

func (c *cluster) verify(v loadtest.Verify, names ...string) loadtest.VerifyResult {
	c.t.Helper()
	load := c.startLoad(v)
	ctx, cancel := context.WithTimeout(context.Background(), faultTime)
	defer cancel()
	kills := c.storm(ctx, names, func(kills int) bool { return kills >= killsMin && load.acked.Load() >= ackedMin })
	r := load.finish()
	if !r.Verdict.OK() {
		c.t.Errorf("after %d kills: %v", kills, r.Verdict.Violations)
	}
	if kills < killsMin || r.Verdict.Acked < ackedMin {
		c.t.Errorf("%d kills, %d records acknowledged: the test has not tested much", kills, r.Verdict.Acked)
	}
	c.t.Logf("%d kills, %d acknowledged, %d found, %d resent by devices, pauses %v", kills, r.Verdict.Acked, r.Verdict.Found, r.Verdict.Resent, r.PartitionPauseMs)
	return r
}

func TestKillCoreNodes(t *testing.T) {
	c := startCluster(t, t.TempDir())
	r := c.verify(loadtest.Verify{
		Kafka: loadtest.Kafka{Brokers: brokers, Partitions: 6, ReplicationFactor: 3}, Writers: 3, Rate: 500, Size: 200,
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
		Kafka: loadtest.Kafka{Brokers: brokers, Topic: "mqtt"}, Writers: 20, Rate: 400, Size: 100,
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
		c.gone("one of four", pid)
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
	createTopic(t, adm, 12, "spread")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	wait(t, "each of four nodes has replicas", func() error {
		topics, err := adm.ListTopics(ctx, "spread")
		if err != nil {
			return err
		}
		on := map[int32]int{}
		topics.EachPartition(func(p kadm.PartitionDetail) {
			for _, r := range p.Replicas {
				on[r]++
			}
		})
		if len(on) != 4 {
			return fmt.Errorf("replicas by node: %v", on)
		}
		return nil
	})
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
		for ctx.Err() == nil { // errors of a moment come as fetches without records
			fetches := client.PollFetches(ctx)
			fetches.EachRecord(func(r *kgo.Record) { got[string(r.Key)] = append(got[string(r.Key)], string(r.Value)); left-- })
			if fetches.NumRecords() > 0 {
				return true
			}
		}
		return false
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
