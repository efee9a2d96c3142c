// Package controller runs the cluster's metadata: the Raft group that replicates package meta's
// state machine on every node, the commands that change it, and on each node the reconciler that
// makes what the metadata wants of it true.
//
// It guarantees that a command is answered when it is committed and every live node has applied
// it, whichever node it was given to; that a command which is retried across leader changes is
// made once; that a replica is bootstrapped only as a founding voter and deleted only on an
// explicit record; and that [Controller.Image] is one consistent state, read without locks.
//
// It does not serve clients, and it knows nothing of records: package broker does the former,
// package partition the latter. DESIGN.md beside this file says why it is built this way.
package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
	"sluice/core/vfs"
)

const (
	// DefaultRetentionInterval is how often a shard's leader looks for expired segments: Kafka's
	// log.retention.check.interval.ms. Clients write records with timestamps years back and read them
	// again at once; looked at every few seconds, those would be gone before.
	DefaultRetentionInterval = 5 * time.Minute
	// DefaultPreferredDelay is how long a preferred leader has been in sync before it gets its
	// shard back.
	DefaultPreferredDelay = 5 * time.Second
	// leaveTimeout bounds the goodbye of a stopping node.
	leaveTimeout = time.Second
)

// Options configure a Controller. FS, DataDir, Self.ID and Listen are required.
type Options struct {
	FS      vfs.FS
	DataDir string
	// Self is this node as the cluster shall know it. Incarnation is filled in from the data
	// directory; an empty Addr becomes the listener's address.
	Self meta.Node
	// Listen is the TCP address for other nodes.
	Listen string
	// Join are addresses of nodes of a running cluster. They count only while the data directory
	// belongs to no cluster; without any, such a directory founds a new cluster.
	Join []string
	// TLSServer and TLSClient switch node-to-node traffic to TLS; both or none.
	TLSServer, TLSClient *tls.Config

	Defaults Defaults
	// Heartbeat and CheckpointBytes are those of package shard; zero means its defaults.
	Heartbeat       time.Duration
	CheckpointBytes int64
	// RetentionInterval and PreferredDelay: zero means the defaults above.
	RetentionInterval, PreferredDelay time.Duration
	// CompactionInterval is how often compacted topics are looked at; zero means what the cluster's log.cleaner.backoff.ms says.
	CompactionInterval time.Duration
	// JoinStable is how long a node has answered before it gets replicas; zero means 5 s.
	JoinStable time.Duration
	// ReserveBytes of the disk stay free: with less, no records are taken for the shards that this node votes in. Zero means 1 GiB or a
	// twentieth of the disk, whichever is less, but at least what the node's replicas may have in flight.
	ReserveBytes int64
	// ScrubBytesPerSecond and ScrubInterval are those of partition.ScrubOptions.
	ScrubBytesPerSecond int64
	ScrubInterval       time.Duration
	// Files bounds the open segment files of the node; nil means commitlog's own bound. It is the controller's alone.
	Files *commitlog.Files
	// Now is the wall clock, by which retention judges the age of records; nil means time.Now.
	Now func() time.Time
	// Version is the release that this node runs, for those who look at the cluster.
	Version string
	// Logger gets what a person should know; nil discards it.
	Logger *slog.Logger
}

// Controller is one node's part in the metadata.
type Controller struct {
	o       Options
	log     *slog.Logger
	id      *identity
	node    *shard.Node
	dirs    *partition.Dirs
	machine *machine
	pool    *pool
	lead    *lead
	members *members
	disks   *disks
	scrub   *partition.Scrubber
	stages  *stages
	compact *compactor
	heals   *heals
	metrics *controllerMetrics

	whole    vfs.Whole // nil where the file system has none
	metadata atomic.Pointer[shard.Group]
	replicas atomic.Pointer[map[meta.ShardID]*replica] // replaced, never changed
	// replacing is held by whoever replaces replicas.
	replacing sync.Mutex
	beat      *notifier     // every beatInterval
	progress  *notifier     // a replica has done what was wanted
	current   chan struct{} // closed when the image is known to be recent
	ready     chan struct{}
	leaving   atomic.Bool
	moveStep  atomic.Pointer[func(step string)] // called before each step of a switch; set by tests alone

	balanceWake chan struct{} // the balancer shall look now
	removed     chan struct{} // closed when this node was removed from the cluster
	removedOnce sync.Once
	onDisk      map[meta.ShardID]bool // replicas found at the start; belongs to reconcile
	deleted     map[meta.ShardID]bool // replicas deleted, and that told; belongs to reconcile
}

// Open locks and reads the data directory and binds the listener. It starts nothing: Run does.
// Errors wrap ErrInUse, ErrOtherNode, ErrNoIdentity or ErrNewer.
func Open(o Options) (*Controller, error) {
	if o.FS == nil || o.DataDir == "" || o.Listen == "" || o.Self.ID < 0 {
		return nil, errors.New("open controller: file system, data directory, listen address and node id are required")
	}
	o = o.withDefaults()
	id, err := openIdentity(o.FS, o.DataDir, o.Self.ID)
	if err != nil {
		return nil, fmt.Errorf("open controller: %w", err)
	}
	c := &Controller{
		o: o, log: o.Logger, id: id, machine: newMachine(),
		progress: newNotifier(), beat: newNotifier(), current: make(chan struct{}), ready: make(chan struct{}),
		heals: newHeals(), balanceWake: make(chan struct{}, 1), removed: make(chan struct{}),
	}
	if err := c.open(); err != nil {
		_ = c.closeFiles()
		return nil, fmt.Errorf("open controller: %w", err)
	}
	return c, nil
}

