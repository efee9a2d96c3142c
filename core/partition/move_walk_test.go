package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"sluice/core/meta"
	"sluice/core/record"
	"sluice/core/vfs"
)

// TestMoveWalk moves partitions to and fro between two shards whose replicas are on the same two nodes,
// while they are appended to, nodes apply at their own pace, take checkpoints, lose their power at any
// moment and are given each other's checkpoints. Nothing accepted may be lost, doubled or reordered.
func TestMoveWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newMoveWalk(t)
		defer w.close()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.step()
		}
		w.finish()
	})
}

const moveShards = 2

// moveWalk is two shards on two nodes, and what the metadata would say.
type moveWalk struct {
	t     *rapid.T
	logs  [moveShards]entries
	term  uint64
	index uint64 // of the metadata: ids of moves
	nodes []*moveNode
	parts []*movedPartition
	known [moveShards][]string // answers, by index
	late  [moveShards][][]byte // entries that may come again at any time
}

// movedPartition is a partition as the metadata know it, with what it must hold.
type movedPartition struct {
	key     Key
	shard   int
	move    uint64 // under way, 0: none
	section []byte // of the source, once it is frozen
	adopted bool   // the entry is in the target's log
	next    int32  // sequence
	batches [][]byte
	base    int32
}

// moveNode is one node: the sets of both shards in one data directory.
type moveNode struct {
	w      *moveWalk
	id     int
	fs     *vfs.Mem
	dirs   *Dirs
	shards [moveShards]*moveReplica
	stages map[*movedPartition]*Stage
}

type moveReplica struct {
	set        *Set
	applied    int
	manifest   []byte
	manifestAt int
}

func newMoveWalk(t *rapid.T) *moveWalk {
	w := &moveWalk{t: t, term: 1}
	for i := range 2 {
		n := &moveNode{w: w, id: i, fs: vfs.NewMem()}
		for s := range n.shards {
			n.shards[s] = &moveReplica{}
		}
		w.nodes = append(w.nodes, n)
		n.open()
	}
	for i := range 2 {
		p := &movedPartition{key: Key{topicID("moved"), int32(i)}}
		w.parts = append(w.parts, p)
		w.logs[0].add(w.term, EncodeCreate(Create{Key: p.key, Name: "moved", Config: LogConfig{SegmentBytes: 300}}))
	}
	return w
}

func (n *moveNode) open() {
	var err error
	if n.dirs, err = NewDirs(n.fs, "/data"); err != nil {
		n.w.t.Fatal(err)
	}
	n.stages = make(map[*movedPartition]*Stage)
	order := []int{0, 1}
	if rapid.Bool().Draw(n.w.t, "order") {
		order = []int{1, 0}
	}
	for _, s := range order {
		n.openShard(s)
	}
}

func (n *moveNode) openShard(s int) {
	r := n.shards[s]
	set, err := Open(Options{
		FS: n.fs, Dirs: n.dirs, Shard: meta.ShardID(s + 1), FetchBytesPerSecond: 1 << 40, ServeBytesPerSecond: 1 << 40,
		Peers: func() []Peer { return []Peer{n.w.nodes[1-n.id].segmentsPeer(s)} },
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
	r.set, r.applied = set, 0
	if r.manifest == nil {
		return
	}
	r.applied = r.manifestAt
	if err := set.Restore(uint64(r.manifestAt), bytes.NewReader(r.manifest)); err != nil {
		n.w.t.Fatalf("node %d, shard %d: restore: %v", n.id, s, err)
	}
}

func (n *moveNode) segmentsPeer(s int) Peer {
	return pipePeer(func(conn net.Conn) { _ = n.shards[s].set.ServeSegments(context.Background(), conn) })
}

// movePeer serves copies of any partition on the node.
func (n *moveNode) movePeer() Peer {
	lookup := func(id meta.ShardID) (*Set, bool) { return n.shards[id-1].set, true }
	return pipePeer(func(conn net.Conn) { _ = ServeMove(context.Background(), conn, lookup, unthrottled()) })
}

func unthrottled() *Throttle { return NewThrottle(func() int64 { return 1 << 50 }) }

func pipePeer(serve func(net.Conn)) Peer {
	return Peer{Name: "peer", Dial: func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer ours.Close()
			serve(ours)
		}()
		return theirs, nil
	}}
}

