package controller

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/core/meta"
	"sluice/core/shard"
	"sluice/core/vfs"
)

const (
	// diskInterval is how often a node looks at its own disk and asks the others about theirs.
	diskInterval = 500 * time.Millisecond
	// diskIntervalNear is the same while a disk has less than nearReserves times its reserve left: a disk that takes 400 MB a
	// second loses 40 MB between the look and the answer.
	diskIntervalNear = 50 * time.Millisecond
	nearReserves     = 4
	// diskIntervalFar is the same while every disk has farBytes more than its reserve: more than a disk takes in that time.
	diskIntervalFar = 2 * time.Second
	farBytes        = 8 << 30
	// diskForget is how long an answer counts. A node that is down cannot meet a full disk, and the others go on without it.
	diskForget = fenceAfter
	// A node's reserve, when it is not configured, is a twentieth of its disk, at most 1 GiB.
	reservePart     = 20
	reserveBytesMax = 1 << 30
	// smallDiskPart of a disk is the most that is reserved for what the node's shards may have in flight: a small disk is there to
	// be used. It is said in the log that a burst could fill it.
	smallDiskPart = 2
	// lowPart and fullPart of the reserve: a disk is low below the reserve until a lowPart more is free, and full below a fullPart.
	// Without the distance a disk at its reserve would refuse and accept in turns.
	lowPart  = 8
	fullPart = 4
	// spentPart of the reserve: with less left a disk takes no more writes worth mentioning. See spent.
	spentPart = 16
	// writtenTimes is how often a record is written: to the log, and to its segment.
	writtenTimes = 2
	// relieveInterval separates checkpoints that are taken to get space back.
	relieveInterval = 5 * time.Second
)

// DiskState is what a node says of the disk that holds its data.
type DiskState struct {
	FreeBytes    uint64 `cbor:"1,keyasint"`
	ReserveBytes uint64 `cbor:"2,keyasint"`
	// Low: no records are taken for shards with a voter there.
	Low bool `cbor:"3,keyasint,omitempty"`
	// Full: less than a quarter of the reserve is left; group offsets are not taken either.
	Full bool `cbor:"4,keyasint,omitempty"`
}

// NodeDisk is a node's disk as last heard of.
type NodeDisk struct {
	Node meta.NodeID
	DiskState
	heard time.Time
	since int64 // what had been admitted, and written, when it was asked: the rest is yet to come
}

// spent tells whether there is so little left that replicas there are about to stop for want of space, if they have not. They
// come back by themselves when there is some. Nobody waits for them meanwhile, as nobody waits for a node that is down: a shard goes on
// while a majority of its voters has space, and is led by one of these.
func (d *DiskState) spent() bool { return d.FreeBytes < d.ReserveBytes/spentPart }

// near tells whether the disk may be low soon.
func (d *DiskState) near() bool { return d.FreeBytes/nearReserves < d.ReserveBytes }

// next is the state after free has been seen.
func (d *DiskState) next(free, reserve uint64) DiskState {
	n := DiskState{FreeBytes: free, ReserveBytes: reserve}
	n.Low = free < reserve || d.Low && free < reserve+reserve/lowPart
	n.Full = free < reserve/fullPart || d.Full && free < (reserve+reserve/lowPart)/fullPart
	return n
}

// reserveOf is what a node keeps free: as configured, or by the size of its disk and what its replicas may still write when no more
// records are taken.
func reserveOf(configured int64, size uint64, replicas int) uint64 {
	if configured > 0 {
		return uint64(configured)
	}
	return max(min(reserveBytesMax, size/reservePart), min(inFlight(replicas), size/smallDiskPart))
}

func inFlight(replicas int) uint64 { return uint64(replicas) * shard.ReplicaInFlightBytes }

// disks knows the state of this node's disk and of those that its shards have other voters on. Each node asks for itself, so that
// a shard's leader knows also while nobody leads the metadata.
type disks struct {
	c *Controller

	mu struct {
		sync.Mutex
		known  map[meta.NodeID]NodeDisk
		asking map[meta.NodeID]bool
		failed bool // the last look at this node's disk
		scarce bool // it has been said that the reserve is less than what may be in flight
	}
	// tight holds the disks that are low or near it, nil when none is: what every produce request asks.
	tight atomic.Pointer[[]NodeDisk]
	// admitted bytes of records there have been, and admitting are those of them that are not yet given to their shards.
	admitted, admitting atomic.Int64

	// The rest belongs to run and the goroutine that it starts.
	relieved   map[meta.ShardID]uint64 // applied index at the last checkpoint for space
	relievedAt time.Time
	relieving  atomic.Bool
}

func newDisks(c *Controller) *disks {
	d := &disks{c: c, relieved: make(map[meta.ShardID]uint64)}
	d.mu.known, d.mu.asking = make(map[meta.NodeID]NodeDisk), make(map[meta.NodeID]bool)
	return d
}