func (o Options) withDefaults() Options {
	o.Defaults = o.Defaults.withDefaults()
	if o.RetentionInterval == 0 {
		o.RetentionInterval = DefaultRetentionInterval
	}
	if o.PreferredDelay == 0 {
		o.PreferredDelay = DefaultPreferredDelay
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.JoinStable == 0 {
		o.JoinStable = joinStable
	}
	if o.Files == nil {
		o.Files = commitlog.NewFiles(commitlog.DefaultFiles)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (c *Controller) open() error {
	var err error
	if err = c.openWhole(); err != nil {
		return err
	}
	if c.dirs, err = partition.NewDirs(c.o.FS, c.o.DataDir); err != nil {
		return err
	}
	c.node, err = shard.NewNode(shard.Options{
		FS: c.o.FS, Dir: c.o.DataDir, ClusterID: c.id.clusterID, Self: c.id.server(), Listen: c.o.Listen,
		TLSServer: c.o.TLSServer, TLSClient: c.o.TLSClient, Resolve: c.resolve,
		Heartbeat: c.o.Heartbeat, CheckpointBytes: c.o.CheckpointBytes, Logger: c.log,
	})
	if err != nil {
		return err
	}
	c.o.Self.Incarnation = c.id.server().Incarnation
	if c.o.Self.Addr == "" {
		c.o.Self.Addr = c.node.Addr().String()
	}
	c.replicas.Store(&map[meta.ShardID]*replica{})
	c.pool, c.lead, c.members = newPool(c.node), newLead(c), newMembers(c)
	c.disks, c.stages = newDisks(c), newStages(c)
	c.disks.look()
	c.compact = newCompactor(c)
	c.scrub = partition.NewScrubber(partition.ScrubOptions{
		Sets: c.Sets, BytesPerSecond: c.o.ScrubBytesPerSecond, Interval: c.o.ScrubInterval, Logger: c.log,
	})
	c.metrics = newControllerMetrics(c)
	c.node.Handle(kindControl, c.serveControl)
	c.node.Handle(kindJoin, c.serveJoin)
	c.node.Handle(kindSegments, c.serveSegments)
	c.node.Handle(kindMoves, c.stages.serve)
	return nil
}

// Run joins or founds the cluster where that is due, then takes part in it until ctx ends. It
// stops cleanly: says goodbye, hands leadership over, takes checkpoints, releases the directory.
func (c *Controller) Run(ctx context.Context) error {
	nodeCtx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	serveCtx, stopServe := context.WithCancel(ctx)
	defer stopServe()
	var nodeErr error
	nodeDone := make(chan struct{})
	go func() {
		defer stopServe()
		defer close(nodeDone)
		nodeErr = c.node.Run(nodeCtx)
	}()
	err := c.serve(serveCtx)
	select {
	case <-nodeDone: // by itself: there is nothing left to hand over
	default:
		c.leave(context.WithoutCancel(ctx))
	}
	stopNode()
	<-nodeDone
	if ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, nodeErr, c.close())
}

// Close releases a controller that was opened and never run.
func (c *Controller) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return c.Run(ctx)
}

func (c *Controller) close() error {
	c.pool.close()
	var errs []error
	for _, r := range c.replicaMap() {
		errs = append(errs, r.set.Close())
	}
	return errors.Join(append(errs, c.closeFiles())...)
}

// openWhole lets segments be synced together where the file system can do that.
func (c *Controller) openWhole() error {
	w, err := vfs.OpenWhole(c.o.FS, c.o.DataDir)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open file system: %w", err)
	}
	c.whole = w
	c.o.Files.UseWhole(w)
	return nil
}

func (c *Controller) closeFiles() error {
	if c.whole == nil {
		return c.id.close()
	}
	return errors.Join(c.whole.Close(), c.id.close())
}