func (w *moveWalk) step() {
	p := w.parts[rapid.IntRange(0, len(w.parts)-1).Draw(w.t, "partition")]
	n := w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(w.t, "node")]
	s := rapid.IntRange(0, moveShards-1).Draw(w.t, "shard")
	steps := []string{"append", "append", "append", "append", "apply", "apply", "apply", "move", "copy", "freeze", "freeze", "adopt", "adopt", "finish", "finish", "cancel", "checkpoint", "cut", "install", "term", "late", "start", "names", "names"}
	step := rapid.SampledFrom(steps).Draw(w.t, "step")
	w.t.Logf("%s: node %d, shard %d, partition %d %+v", step, n.id, s, p.key.Index, struct {
		at     int
		move   uint64
		frozen bool
	}{p.shard, p.move, p.section != nil})
	switch step {
	case "append":
		w.logs[p.shard].add(w.term, w.append(p))
	case "apply":
		n.apply(s, rapid.IntRange(n.shards[s].applied, len(w.logs[s].log)).Draw(w.t, "to"))
	case "move":
		w.begin(p)
	case "copy":
		n.copy(p)
	case "freeze":
		w.freeze(p, n)
	case "adopt":
		w.adopt(p, n)
	case "finish":
		w.switchOver(p)
	case "cancel":
		w.cancel(p)
	case "checkpoint":
		n.checkpoint(s)
	case "cut":
		n.powerCut()
	case "install":
		n.install(s)
	case "names":
		n.giveNames()
	case "term":
		w.term++
	case "late":
		if len(w.late[s]) > 0 {
			w.logs[s].add(w.term, rapid.SampledFrom(w.late[s]).Draw(w.t, "entry"))
		}
	case "start":
		w.logs[p.shard].add(w.term, EncodeStart([]Start{{p.key, 0}}))
	}
}

func (w *moveWalk) append(p *movedPartition) []byte {
	b := testBatch{
		producer: 1, sequence: p.next, count: rapid.IntRange(1, 3).Draw(w.t, "count"), time: 1000,
		value: fmt.Sprintf("%d of %d: ", p.next, p.key.Index),
	}
	if rapid.IntRange(0, 5).Draw(w.t, "again") > 0 {
		p.next += int32(b.count) // else the next one has the same sequence: one of them is refused or a duplicate
	}
	return EncodeAppend([]Append{{Key: p.key, Batches: b.build()}})
}

// giveNames gives plain names while everything is in use. A partition that lives once on the node has its own then.
func (n *moveNode) giveNames() {
	if err := n.dirs.GivePlainNames(); err != nil {
		n.w.t.Fatalf("give names: %v", err)
	}
	for _, p := range n.w.parts {
		var lives []*Partition
		for _, r := range n.shards {
			if life, ok := r.set.Get(p.key); ok {
				lives = append(lives, life)
			}
		}
		plain := filepath.Join("/data", preferredDir(p.key, "moved"))
		if len(lives) == 1 && n.dirs.where(lives[0].dir) != plain {
			if _, err := n.fs.Stat(plain); err != nil {
				n.w.t.Fatalf("the only life of %s is in %s", p.key, n.dirs.where(lives[0].dir))
			}
		}
	}
}

// begin starts a move to the other shard.
func (w *moveWalk) begin(p *movedPartition) {
	if p.move != 0 {
		return
	}
	w.index++
	p.move = w.index
	for _, n := range w.nodes {
		n.stage(p)
	}
}