// LowDisk returns a voter of a shard whose disk has less than its reserve left. Its leader takes no records then, so that no
// replica meets a full disk.
func (c *Controller) LowDisk(id meta.ShardID) (NodeDisk, bool) {
	return c.disks.find(id, func(d *NodeDisk) bool { return d.Low })
}

// FullDisk returns a voter of a shard whose disk has less than a quarter of its reserve left, where not even group offsets are
// taken any more. What frees space (deletions) always is.
func (c *Controller) FullDisk(id meta.ShardID) (NodeDisk, bool) {
	return c.disks.find(id, func(d *NodeDisk) bool { return d.Full })
}

// Admit asks whether a shard may take so many bytes of records now, and counts them until Admitted. It refuses, naming a voter, what
// could leave that one's disk with less than its reserve when all that has been admitted since the last look at it is written.
func (c *Controller) Admit(id meta.ShardID, bytes int64) (low NodeDisk, refused bool) {
	c.disks.admitting.Add(bytes)
	admitted := c.disks.admitted.Add(bytes)
	return c.disks.find(id, func(d *NodeDisk) bool {
		return d.Low || int64(d.FreeBytes)-writtenTimes*(admitted-d.since) < int64(d.ReserveBytes)
	})
}

// Admitted is called when what Admit counted has been proposed, or never will be.
func (c *Controller) Admitted(bytes int64) { c.disks.admitting.Add(-bytes) }

// written is how much of what was admitted has certainly been written. What goes from one count to the next in between is counted
// twice, which does no harm.
func (d *disks) written() int64 {
	n := d.admitted.Load() - d.admitting.Load()
	for _, r := range d.c.replicaMap() {
		n -= r.group.InFlightBytes()
	}
	return n
}

func (d *disks) find(id meta.ShardID, is func(*NodeDisk) bool) (NodeDisk, bool) {
	tight := d.tight.Load()
	if tight == nil {
		return NodeDisk{}, false
	}
	s := d.c.Image().Shard(id)
	if s == nil {
		return NodeDisk{}, false
	}
	spent := 0
	for i := range *tight {
		if at := &(*tight)[i]; at.spent() && votes(s, at.Node) {
			spent++
		}
	}
	goesOn := spent <= (len(s.Voters)-1)/2
	for i := range *tight {
		at := &(*tight)[i]
		if !is(at) || !votes(s, at.Node) || at.spent() && goesOn && at.Node != d.c.Self() {
			continue
		}
		return *at, true
	}
	return NodeDisk{}, false
}

// spent tells whether a node's disk has nothing left, as far as this node knows.
func (d *disks) spent(node meta.NodeID) bool {
	tight := d.tight.Load()
	if tight == nil {
		return false
	}
	return slices.ContainsFunc(*tight, func(at NodeDisk) bool { return at.Node == node && at.spent() })
}

func votes(s *meta.Shard, node meta.NodeID) bool {
	for _, v := range s.Voters {
		if v.Node == node {
			return true
		}
	}
	return false
}

// own returns the state of this node's disk, nil before it has been looked at.
func (d *disks) own() *DiskState {
	d.mu.Lock()
	defer d.mu.Unlock()
	own, ok := d.mu.known[d.c.Self()]
	if !ok {
		return nil
	}
	return &own.DiskState
}

// all returns what is known, by node.
func (d *disks) all() []NodeDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []NodeDisk
	for _, n := range d.c.Image().Nodes() {
		if known, ok := d.mu.known[n.ID]; ok {
			out = append(out, known)
		}
	}
	return out
}

// run keeps the states until ctx ends.
func (d *disks) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		d.look()
		for _, node := range d.peers() {
			if d.begin(node) {
				wg.Go(func() { d.ask(ctx, node) })
			}
		}
		d.forget(time.Now().Add(-diskForget))
		d.relieve(ctx, &wg)
		pause(ctx, shard.UntilEven(d.interval()))
	}
}

// interval is short while any disk is near its reserve, and long while all are far from it.
func (d *disks) interval() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	far := len(d.mu.known) > 0
	for _, known := range d.mu.known {
		if known.near() {
			return diskIntervalNear
		}
		far = far && known.FreeBytes > known.ReserveBytes+farBytes
	}
	if far {
		return diskIntervalFar
	}
	return diskInterval
}

// look reads this node's free space. When that fails, the last state stays.
func (d *disks) look() {
	since := d.written()
	free, err := d.c.o.FS.Free(d.c.o.DataDir)
	var size uint64
	if err == nil {
		size, err = vfs.Size(d.c.o.FS, d.c.o.DataDir)
	}
	d.mu.Lock()
	failed := d.mu.failed
	d.mu.failed = err != nil
	last := d.mu.known[d.c.Self()]
	d.mu.Unlock()
	switch {
	case err != nil && !failed:
		d.c.log.Warn("could not read the free space of the disk", "dir", d.c.o.DataDir, "err", err)
	case err == nil && failed:
		d.c.log.Info("the free space of the disk can be read again", "dir", d.c.o.DataDir)
	}
	if err != nil {
		return
	}
	replicas := len(d.c.replicaMap())
	reserve := reserveOf(d.c.o.ReserveBytes, size, replicas)
	d.learn(d.c.Self(), last.next(free, reserve), since)
	d.warnScarce(reserve, inFlight(replicas))
}

