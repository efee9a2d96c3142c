package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/shard"
	"sluice/core/vfs"
)

// segmentsTopic is cut into many small files.
func segmentsTopic(name string) meta.NewTopic {
	return meta.NewTopic{Name: name, Partitions: 1, ReplicationFactor: 3, Configs: map[string]string{"segment.bytes": fmt.Sprint(1 << 20)}}
}

// scrubbing makes a node look at its segments often. Its logs are kept short: they are in memory, twice, as what was synced and as what was not.
func scrubbing(o Options) Options {
	o.ScrubInterval, o.ScrubBytesPerSecond, o.CheckpointBytes = 300*time.Millisecond, 64<<20, 8<<20
	return o
}

func scrubbingTrio(t *testing.T) []*member {
	t.Helper()
	a := start(t, scrubbing(options(1)))
	b := start(t, scrubbing(options(2, a.Addr())))
	c := start(t, scrubbing(options(3, a.Addr())))
	all := []*member{a, b, c}
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	return all
}

// writeUntil appends to a partition until stop is closed, wherever its leader is, and counts what was acknowledged. It is in less
// of a hurry when that is a lot: all of it is in memory, several times.
func writeUntil(stop <-chan struct{}, all func() []*member, key partition.Key, value int) (acked int) {
	for {
		select {
		case <-stop:
			return acked
		default:
		}
		wait := 5 * time.Millisecond
		if slices.ContainsFunc(all(), func(m *member) bool { return m.end(key)*int64(value) > 8<<20 }) { // some closed segments
			wait = 50 * time.Millisecond
		}
		pause(context.Background(), wait)
		for _, m := range all() {
			_, g, ok := m.Local(key.Topic, key.Index)
			if !ok {
				continue
			}
			if _, leads := g.Serving(); !leads {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			res, err := g.Propose(partition.EncodeAppend([]partition.Append{{Key: key, Batches: valueBatch(value)}})).Wait(ctx)
			cancel()
			if results, ok := res.([]partition.AppendResult); err == nil && ok && results[0].Err == nil {
				acked++
			}
		}
	}
}

func (m *member) part(key partition.Key) *partition.Partition {
	p, _, _ := m.Local(key.Topic, key.Index)
	return p
}

// end is where a partition ends on a node, 0 while it has none.
func (m *member) end(key partition.Key) int64 {
	if p := m.part(key); p != nil {
		return p.End()
	}
	return 0
}

// segmentFiles returns the names of a partition's segments on a node.
func (m *member) segmentFiles(topic string) []string {
	dir := "/data/" + topic + "-0"
	names, err := m.o.FS.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a replica that is made anew has none yet
		m.t.Fatal(err)
	}
	var out []string
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			out = append(out, dir+"/"+name)
		}
	}
	return out
}

// flipByte flips a bit of a byte of a file, of its last one where the file is shorter.
func flipByte(t *testing.T, fsys vfs.FS, name string, at int64) {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil || size == 0 {
		t.Fatalf("%s has %d bytes: %v", name, size, err)
	}
	at = min(at, size-1)
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (at % 8)
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// sameFiles waits until the files of a topic are equal byte for byte everywhere.
func sameFiles(t *testing.T, all []*member, topic string) {
	t.Helper()
	content := func(m *member) map[string][]byte {
		files := map[string][]byte{}
		for _, name := range m.segmentFiles(topic) {
			data, err := vfs.ReadFile(m.o.FS, name)
			if err != nil {
				return nil
			}
			files[name] = data
		}
		return files
	}
	all[0].eventually("equal files", func() bool {
		want := content(all[0])
		for _, m := range all[1:] {
			have := content(m)
			if len(have) != len(want) || len(want) == 0 {
				return false
			}
			for name := range want {
				if !bytes.Equal(want[name], have[name]) {
					return false
				}
			}
		}
		return true
	})
}

// TestFlippedBitIsHealed flips a bit in a closed segment of each running replica in turn, under load. It is found and
// mended without anybody's help, leadership moves away from it, and nothing damaged is read.
func TestFlippedBitIsHealed(t *testing.T) {
	all := scrubbingTrio(t)
	all[0].create(segmentsTopic("t"))
	key := partition.Key{Topic: all[0].Image().Topic("t").ID}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { writeUntil(stop, func() []*member { return all }, key, 50<<10) })
	all[0].eventually("closed segments", func() bool { return len(all[0].segmentFiles("t")) > 3 })
	for _, m := range all {
		m.eventually("closed segments", func() bool { return len(m.segmentFiles("t")) > 3 })
		repaired := m.repaired()
		flipByte(t, m.o.FS, m.segmentFiles("t")[1], 5000)
		m.eventually("the repair", func() bool {
			readsGood(t, m, key)
			return m.repaired() > repaired
		})
	}
	close(stop)
	wg.Wait()
	all[0].eventually("everything in sync", func() bool { return underReplicated(all[0].Image()) == 0 })
	sameFiles(t, all, "t")
}