// stage opens a node's copy, if it is still to be made.
func (n *moveNode) stage(p *movedPartition) *Stage {
	if s := n.stages[p]; s != nil {
		return s
	}
	s, err := OpenStage(StageOptions{
		FS: n.fs, Dirs: n.dirs, Key: p.key, Name: "moved", Shard: meta.ShardID(2 - p.shard), From: meta.ShardID(1 + p.shard), Move: p.move,
		Sources: func() []Peer {
			if n.id == 0 {
				return []Peer{n.w.nodes[0].movePeer(), n.w.nodes[1].movePeer()}
			}
			return []Peer{n.w.nodes[1].movePeer(), n.w.nodes[0].movePeer()}
		},
		Throttle: unthrottled(),
	})
	if errors.Is(err, errTaken) {
		return nil
	}
	if err != nil {
		n.w.t.Fatalf("open stage: %v", err)
	}
	n.stages[p] = s
	return s
}

// copy brings a node's copy to where one source is.
func (n *moveNode) copy(p *movedPartition) {
	if p.move == 0 {
		return
	}
	if s := n.stage(p); s != nil && !s.Taken() {
		_, _ = s.round(context.Background(), 0) // a source may not have applied the partition's creation
	}
}

// freeze is the first half of a switch: the leader, here any replica that has applied all, tells the state.
func (w *moveWalk) freeze(p *movedPartition, leader *moveNode) {
	if p.move == 0 || p.section != nil {
		return
	}
	entry := EncodeFreeze(p.key, p.move)
	w.logs[p.shard].add(w.term, entry)
	leader.apply(p.shard, len(w.logs[p.shard].log))
	section, err := leader.shards[p.shard].set.Frozen(p.key, p.move)
	if err != nil {
		w.t.Fatalf("frozen state: %v", err)
	}
	p.section = section
}

// adopt has one node, which leads the target, seal its copy, and the other perhaps.
func (w *moveWalk) adopt(p *movedPartition, leader *moveNode) {
	if p.move == 0 || p.section == nil || p.adopted {
		return
	}
	to := 1 - p.shard
	leader.apply(to, len(w.logs[to].log))
	if _, ok := leader.shards[to].set.Get(p.key); ok {
		return // an earlier life is still to be dropped
	}
	source := w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(w.t, "source")]
	if !source.shards[p.shard].set.Complete() {
		source = w.nodes[1-source.id] // an incomplete replica does not lead
	}
	source.apply(p.shard, len(w.logs[p.shard].log)) // after a power cut somebody leads the source again, and has what is committed
	leader.seal(p)
	if rapid.Bool().Draw(w.t, "both") {
		w.nodes[1-leader.id].seal(p)
	}
	p.adopted = true
	p.base += 10
	w.logs[to].add(w.term, EncodeAdopt(Adopt{Move: p.move, EpochBase: p.base, Section: p.section}))
	if !leader.shards[to].set.Complete() {
		return
	}
	leader.apply(to, len(w.logs[to].log))
	if !leader.shards[to].set.Complete() {
		w.t.Fatalf("a sealed copy was adopted and is incomplete: %+v", leader.shards[to].set.Status())
	}
}

func (n *moveNode) seal(p *movedPartition) {
	s := n.stage(p)
	if s == nil || s.Taken() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	sealed := make(chan error, 1)
	go func() { sealed <- s.Seal(ctx, p.section) }()
	for {
		select {
		case err := <-sealed:
			if err != nil {
				n.w.t.Fatalf("seal: %v", err)
			}
			return
		default:
			_, _ = s.round(ctx, 0)
		}
	}
}

// switchOver is the decision of the metadata: the partition lives in the target now.
func (w *moveWalk) switchOver(p *movedPartition) {
	if !p.adopted {
		return
	}
	w.leave(p.shard, EncodeDrop(p.key, p.move))
	p.shard = 1 - p.shard
	w.over(p)
}

func (w *moveWalk) cancel(p *movedPartition) {
	if p.move == 0 {
		return
	}
	w.leave(1-p.shard, EncodeDrop(p.key, p.move))
	if p.section != nil {
		w.leave(p.shard, EncodeUnfreeze(p.key, p.move))
	}
	w.over(p)
}