// serve runs everything that ends before the groups do.
func (c *Controller) serve(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	if err := c.enterCluster(ctx); err != nil {
		return err
	}
	if err := c.openMetadata(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	run, ctx := errgroup.WithContext(ctx)
	run.Go(func() error { c.keepBeat(ctx); return nil })
	run.Go(func() error { c.lead.run(ctx); return nil })
	run.Go(func() error { c.members.run(ctx); return nil })
	run.Go(func() error { c.lead.runBalance(ctx); return nil })
	run.Go(func() error { c.disks.run(ctx); return nil })
	run.Go(func() error { c.keepPeers(ctx); return nil })
	run.Go(func() error { c.scrub.Run(ctx); return nil })
	run.Go(func() error { c.stages.run(ctx); return nil })
	run.Go(func() error { c.compact.run(ctx); return nil })
	run.Go(func() error { c.reclaim(ctx); return nil })
	run.Go(func() error { return c.register(ctx) })
	run.Go(func() error { return c.watchMetadata(ctx) })
	run.Go(func() error { c.reconcile(ctx, run); return nil })
	return run.Wait()
}

// watchMetadata opens this node's replica of the metadata again when it has stopped, and ends the node when it was removed.
func (c *Controller) watchMetadata(ctx context.Context) error {
	for {
		g := c.group()
		beat, changed := c.beat.wait(), g.Changed()
		if err := g.Err(); err != nil && ctx.Err() == nil {
			if err := c.reopenMetadata(ctx, err); err != nil {
				return err
			}
			continue
		}
		if c.Image().Unregistered(c.id.server()) {
			return ErrRemoved
		}
		select {
		case <-c.removed:
			return ErrRemoved
		case <-g.Failed():
		case <-changed:
		case <-beat:
		case <-ctx.Done():
			return nil
		}
	}
}

// leave tells the metadata leader that this node goes, so that clients hear of it at once.
func (c *Controller) leave(ctx context.Context) {
	c.leaving.Store(true)
	if c.group() == nil || len(c.Image().Nodes()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	fence := &meta.FenceNode{Server: c.id.server(), Fenced: true}
	if _, err := c.submit(ctx, &commandRequest{Command: cmdFence, Fence: fence}); err != nil {
		c.log.Debug("could not say goodbye", "err", err)
	}
}

// group is the metadata group, nil before it is open.
func (c *Controller) group() *shard.Group { return c.metadata.Load() }

// Ready is closed when this node is registered and its image holds all that was committed at some
// moment after its start.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Image returns the newest metadata applied on this node.
func (c *Controller) Image() *meta.Image { return c.machine.image.Load() }

// Changed returns a channel that is closed at the next change of the image. Fetch it before
// looking at the image.
func (c *Controller) Changed() <-chan struct{} { return c.machine.changed.wait() }

// Self is this node's id.
func (c *Controller) Self() meta.NodeID { return c.o.Self.ID }

// Node returns this node as it registers.
func (c *Controller) Node() meta.Node { return c.o.Self }

// ClusterID returns the cluster's id, "" while this node belongs to none.
func (c *Controller) ClusterID() string { return c.id.clusterID() }

// Addr is the address at which other nodes reach this one.
func (c *Controller) Addr() string { return c.o.Self.Addr }

// DataDir is where the node's partitions lie.
func (c *Controller) DataDir() string { return c.o.DataDir }

// Leader returns the metadata leader as far as known here.
func (c *Controller) Leader() (meta.NodeID, bool) {
	g := c.group()
	if g == nil {
		return meta.NoNode, false
	}
	node, _, ok := g.Leader()
	if !ok {
		return meta.NoNode, false
	}
	return node, true
}

// LeaderOf returns who leads a shard: what this node's own replica knows, otherwise what was last
// reported. ok is false while nobody is known.
func (c *Controller) LeaderOf(id meta.ShardID) (node meta.NodeID, term uint64, ok bool) {
	s := c.Image().Shard(id)
	if r := c.replica(id); r != nil && r.group.Err() == nil {
		node, term, ok := r.group.Leader()
		if s == nil || term >= s.Term {
			return node, term, ok
		}
	}
	if s == nil || s.Leader == meta.NoNode {
		return meta.NoNode, 0, false
	}
	return s.Leader, s.Term, true
}

// ISR returns the nodes that are not behind, the preferred leader first.
func (c *Controller) ISR(id meta.ShardID) []meta.NodeID {
	s := c.Image().Shard(id)
	if s == nil {
		return nil
	}
	if r := c.replica(id); r != nil {
		if term, ok := r.group.Serving(); ok && term >= s.Term {
			return r.isr(s)
		}
	}
	return s.ISR
}

// Local returns this node's replica of a partition and its group. ok is false when the node has
// none, or has not created it yet.
func (c *Controller) Local(id meta.TopicID, index int32) (*partition.Partition, *shard.Group, bool) {
	t := c.Image().TopicByID(id)
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil, nil, false
	}
	r := c.replica(t.Partitions[index].Shard)
	if r == nil {
		return nil, nil, false
	}
	p, ok := r.set.Get(partition.Key{Topic: id, Index: index})
	return p, r.group, ok
}

// Sets returns the partitions of each shard that has a replica here, by shard.
func (c *Controller) Sets() []*partition.Set {
	m := c.replicaMap()
	out := make([]*partition.Set, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[id].set)
	}
	return out
}

func (c *Controller) replicaMap() map[meta.ShardID]*replica { return *c.replicas.Load() }

func (c *Controller) replica(id meta.ShardID) *replica { return c.replicaMap()[id] }

// resolve tells the shards where a node listens: what the metadata says, otherwise where it was
// before the last stop.
func (c *Controller) resolve(id meta.NodeID) (addr string, ok bool) {
	if n, ok := c.Image().Node(id); ok && n.Addr != "" {
		return n.Addr, true
	}
	for _, p := range c.id.read().Peers {
		if p.ID == id {
			return p.Addr, true
		}
	}
	return "", false
}
