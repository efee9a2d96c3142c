package shard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/raftlog"
	"sluice/core/record"
	"sluice/core/vfs"
)

// The power lab runs a shard of partitions through all that happens to one, and cuts the power at every sync of every node: each time the disk as
// the cut leaves it, with what was not synced lost before the sync and after it, or kept in part, is started again and put beside what the
// other replicas would have left. Whoever could be elected by a majority of these has everything that was acknowledged, once and at its offset.
type powerLab struct {
	*cluster
	t *testing.T

	mu     sync.Mutex
	alive  map[meta.NodeID]*vfs.Mem // disks with power
	synced map[meta.NodeID]*vfs.Mem // what each node's last sync left, as long as images has not got it
	images map[meta.NodeID]*image
	began  time.Time
	spent  time.Duration // looking at cuts
	acked  map[partition.Key][]acked
	starts map[partition.Key]int64 // the highest that was asked for
	gone   map[partition.Key]bool  // may be deleted
	random *rand.Rand
	cuts   int
	moment string
	kept   []photograph // some of the cuts, to be started whole

	founders []meta.Server
	members  map[meta.NodeID]*powerMember
	swap     sync.RWMutex // held while a node is replaced
	total    atomic.Int64
}

type acked struct {
	value  string
	offset int64
}

// photograph is all disks at one moment.
type photograph struct {
	what  string
	disks map[meta.NodeID]*vfs.Mem
	acked map[partition.Key][]acked
}

// powerMember is a node with a set of partitions as its state machine.
type powerMember struct {
	*member
	set  *partition.Set
	stop func()
}

// photographs are taken of this many cuts; each costs an election.
const photographs = 6

func newPowerLab(t *testing.T) *powerLab {
	l := &powerLab{
		t: t, alive: map[meta.NodeID]*vfs.Mem{}, began: time.Now(), synced: map[meta.NodeID]*vfs.Mem{}, images: map[meta.NodeID]*image{}, acked: map[partition.Key][]acked{},
		starts: map[partition.Key]int64{}, gone: map[partition.Key]bool{}, members: map[meta.NodeID]*powerMember{}, random: rand.New(rand.NewPCG(powerSeed(t), 0)),
	}
	l.cluster = &cluster{t: t, nodes: map[meta.NodeID]*member{}, gates: map[[2]meta.NodeID]*gate{}, tune: l.tune}
	t.Cleanup(l.cluster.close)
	old := logOptions
	t.Cleanup(func() { logOptions = old })
	logOptions = raftlog.Options{FirstSegmentBytes: 8 << 10, SegmentBytes: 16 << 10} // files are rolled and used again
	return l
}

func powerSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("POWER_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("POWER_SEED=%d", seed)
	return seed
}

func (l *powerLab) tune(id meta.NodeID, o *Options) {
	l.mu.Lock()
	defer l.mu.Unlock()
	disk := l.nodes[id].disk
	l.alive[id] = disk
	l.nodes[id].fault.SetHook(l.before(id, disk))
	l.nodes[id].fault.SetAfter(l.after(id, disk))
	o.CheckpointBytes = 24 << 10
	o.doubtFor = 50 * time.Millisecond // its disks are honest
}

var errNoPower = errors.New("the power is gone")

// before and after stand around everything that a node makes durable. A node that has lost its power meanwhile syncs nothing that anybody could hear of.
func (l *powerLab) before(id meta.NodeID, disk *vfs.Mem) vfs.Hook {
	return func(op vfs.Op, path string) error {
		if op == vfs.OpMkdirAll {
			if _, err := disk.Stat(path); err == nil {
				return nil
			}
		}
		if !slices.Contains(durableOps, op) || l.cut(id, disk, fmt.Sprintf("before %s of %s", op, path), func() bool { return l.random.IntN(2) == 0 }) {
			return nil
		}
		return errNoPower
	}
}