// leave adds an entry that cleans up, and lets it come again later.
func (w *moveWalk) leave(s int, entry []byte) {
	w.logs[s].add(w.term, entry)
	w.late[s] = append(w.late[s], entry)
}

// over forgets a move. What the nodes have of it they remove; one that has not come to the adoption keeps it.
func (w *moveWalk) over(p *movedPartition) {
	adopted := p.adopted
	p.move, p.section, p.adopted = 0, nil, false
	for _, n := range w.nodes {
		if s := n.stages[p]; s != nil && (s.Taken() || !adopted) {
			if err := s.Discard(); err != nil {
				w.t.Fatalf("discard: %v", err)
			}
		} else if s != nil {
			s.Close()
		}
		delete(n.stages, p)
	}
}

// apply applies a shard's log on one node; answers must be those given before.
func (n *moveNode) apply(s, to int) {
	r, w := n.shards[s], n.w
	if to <= r.applied {
		return
	}
	logs := slices.Clone(w.logs[s].log[r.applied:to])
	for i, result := range r.set.ApplyBatch(logs) {
		at := r.applied + i
		answer := fmt.Sprintf("%s %v", describe(result), result)
		if at < len(w.known[s]) {
			if w.known[s][at] != answer {
				w.t.Fatalf("node %d: entry %d of shard %d was answered %q and now %q", n.id, at, s, w.known[s][at], answer)
			}
			continue
		}
		w.known[s] = append(w.known[s], answer)
		w.model(logs[i], result)
	}
	r.applied = to
	if err := r.set.Err(); err != nil {
		w.t.Fatalf("set stopped: %v", err)
	}
}

func (w *moveWalk) model(l *raft.Log, result any) {
	results, ok := result.([]AppendResult)
	if !ok || results[0].Err != nil {
		return
	}
	_, body, _ := splitEntry(l.Data)
	items, _ := decodeAppend(body)
	item, _ := items.next()
	p := w.parts[item.Key.Index]
	b, _, err := record.Next(item.Batches)
	if err != nil {
		w.t.Fatal(err)
	}
	end := int64(0)
	for _, stored := range p.batches {
		s, _, _ := record.Next(stored)
		if sameBatch(s, b) {
			if results[0].Base != end {
				w.t.Fatalf("a duplicate of the batch at %d was answered %d", end, results[0].Base)
			}
			return
		}
		end += int64(s.Count())
	}
	if results[0].Base != end {
		w.t.Fatalf("a batch was accepted at %d, the log ends at %d", results[0].Base, end)
	}
	p.batches = append(p.batches, item.Batches)
}

func (n *moveNode) checkpoint(s int) {
	r := n.shards[s]
	c, err := r.set.Capture()
	if err != nil {
		n.w.t.Fatalf("capture: %v", err)
	}
	defer c.Release()
	var buf bytes.Buffer
	if err := c.Persist(&buf); err != nil {
		n.w.t.Fatalf("persist: %v", err)
	}
	r.manifest, r.manifestAt = buf.Bytes(), r.applied
	c.(interface{ Durable() }).Durable()
}

// powerCut ends the node; of what was not synced some survives. Copies of moves under way are taken up again.
func (n *moveNode) powerCut() {
	seed := rapid.Uint64().Draw(n.w.t, "survivors")
	rnd := rand.New(rand.NewPCG(seed, 2))
	clone := n.fs.CrashClone(func() bool { return rnd.IntN(2) == 0 })
	n.closeAll()
	n.fs = clone
	n.open()
	for _, p := range n.w.parts {
		if p.move != 0 {
			n.stage(p)
		}
	}
}

func (n *moveNode) closeAll() {
	for _, s := range n.stages {
		s.Close()
	}
	for _, r := range n.shards {
		_ = r.set.Close()
	}
}