func (m *member) repaired() int {
	var out bytes.Buffer
	m.WritePrometheus(&out)
	sum := 0
	for line := range strings.Lines(out.String()) {
		var n int
		if strings.HasPrefix(line, "sluice_repair_repaired_segments_total") {
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err == nil {
				sum += n
			}
		}
	}
	return sum
}

// readsGood reads the beginning of a partition on a node, and fails when it gets something that was not written.
func readsGood(t *testing.T, m *member, key partition.Key) {
	t.Helper()
	p := m.part(key)
	for offset := int64(0); offset < min(m.end(key), 60); {
		chunk, err := p.Read(offset, 200<<10, false)
		if err != nil || chunk == nil {
			return // refused: the client asks again, here or elsewhere
		}
		data, err := chunk.Bytes()
		next := chunk.Next()
		chunk.Release()
		if err != nil {
			return
		}
		checkBatches(t, data, offset)
		offset = next
	}
}

// valueBatch is one record with a value of that size.
func valueBatch(size int) []byte {
	b := record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer, BaseSequence: -1})
	b.Add(time.Now().UnixMilli(), nil, bytes.Repeat([]byte("v"), size), nil)
	return b.Build(nil)
}

// checkBatches fails for bytes that are not whole, good batches from an offset on.
func checkBatches(t *testing.T, data []byte, offset int64) {
	t.Helper()
	for rest := data; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.CheckCRC(); err != nil || b.BaseOffset() != offset {
			t.Fatalf("batch %d read at %d: %v", b.BaseOffset(), offset, err)
		}
		offset, rest = b.NextOffset(), after
	}
}

// healthy waits until every replica of every node runs, votes, and is in sync.
func healthy(t *testing.T, all []*member) {
	t.Helper()
	all[0].eventually("everything in sync", func() bool {
		for _, m := range all {
			if len(m.heals.status()) > 0 || m.group().Err() != nil || m.Image().Index() < all[0].Image().Index() {
				return false
			}
			for _, s := range all[0].Image().Shards() {
				r := m.replica(s.ID)
				if r == nil || r.group.Err() != nil || !r.set.Complete() {
					return false
				}
				if _, leads := r.group.Serving(); leads && votersInSync(r.group) != 3 {
					return false
				}
			}
		}
		return underReplicated(all[0].Image()) == 0 && votersInSync(leaderOf(t, all).group()) == 3
	})
}

func votersInSync(g *shard.Group) int {
	n := 0
	for _, x := range g.Replicas() {
		if x.Voter && x.InSync {
			n++
		}
	}
	return n
}

// underLoad writes to a partition while do runs, and checks afterwards that every replica is whole, has what was
// acknowledged, and has the same files.
func underLoad(t *testing.T, all []*member, topic string, do func()) {
	t.Helper()
	key := partition.Key{Topic: all[0].Image().Topic(topic).ID}
	var nodes atomic.Pointer[[]*member]
	set := func() { now := slices.Clone(all); nodes.Store(&now) }
	set()
	stop := make(chan struct{})
	acked := make(chan int, 1)
	go func() { acked <- writeUntil(stop, func() []*member { return *nodes.Load() }, key, 40<<10) }()
	end := all[0].end(key)
	finish := sync.OnceFunc(func() { close(stop) })
	defer finish() // of a test that fails as well
	do()
	set()
	all[0].eventually("further records", func() bool { return all[0].end(key) > end+20 })
	healthy(t, all)
	finish()
	n := <-acked
	sameFiles(t, all, topic)
	for _, m := range all {
		m.eventually("a replica with all that was acknowledged", func() bool { return m.end(key) >= int64(n) })
	}
}

// faultTrio is a trio whose disks can be made to fail.
func faultTrio(t *testing.T) ([]*member, []*vfs.Fault) {
	t.Helper()
	var all []*member
	var disks []*vfs.Fault
	for id := meta.NodeID(1); id <= 3; id++ {
		o := scrubbing(options(id))
		if len(all) > 0 {
			o.Join = []string{all[0].Addr()}
		}
		fault := vfs.NewFault(o.FS)
		o.FS = fault
		all, disks = append(all, start(t, o)), append(disks, fault)
	}
	all[0].eventually("three voters", func() bool { return voters(all[0]) == 3 })
	return all, disks
}

