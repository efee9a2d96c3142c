package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"math/bits"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDamageTakesClosedSegmentsAndRaftLogs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a-0/00.log", "a-0/07.log", "a-0/09.log", "a-1/00.log", "a-0/00.index", "shards/1/log/1.rlog", "shards/2/log/1.rlog", "shards/2/votes"} {
		write(t, dir, name, []byte(name))
	}
	segments, err := closedSegments(dir)
	if want := []string{filepath.Join(dir, "a-0/00.log"), filepath.Join(dir, "a-0/07.log")}; err != nil || !slices.Equal(segments, want) {
		t.Errorf("closed segments %v, %v", segments, err)
	}
	logs, err := raftLogs(dir)
	if err != nil || len(logs) != 2 {
		t.Errorf("Raft logs %v, %v", logs, err)
	}
}

// One bit or the end: never more, and the same for the same value.
func TestDamageIsSmallAndOfItsValue(t *testing.T) {
	whole := bytes.Repeat([]byte("sluice"), 500)
	cut := 0
	for value := range 60 {
		var results [2][]byte
		for i := range results {
			dir := t.TempDir()
			write(t, dir, "a-0/00.log", whole)
			write(t, dir, "a-0/01.log", whole)
			h, err := damage(dir, Fault{Kind: Damage, Value: value})
			if err != nil || h.file != "a-0/00.log" {
				t.Fatal(h, err)
			}
			if results[i], err = os.ReadFile(filepath.Join(dir, h.file)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(results[0], results[1]) {
			t.Errorf("value %d damages differently", value)
		}
		if len(results[0]) < len(whole) {
			cut++
			if !bytes.HasPrefix(whole, results[0]) {
				t.Errorf("value %d cuts and changes", value)
			}
			continue
		}
		flipped := 0
		for i := range whole {
			flipped += bits.OnesCount8(whole[i] ^ results[0][i])
		}
		if flipped != 1 {
			t.Errorf("value %d flips %d bits", value, flipped)
		}
	}
	if cut == 0 || cut == 60 {
		t.Errorf("%d of 60 are cut", cut)
	}
}

func TestDamageOfNothing(t *testing.T) {
	if h, err := damage(t.TempDir(), Fault{Kind: Damage}); err != nil || h.file != "" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestRepaired(t *testing.T) {
	dir := t.TempDir()
	r := &run{cluster: &cluster{}, damaged: []harm{{node: 1, file: "a-0/00.log"}}}
	for _, name := range []string{"one", "two", "three"} {
		r.cluster.disks = append(r.cluster.disks, disk{dir: filepath.Join(dir, name)})
		write(t, dir, name+"/data/a-0/00.log", []byte("good"))
	}
	write(t, dir, "one/data/a-0/00.log", []byte("goot"))
	if err := r.repaired(); err == nil {
		t.Error("a damaged segment is taken for repaired")
	}
	if err := os.Remove(filepath.Join(dir, "one/data/a-0/00.log")); err != nil {
		t.Fatal(err)
	}
	if err := r.repaired(); err == nil {
		t.Error("a segment that is gone is taken for repaired, though others have it")
	}
	write(t, dir, "one/data/a-0/00.log", []byte("good"))
	if err := r.repaired(); err != nil || len(r.damaged) != 0 {
		t.Error(err, r.damaged)
	}
	r.damaged = []harm{{node: 1, file: "a-0/07.log"}}
	if err := r.repaired(); err != nil {
		t.Errorf("what retention has removed everywhere is waited for: %v", err)
	}
}

// A partition that has moved has its plain name on one node before it has it on the other.
func TestRepairedElsewhere(t *testing.T) {
	dir := t.TempDir()
	const own, plain = "a-0.00ff.7/00.log", "a-0/00.log"
	r := &run{cluster: &cluster{}}
	for _, name := range []string{"one", "two"} {
		r.cluster.disks = append(r.cluster.disks, disk{dir: filepath.Join(dir, name)})
	}
	write(t, dir, "one/data/"+own, []byte("goot"))
	write(t, dir, "two/data/"+plain, []byte("good"))
	write(t, dir, "two/data/a-0.00ff-stray/00.log", []byte("goot"))
	for _, file := range []string{own, plain} {
		r.damaged = []harm{{node: 1, file: file}}
		if err := r.repaired(); err == nil {
			t.Errorf("%s is taken for repaired", file)
		}
	}
	write(t, dir, "one/data/"+own, []byte("good"))
	if err := r.repaired(); err != nil {
		t.Error(err)
	}
}

// segmentOf is a batch without records, whose checksum is right.
func segmentOf(producer int64) []byte { return batch(producer, 0, 0, [][]byte{[]byte("value")}) }

func TestCompareReplicas(t *testing.T) {
	good := segmentOf(1)
	for name, c := range map[string]struct {
		replicas  [3][]byte
		divergent string
		few       bool
	}{
		"equal":     {[3][]byte{good, good, good}, "", false},
		"differ":    {[3][]byte{good, segmentOf(2), good}, "diverged", false},
		"corrupt":   {[3][]byte{good, append(slices.Clone(good[:len(good)-1]), 'x'), good}, "corrupt", false},
		"cut":       {[3][]byte{good, good[:40], good}, "corrupt", false},
		"shorter":   {[3][]byte{good, {}, good}, "", false},
		"one lacks": {[3][]byte{good, nil, good}, "", true},
	} {
		var dirs []string
		root := t.TempDir()
		for i, data := range c.replicas {
			node := filepath.Join(root, string(rune('a'+i)))
			dirs = append(dirs, node)
			write(t, node, "node.json", nil)
			write(t, node, "__consumer_offsets-0/00000000000000000000.log", []byte{byte(i)})
			if data != nil {
				write(t, node, steadyTopic+"-0/00000000000000000000.log", data)
			}
		}
		got, err := compareReplicas(dirs)
		if err != nil {
			t.Fatal(name, err)
		}
		if found := strings.Join(got.Divergent, " "); (found == "") != (c.divergent == "") || !strings.Contains(found, c.divergent) {
			t.Errorf("%s: %v", name, got.Divergent)
		}
		if got.Partitions != 1 || (len(got.Few) > 0) != c.few {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What a partition has left behind when it moved is no replica.
func TestReplicasAreOnNodes(t *testing.T) {
	root := t.TempDir()
	var dirs []string
	for _, name := range []string{"core-1", "core-10", "core-2"} {
		dirs = append(dirs, filepath.Join(root, name))
		write(t, root, name+"/node.json", nil)
	}
	for _, path := range []string{"core-1/steady-0", "core-1/steady-0.17.3", "core-10/steady-0"} {
		write(t, root, path+"/00000000000000000000.log", segmentOf(1))
	}
	got, err := compareReplicas(dirs)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Few) != 1 || got.Few[0] != "steady-0: 2" || len(got.Twice) != 1 || !strings.HasPrefix(got.Twice[0], "steady-0: 2 in ") || single(dirs) == nil {
		t.Errorf("%+v", got)
	}
	if err := os.RemoveAll(filepath.Join(dirs[0], "steady-0.17.3")); err != nil {
		t.Fatal(err)
	}
	write(t, root, "core-2/steady-0.17.3/00000000000000000000.log", segmentOf(1))
	if got, err = compareReplicas(dirs); err != nil || len(got.Few)+len(got.Twice) > 0 || single(dirs) != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDiskLosesItsData(t *testing.T) {
	d := disk{dir: t.TempDir()}
	write(t, d.dir, "data/a-0/00.log", []byte("x"))
	kept := write(t, d.dir, "lost+found/x", nil)
	if err := d.lose(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.data()); !os.IsNotExist(err) {
		t.Error("data are left")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if err := d.empty(); err != nil {
		t.Errorf("without ballast: %v", err)
	}
}

func TestSwitchboardRequests(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	status := http.StatusOK
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body any
		_ = json.NewDecoder(r.Body).Decode(&body)
		data, _ := json.Marshal(body)
		got = append(got, r.Method+" "+r.URL.Path+" "+string(data))
		w.WriteHeader(status)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-done })
	b, ctx := switchboard{socket}, context.Background()
	if err := b.files(ctx, fileRule{Op: "sync", Path: "**", Mode: "slow", DelayMs: 50}); err != nil {
		t.Fatal(err)
	}
	if err := b.files(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.clock(ctx, -time.Hour); err != nil {
		t.Fatal(err)
	}
	if !b.answers(ctx) || (switchboard{socket + "-none"}).answers(ctx) {
		t.Error("who answers is not told from who does not")
	}
	want := []string{
		`POST /fs {"rules":[{"delayMs":50,"mode":"slow","op":"sync","path":"**"}]}`, `POST /fs {"rules":[]}`, `POST /clock {"offsetMs":-3600000}`, `GET /stats null`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	status = http.StatusBadRequest
	if err := b.clock(ctx, 0); err == nil {
		t.Error("a refused fault is taken for done")
	}
}