func (l *powerLab) after(id meta.NodeID, disk *vfs.Mem) vfs.Hook {
	return func(op vfs.Op, path string) error {
		if !l.cut(id, disk, fmt.Sprintf("after %s of %s", op, path), nil) {
			return errNoPower
		}
		return nil
	}
}

var durableOps = []vfs.Op{vfs.OpSync, vfs.OpSyncDir, vfs.OpMkdirAll}

// cut cuts the power of one node, in a copy of its disk, and compares what is left with what the others have synced. Without keep nothing that was
// not synced survives, and the result is what the node has from now on. It returns false for a node without power.
func (l *powerLab) cut(id meta.NodeID, disk *vfs.Mem, what string, keep func() bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive[id] != disk {
		return false
	}
	if keep == nil {
		l.synced[id] = disk.CrashClone(nil)
	}
	begin := time.Now()
	if l.t.Failed() || l.spent > begin.Sub(l.began)/2 { // the nodes need time, too: nobody is elected where a vote takes longer than an election
		return true
	}
	what = fmt.Sprintf("cut %d, %s on node %d, %s", l.cuts, what, id, l.moment)
	l.cuts++
	l.look(id, disk, what, keep)
	l.spent += time.Since(begin)
	return true
}

// look starts what a cut leaves.
func (l *powerLab) look(id meta.NodeID, disk *vfs.Mem, what string, keep func() bool) {
	for other, disk := range l.synced {
		i, err := recoverImage(disk, l.nodes[other].self)
		if err != nil {
			l.t.Errorf("%s: node %d does not start: %v", what, other, err)
			return
		}
		l.images[other] = i
		delete(l.synced, other)
	}
	images := maps.Clone(l.images)
	if keep == nil {
		l.photograph(what)
	} else {
		i, err := recoverImage(disk.CrashClone(keep), l.nodes[id].self)
		if err != nil {
			l.t.Errorf("%s: the node does not start: %v", what, err)
			return
		}
		images[id] = i
	}
	l.check(what, images)
}

func (l *powerLab) photograph(what string) {
	place := len(l.kept)
	if place == photographs {
		if place = l.random.IntN(l.cuts); place >= photographs {
			return
		}
		l.kept = slices.Delete(l.kept, place, place+1)
	} else if l.random.IntN(20) > 0 {
		return
	}
	p := photograph{what: what, disks: map[meta.NodeID]*vfs.Mem{}, acked: map[partition.Key][]acked{}}
	for id, disk := range l.alive {
		if m := l.nodes[id]; disk == nil {
			disk = m.disk
		}
		p.disks[id] = disk.CrashClone(nil)
	}
	for k, list := range l.acked {
		p.acked[k] = slices.Clip(list)
	}
	l.kept = append(l.kept, p)
}

func (l *powerLab) check(what string, images map[meta.NodeID]*image) {
	for id, i := range images {
		if i == nil {
			continue
		}
		for other, o := range images {
			if o != nil && other > id {
				if err := i.sameAs(o); err != nil {
					l.t.Errorf("%s: %v", what, err)
				}
			}
		}
		if !i.electable(images) {
			continue
		}
		for k, list := range l.acked {
			if err := checkAcked(i.partitions[k], list, l.starts[k]); err != nil {
				l.t.Errorf("%s: node %d could be elected: %v: %v", what, id, k, err)
				return
			}
		}
	}
}

// checkAcked says what is missing of a partition.
func checkAcked(c *contents, list []acked, start int64) error {
	if c == nil {
		if len(list) == 0 {
			return nil
		}
		return fmt.Errorf("the partition is lost with %d records", len(list))
	}
	if c.start > start {
		return fmt.Errorf("the log starts at %d, nobody asked for more than %d", c.start, start)
	}
	for _, a := range list {
		if a.offset < c.start {
			continue
		}
		if at, ok := c.at[a.value]; !ok || at != a.offset {
			return fmt.Errorf("%q was acknowledged at %d: there %v, at %d (start %d, end %d)", a.value, a.offset, ok, at, c.start, c.end)
		}
	}
	return nil
}