// TestFailedSyncHeals: every sync of one node fails for a moment, also those of its metadata. Its replicas stop and come
// back by themselves; the others go on.
func TestFailedSyncHeals(t *testing.T) {
	beside(t)
	all, disks := faultTrio(t)
	all[0].create(segmentsTopic("t"))
	for i, m := range all {
		underLoad(t, all, "t", func() {
			var failed atomic.Int64
			disks[i].SetHook(func(op vfs.Op, name string) error {
				if op == vfs.OpSync {
					failed.Add(1)
					return fmt.Errorf("sync %s: %w", name, syscall.EIO)
				}
				return nil
			})
			m.eventually("a replica to stop", func() bool { return failed.Load() > 0 && len(m.heals.status()) > 0 })
			disks[i].SetHook(nil)
		})
	}
}

// TestFullDiskHeals: one node's disk takes no more data for a while.
func TestFullDiskHeals(t *testing.T) {
	beside(t)
	all, disks := faultTrio(t)
	all[0].create(segmentsTopic("t"))
	m := all[2]
	underLoad(t, all, "t", func() {
		disks[2].SetHook(func(op vfs.Op, name string) error {
			if op == vfs.OpWrite || op == vfs.OpCreate {
				return fmt.Errorf("write %s: %w", name, syscall.ENOSPC)
			}
			return nil
		})
		disks[2].SetFree(0)
		key := partition.Key{Topic: all[0].Image().Topic("t").ID}
		m.eventually("a replica to stop", func() bool { return len(m.heals.status()) > 0 })
		end := all[0].end(key)
		disks[2].SetFree(1 << 40) // the others need not refuse records: it is the disk's own doing
		all[0].eventually("the others to go on", func() bool { return all[0].end(key) > end })
		disks[2].SetHook(nil)
	})
}

// TestDamagedFilesHeal damages the files of a stopped node in every way and starts it: it heals without anybody's help.
func TestDamagedFilesHeal(t *testing.T) {
	beside(t)
	whole := t // nodes live longer than one case
	all := scrubbingTrio(t)
	all[0].create(segmentsTopic("t"))
	id := all[0].Image().Topic("t").Partitions[0].Shard
	dir := fmt.Sprintf("/data/shards/%d", id)
	damages := []struct {
		name   string
		damage func(t *testing.T, fsys vfs.FS)
	}{
		{"segments cut and gone", func(t *testing.T, fsys vfs.FS) {
			files := listSuffix(t, fsys, "/data/t-0", ".log")
			removeFile(t, fsys, files[0])
			cutTo(t, fsys, files[len(files)-1], 100)
			flipByte(t, fsys, files[1], 777)
		}},
		{"indexes", func(t *testing.T, fsys vfs.FS) {
			for i, name := range listSuffix(t, fsys, "/data/t-0", ".slx") {
				if i%2 == 0 {
					flipByte(t, fsys, name, 200)
				} else {
					cutTo(t, fsys, name, 130)
				}
			}
		}},
		{"partition.metadata", func(t *testing.T, fsys vfs.FS) { cutTo(t, fsys, "/data/t-0/partition.metadata", 20) }},
		{"origin", func(t *testing.T, fsys vfs.FS) { flipByte(t, fsys, "/data/origin.id", 3) }},
		{"raft log flipped", func(t *testing.T, fsys vfs.FS) {
			for _, name := range listSuffix(t, fsys, dir+"/log", ".rlog") {
				flipByte(t, fsys, name, 300)
			}
		}},
		{"raft log cut", func(t *testing.T, fsys vfs.FS) {
			for _, name := range listSuffix(t, fsys, dir+"/log", ".rlog") {
				cutTo(t, fsys, name, 0)
			}
		}},
		{"raft log gone", func(t *testing.T, fsys vfs.FS) { removeAll(t, fsys, dir+"/log") }},
		{"replica gone", func(t *testing.T, fsys vfs.FS) { removeAll(t, fsys, dir) }},
		{"checkpoint flipped", func(t *testing.T, fsys vfs.FS) { flipByte(t, fsys, dir+"/checkpoint", 50) }},
		{"checkpoint cut", func(t *testing.T, fsys vfs.FS) { cutTo(t, fsys, dir+"/checkpoint", 50) }},
		{"checkpoint gone", func(t *testing.T, fsys vfs.FS) { removeFile(t, fsys, dir+"/checkpoint") }},
		{"metadata log flipped", func(t *testing.T, fsys vfs.FS) {
			flipByte(t, fsys, listSuffix(t, fsys, "/data/shards/0/log", ".rlog")[0], 100)
		}},
		{"metadata gone", func(t *testing.T, fsys vfs.FS) { removeAll(t, fsys, "/data/shards/0") }},
	}
	for i, d := range damages {
		ok := t.Run(d.name, func(t *testing.T) {
			at := i % 3
			for _, m := range all {
				m.t = t
			}
			underLoad(t, all, "t", func() {
				all[at].eventually("closed segments", func() bool { return len(all[at].segmentFiles("t")) > 3 })
				all[at].stop()
				d.damage(t, all[at].o.FS)
				all[at] = start(whole, all[at].o)
				all[at].t = t
			})
		})
		if !ok {
			t.FailNow() // the nodes are not what the next case expects
		}
	}
}