// warnScarce says once that the reserve promises less than it should.
func (d *disks) warnScarce(reserve, need uint64) {
	d.mu.Lock()
	first := reserve < need && !d.mu.scarce
	d.mu.scarce = d.mu.scarce || first
	d.mu.Unlock()
	if first {
		d.c.log.Warn("the disk's reserve is less than what the shards of this node may have in flight: a burst of records can fill the disk", "reserve", reserve, "inFlight", need)
	}
}

// peers are the other voters of the shards that have a replica here.
func (d *disks) peers() []meta.NodeID {
	self, seen := d.c.id.server(), make(map[meta.NodeID]bool)
	var out []meta.NodeID
	for _, s := range d.c.Image().Shards() {
		if !s.Has(self) {
			continue
		}
		for _, v := range s.Voters {
			if v.Node != self.Node && !seen[v.Node] {
				seen[v.Node] = true
				out = append(out, v.Node)
			}
		}
	}
	return out
}

// begin tells whether to ask a node now: one that hangs is asked once at a time, and holds nobody else up.
func (d *disks) begin(node meta.NodeID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.asking[node] {
		return false
	}
	d.mu.asking[node] = true
	return true
}

func (d *disks) ask(ctx context.Context, node meta.NodeID) {
	call, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var pong pingAnswer
	since := d.written()
	if err := d.c.pool.call(call, node, opPing, nil, &pong); err == nil && pong.Server.Node == node && pong.Disk != nil {
		d.learn(node, *pong.Disk, since)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.asking, node)
}

// learn takes a node's state and logs what it changes.
func (d *disks) learn(node meta.NodeID, now DiskState, since int64) {
	d.mu.Lock()
	last := d.mu.known[node]
	d.mu.known[node] = NodeDisk{Node: node, DiskState: now, heard: time.Now(), since: since}
	d.publishLocked()
	d.mu.Unlock()
	log := d.c.log.With("disk", node, "free", now.FreeBytes, "reserve", now.ReserveBytes)
	if now.spent() && !last.spent() {
		log.Warn("a disk has nothing left: its replicas stop and come back when there is space; where a majority has space the others go on")
		d.c.beat.notify() // what is led here is handed over at once
	}
	switch {
	case now.Full && !last.Full:
		log.Warn("a disk is nearly full: neither records nor group offsets are taken for its shards until there is space")
	case now.Low && !last.Low:
		log.Warn("a disk is low: no records are taken for its shards until there is space")
	case now.Low && last.Full && !now.Full:
		log.Info("a disk is still low, but group offsets are taken again")
	case last.Low && !now.Low:
		log.Info("a disk has space again: records are taken")
	}
}

// publishLocked renews tight.
func (d *disks) publishLocked() {
	var tight []NodeDisk
	for _, known := range d.mu.known {
		if known.Low || known.near() {
			tight = append(tight, known)
		}
	}
	if tight == nil {
		d.tight.Store(nil)
		return
	}
	d.tight.Store(&tight)
}

// forget drops what other nodes said before a time.
func (d *disks) forget(before time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for node, known := range d.mu.known {
		if node == d.c.Self() || known.heard.After(before) {
			continue
		}
		delete(d.mu.known, node)
		if known.Low {
			d.c.log.Info("a node whose disk was low does not answer: it holds no records up any more", "disk", node)
		}
	}
	d.publishLocked()
}

// relieve takes checkpoints while this node's disk is low: what was deleted, and the logs' heads, go from the disk with the next one,
// which without new records would be long in coming.
func (d *disks) relieve(ctx context.Context, wg *sync.WaitGroup) {
	if own := d.own(); own == nil || !own.Low || time.Since(d.relievedAt) < relieveInterval || !d.relieving.CompareAndSwap(false, true) {
		return
	}
	d.relievedAt = time.Now()
	wg.Go(func() {
		defer d.relieving.Store(false)
		for id, r := range d.c.replicaMap() {
			applied := r.group.AppliedIndex()
			if ctx.Err() != nil || r.group.Err() != nil || applied == d.relieved[id] {
				continue
			}
			if err := r.group.Checkpoint(ctx); err != nil {
				d.c.log.Debug("no checkpoint for space", "shard", id, "err", err)
				continue
			}
			d.relieved[id] = applied
		}
	})
}

// count returns how many of the known disks are low, for the metrics.
func (d *disks) count() int {
	n := 0
	if tight := d.tight.Load(); tight != nil {
		for i := range *tight {
			n += boolToInt((*tight)[i].Low)
		}
	}
	return n
}