// powered is a set as its group sees it.
type powered struct{ *partition.Set }

func (p powered) Capture() (Checkpoint, error) {
	c, err := p.Set.Capture()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// power starts a node's group on the node that runs, founding it where that is wanted and was not done.
func (l *powerLab) power(m *member) *powerMember {
	if slices.Contains(l.founders, m.self) {
		if err := m.node.Bootstrap(testShard, l.founders); err != nil {
			l.t.Fatal(err)
		}
	}
	dirs, err := partition.NewDirs(m.node.o.FS, "data")
	if err != nil {
		l.t.Fatal(err)
	}
	p := &powerMember{member: m}
	p.set, err = partition.Open(partition.Options{
		FS: m.node.o.FS, Dirs: dirs, Shard: testShard, Files: l.files(m), Logger: testLogger(), Peers: func() []partition.Peer { return l.peers(m) },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	m.node.Handle("segments", func(ctx context.Context, _ meta.NodeID, c net.Conn) { _ = p.set.ServeSegments(ctx, c) })
	if m.group, err = m.node.Open(testShard, powered{p.set}); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.set.Run(ctx)
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		_ = p.set.Close()
	})
	l.members[m.id] = p
	return p
}

// files has the segments of every other node synced together.
func (l *powerLab) files(m *member) *commitlog.Files {
	files := commitlog.NewFiles(100)
	if m.id%2 == 0 {
		whole, err := vfs.OpenWhole(m.fault, "data")
		if err != nil {
			l.t.Fatal(err)
		}
		files.UseWhole(whole)
	}
	return files
}

func (l *powerLab) peers(m *member) (peers []partition.Peer) {
	l.cluster.mu.Lock()
	defer l.cluster.mu.Unlock()
	for id := range l.nodes {
		if id != m.id {
			peers = append(peers, partition.Peer{Name: fmt.Sprint(id), Dial: func(ctx context.Context) (net.Conn, error) { return m.node.Dial(ctx, id, "segments") }})
		}
	}
	return peers
}

// crash takes the power of some nodes at one moment.
func (l *powerLab) crash(ids ...meta.NodeID) {
	l.swap.Lock()
	defer l.swap.Unlock()
	l.mu.Lock()
	disks := map[meta.NodeID]*vfs.Mem{}
	for _, id := range ids {
		disks[id] = l.alive[id].CrashClone(nil)
		l.alive[id] = nil
	}
	l.mu.Unlock()
	for _, id := range ids {
		p := l.members[id]
		p.node.Close()
		p.member.stop()
		p.stop()
		p.group, p.disk, p.fault = nil, disks[id], vfs.NewFault(disks[id])
	}
}

func (l *powerLab) start(ids ...meta.NodeID) {
	l.swap.Lock()
	defer l.swap.Unlock()
	for _, id := range ids {
		m := l.nodes[id]
		m.start()
		l.power(m)
	}
}

// serving is the leader, nil when there is none.
func (l *powerLab) serving() *powerMember {
	l.swap.RLock()
	defer l.swap.RUnlock()
	for _, p := range l.members {
		if p.group != nil {
			if _, ok := p.group.Serving(); ok {
				return p
			}
		}
	}
	return nil
}

func (l *powerLab) lead(among ...meta.NodeID) *powerMember {
	l.t.Helper()
	var found *powerMember
	l.until("somebody leads", func() bool {
		found = l.serving()
		return found != nil && (len(among) == 0 || slices.Contains(among, found.id))
	})
	return found
}

func (l *powerLab) followers(leader *powerMember) (ids []meta.NodeID) {
	for _, r := range leader.group.Replicas() {
		if r.Server != leader.self && r.Voter {
			ids = append(ids, r.Server.Node)
		}
	}
	slices.Sort(ids)
	return ids
}

// propose has an entry committed, by whoever leads, once or more: all entries of the lab may come twice.
func (l *powerLab) propose(ctx context.Context, entry []byte) (any, error) {
	for {
		if p := l.serving(); p != nil {
			if result, err := p.group.Propose(entry).Wait(ctx); err == nil {
				return result, nil
			}
		}
		pause(ctx, time.Millisecond)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (l *powerLab) must(entry []byte) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := l.propose(ctx, entry); err != nil {
		l.t.Fatal(err)
	}
}

// produce writes to partitions in turn until ctx ends, idempotently, and notes what is acknowledged. Every entry holds a batch for two of them.
func (l *powerLab) produce(ctx context.Context, producer int64, keys ...partition.Key) {
	value := strings.Repeat("v", 150)
	for seq := int32(0); ctx.Err() == nil && !l.t.Failed(); seq++ {
		var items []partition.Append
		text := fmt.Sprintf("%d.%d.%s", producer, seq, value)
		for _, k := range keys {
			b := record.NewBuilder(record.BuilderOptions{ProducerID: producer, ProducerEpoch: 0, BaseSequence: seq})
			b.Add(int64(seq), nil, []byte(text), nil)
			items = append(items, partition.Append{Key: k, Batches: b.Build(nil)})
		}
		result, err := l.propose(ctx, partition.EncodeAppend(items))
		if err != nil {
			return
		}
		l.note(keys, text, result)
	}
}

func (l *powerLab) note(keys []partition.Key, text string, result any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	results, ok := result.([]partition.AppendResult)
	if !ok {
		l.t.Errorf("an append was answered with %v", result)
		return
	}
	for n, r := range results {
		switch {
		case l.gone[keys[n]]:
		case r.Err == nil:
			l.acked[keys[n]] = append(l.acked[keys[n]], acked{text, r.Base})
		case !errors.Is(r.Err, partition.ErrUnknownPartition):
			l.t.Errorf("%.20s was refused: %v", text, r.Err)
		}
	}
	l.total.Add(1)
}

// enough waits until n more entries are acknowledged.
func (l *powerLab) enough(n int64) {
	l.t.Helper()
	until := l.total.Load() + n
	l.until("the producers get on", func() bool { return l.total.Load() >= until || l.t.Failed() })
}

func (l *powerLab) at(moment string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moment = moment
	if testLogger() != nil {
		l.t.Log(moment, l.cuts)
	}
}

func powerKey(name string) partition.Key {
	var k partition.Key
	copy(k.Topic[:], name)
	return k
}

func (l *powerLab) create(k partition.Key) {
	name := strings.TrimRight(string(k.Topic[:]), "\x00")
	l.must(partition.EncodeCreate(partition.Create{Key: k, Name: name, Config: partition.LogConfig{SegmentBytes: 4 << 10}}))
}

// retain lets a log start a number of records before its end.
func (l *powerLab) retain(k partition.Key, records int64) {
	p, ok := l.lead().set.Get(k)
	if !ok {
		l.t.Fatalf("%v is not there", k)
	}
	start := p.End() - records
	l.mu.Lock()
	l.starts[k] = max(l.starts[k], start)
	l.mu.Unlock()
	l.must(partition.EncodeStart([]partition.Start{{Key: k, Offset: start}}))
}

// drop deletes a partition.
func (l *powerLab) drop(k partition.Key) {
	l.mu.Lock()
	delete(l.acked, k)
	l.gone[k] = true
	l.mu.Unlock()
	l.must(partition.EncodeDelete(k))
}

// level waits until the nodes have all that the leader has.
func (l *powerLab) level(ids ...meta.NodeID) {
	l.t.Helper()
	l.until("all are level", func() bool {
		leader := l.serving()
		if leader == nil {
			return l.t.Failed()
		}
		for _, id := range ids {
			if !leader.group.inSync(l.nodes[id].self) || !l.members[id].set.Complete() {
				return l.t.Failed()
			}
		}
		return true
	})
}