func listSuffix(t *testing.T, fsys vfs.FS, dir, suffix string) (out []string) {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, suffix) {
			out = append(out, dir+"/"+name)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no file *%s", dir, suffix)
	}
	return out
}

func cutTo(t *testing.T, fsys vfs.FS, name string, size int64) {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

func removeFile(t *testing.T, fsys vfs.FS, name string) {
	t.Helper()
	if err := fsys.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func removeAll(t *testing.T, fsys vfs.FS, name string) {
	t.Helper()
	if err := fsys.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// TestFailedSyncOfTheFileSystemHeals: when everything was to be synced at once and that failed, all replicas of the node are
// opened again.
func TestFailedSyncOfTheFileSystemHeals(t *testing.T) {
	beside(t)
	all, disks := faultTrio(t)
	all[0].create(segmentsTopic("t"))
	m := all[1]
	underLoad(t, all, "t", func() {
		disks[1].SetHook(func(op vfs.Op, name string) error {
			if op == vfs.OpSync && name == m.o.DataDir {
				return fmt.Errorf("sync: %w", syscall.EIO)
			}
			return nil
		})
		if err := m.Controller.o.Files.SyncTogether(nil, nil); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		disks[1].SetHook(nil)
		m.progress.notify()
		m.eventually("a new beginning", func() bool { return m.Controller.o.Files.WholeFailed() == nil })
	})
}

// TestMostReplicasDamaged: with two of three replicas damaged nobody may begin anew. What is there stays, the status says what
// to do, and with the files whole again all is well.
func TestMostReplicasDamaged(t *testing.T) {
	beside(t)
	all := scrubbingTrio(t)
	all[0].create(segmentsTopic("t"))
	id := all[0].Image().Topic("t").Partitions[0].Shard
	dir := fmt.Sprintf("/data/shards/%d/log", id)
	underLoad(t, all, "t", func() {
		all[0].eventually("closed segments", func() bool { return len(all[0].segmentFiles("t")) > 3 })
		for _, i := range []int{0, 1} {
			all[i].stop()
		}
		damage := func() {
			for _, m := range all[:2] {
				for _, name := range listSuffix(t, m.o.FS, dir, ".rlog") {
					flipByte(t, m.o.FS, name, 300)
				}
			}
		}
		damage()
		var again []*member
		for _, m := range all[:2] {
			again = append(again, launch(t, m.o))
		}
		for i, m := range again {
			all[i] = m.awaitReady()
		}
		for _, m := range all[:2] {
			m.eventually("the word that it is damaged", func() bool {
				return slices.ContainsFunc(m.heals.status(), func(s HealStatus) bool {
					return s.Shard == id && s.Damaged && s.Hint != "" && s.Tries > 4
				})
			})
			m.stop()
		}
		damage() // and back
		again = again[:0]
		for _, m := range all[:2] {
			again = append(again, launch(t, m.o))
		}
		for i, m := range again {
			all[i] = m.awaitReady()
		}
	})
}

// TestDamagedIdentityHeals flips each byte of either identity file, cuts it, and removes it: the node is who it was.
func TestDamagedIdentityHeals(t *testing.T) {
	o := options(1)
	m := start(t, o)
	want := m.id.read()
	m.stop()
	o = m.o
	for _, name := range []string{"/data/" + identityFile, "/data/" + identityCopy} {
		raw, err := vfs.ReadFile(o.FS, name)
		if err != nil {
			t.Fatal(err)
		}
		for at := range int64(len(raw)) + 2 {
			switch at - int64(len(raw)) {
			case 0:
				removeFile(t, o.FS, name)
			case 1:
				cutTo(t, o.FS, name, 30)
			default:
				flipByte(t, o.FS, name, at)
			}
			id, err := openIdentity(o.FS, "/data", 1)
			if err != nil {
				t.Fatalf("%s, byte %d: %v", name, at, err)
			}
			got := id.read()
			if got.Incarnation != want.Incarnation || got.ClusterID != want.ClusterID || !slices.Equal(got.Peers, want.Peers) {
				t.Fatalf("%s, byte %d: %+v, want %+v", name, at, got, want)
			}
			if err := id.close(); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{identityFile, identityCopy} {
				if f, err := readIdentity(o.FS, "/data/"+name); err != nil || f.Sum == "" {
					t.Fatalf("%s is not mended: %v", name, err)
				}
			}
		}
	}
}