// install gives a replica the other node's checkpoint, where that is ahead.
func (n *moveNode) install(s int) {
	r, from := n.shards[s], n.w.nodes[1-n.id].shards[s]
	if from.applied <= r.applied || !from.set.Complete() {
		return
	}
	n.w.nodes[1-n.id].checkpoint(s)
	if err := r.set.Restore(uint64(from.manifestAt), bytes.NewReader(from.manifest)); err != nil {
		n.w.t.Fatalf("install: %v", err)
	}
	r.manifest, r.manifestAt, r.applied = from.manifest, from.manifestAt, from.manifestAt
}

// complete fetches what a replica lacks from the other node.
func (n *moveNode) complete(s int) {
	r := n.shards[s]
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.set.Run(ctx) }()
	select {
	case <-r.set.Completed():
	case <-ctx.Done():
	}
	cancel()
	if err := <-ended; err != nil || !r.set.Complete() {
		n.w.t.Fatalf("node %d, shard %d: fetch: %v, %+v", n.id, s, err, r.set.Status())
	}
}

// finish calls off what is under way, lets everybody come to the end, and compares.
func (w *moveWalk) finish() {
	for _, p := range w.parts {
		w.cancel(p)
	}
	for range 2 { // before and after a restart
		for _, n := range w.nodes {
			for s := range n.shards {
				n.apply(s, len(w.logs[s].log))
			}
		}
		for _, n := range w.nodes {
			for s := range n.shards {
				n.complete(s)
			}
		}
		w.compare()
		for _, n := range w.nodes {
			for s := range n.shards {
				n.checkpoint(s)
			}
			n.powerCut()
		}
	}
	for _, n := range w.nodes {
		for s := range n.shards {
			n.apply(s, len(w.logs[s].log))
			n.checkpoint(s)
		}
		names, err := n.fs.List("/data")
		if err != nil {
			w.t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, deletedSuffix) {
				w.t.Fatalf("node %d: %s is left over", n.id, name)
			}
		}
		for _, p := range w.parts {
			if want := preferredDir(p.key, "moved"); !slices.Contains(names, want) {
				w.t.Fatalf("node %d: the partition is not in %s: %v", n.id, want, names)
			}
		}
	}
}

func (w *moveWalk) compare() {
	for s := range moveShards {
		a := &replica{tb: w.t, fs: w.nodes[0].fs, root: "/data", set: w.nodes[0].shards[s].set}
		b := &replica{tb: w.t, fs: w.nodes[1].fs, root: "/data", set: w.nodes[1].shards[s].set}
		if diff := cmp.Diff(a.segments(), b.segments()); diff != "" {
			w.t.Fatalf("shard %d: segments differ: %s", s, diff)
		}
		if diff := cmp.Diff(a.sections(), b.sections()); diff != "" {
			w.t.Fatalf("shard %d: states differ: %s", s, diff)
		}
	}
	for _, p := range w.parts {
		for _, n := range w.nodes {
			if _, ok := n.shards[1-p.shard].set.Get(p.key); ok {
				w.t.Fatalf("partition %d is in both shards", p.key.Index)
			}
			part, ok := n.shards[p.shard].set.Get(p.key)
			if !ok || part.Frozen() {
				w.t.Fatalf("partition %d is not in its shard, or frozen", p.key.Index)
			}
			w.compareRecords(p, part)
		}
	}
}

func (w *moveWalk) compareRecords(p *movedPartition, part *Partition) {
	chunkFree := readAll(w.t, part, false)
	var want []string
	end := int64(0)
	for _, stored := range p.batches {
		b, _, _ := record.Next(stored)
		want = append(want, fmt.Sprintf("%d+%d", end, b.Count()))
		end += int64(b.Count())
	}
	if part.End() != end || !slices.Equal(chunkFree, want) {
		w.t.Fatalf("partition %d holds %v to %d, accepted was %v", p.key.Index, chunkFree, part.End(), want)
	}
}

func (w *moveWalk) close() {
	for _, n := range w.nodes {
		n.closeAll()
	}
}
