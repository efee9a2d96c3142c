package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/raftlog"
)

// Group is this node's replica of one shard.
type Group struct {
	node      *Node
	id        meta.ShardID
	sm        StateMachine
	slog      *slog.Logger
	raftLog   *raftLogger
	heartbeat time.Duration

	maxUnapplied int64 // maxUnappliedBytes, but in tests

	log     *raftlog.Store
	points  *checkpoints
	fsm     *fsm
	peers   *peers
	metrics *groupMetrics
	queue   *proposals
	verify  verifier

	cur        atomic.Pointer[replica]
	installing atomic.Uint64 // index of the checkpoint that Raft is installing
	marked     bool          // belongs to the watcher: see keepMark
	stopping   atomic.Bool   // no requests are taken any more

	checkpointing sync.Mutex // held while a checkpoint is taken or installed
	sinceBytes    atomic.Int64
	due           chan struct{} // a checkpoint is due
	again         chan struct{} // the replica must start anew

	beats beats
	news  news
	idle  idle // belongs to the watcher
	doubt doubt
	yield atomic.Int64 // until when it leaves an election to another, in nanoseconds of Unix time

	ctx    context.Context // of the group's own goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	gone   chan struct{} // Raft has stopped for good: what is unanswered stays so

	mu struct {
		sync.Mutex
		err     error
		view    view
		changed chan struct{}
		learned commit
		heard   heard
	}
	failed  chan struct{}
	current chan struct{}
	watched chan struct{} // the watcher has ended
}

func openGroup(n *Node, id meta.ShardID, sm StateMachine) (*Group, error) {
	g := &Group{
		node: n, id: id, sm: sm, slog: n.log.With("shard", uint64(id)), heartbeat: n.o.Heartbeat, maxUnapplied: maxUnappliedBytes,
		due: make(chan struct{}, 1), again: make(chan struct{}, 1), gone: make(chan struct{}),
		failed: make(chan struct{}), current: make(chan struct{}), watched: make(chan struct{}),
	}
	g.raftLog = newRaftLogger(g.slog)
	g.metrics = newGroupMetrics(g)
	g.mu.changed = make(chan struct{})
	g.fsm = &fsm{sm: sm, fail: g.fail, err: g.Err, progress: make(chan struct{}, 1),
		load: func(index uint64, l *raft.Log) error { return g.log.GetLog(index, l) }}
	g.peers = newPeers(func() uint64 { return g.raft().LastIndex() })
	o := logOptions
	o.Observe, o.Logger = g.wrote, g.slog
	d, err := n.openDisk(id, o)
	if err != nil {
		return nil, err
	}
	g.log, g.points, g.marked = d.log, d.points, d.log.Info().Term > 0
	g.points.refuse, g.points.broken, g.points.written = g.refuseInstall, g.fail, g.metrics.checkpoint
	index, _ := g.points.current()
	g.sinceBytes.Store(g.log.Span(index, d.log.Info().Last))
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.queue = newProposals(g)
	err = g.beginInDoubt()
	var r *replica
	if err == nil {
		r, err = g.start()
	}
	if err != nil {
		g.cancel()
		n.noteSynced(id, g.log)
		return nil, errors.Join(err, g.log.Close())
	}
	g.run(r, d.fresh)
	return g, nil
}

// run starts the group's own goroutines. All end with halt or stopCleanly.
func (g *Group) run(r *replica, fresh bool) {
	g.wg.Go(func() { _ = g.log.Run(g.ctx) }) // its error is latched, and watched
	go g.queue.run()                         // ends when Raft is gone
	go func() {
		defer close(g.watched)
		g.watch()
	}()
	g.wg.Go(g.checkpointWhenDue)
	if others := g.electNow(fresh); others != nil {
		g.wg.Go(func() { g.electWhenReady(r, others) })
	}
}

// electNow tells whether to skip the first election timeout: alone, or as the preferred leader of a
// shard that has just been founded, nobody else needs to be waited for.
// It returns the other voters then, nil otherwise.
func (g *Group) electNow(fresh bool) []raft.ServerAddress {
	servers := g.raft().GetConfiguration().Configuration().Servers
	voters := []raft.ServerAddress{}
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s.Address)
		}
	}
	if len(voters) == 0 || voters[0] != serverAddress(g.node.o.Self) || ((!fresh || g.doubtful()) && len(voters) > 1) {
		return nil
	}
	return voters[1:]
}

// electWhenReady stands for election as soon as enough others have opened their replicas. A failed
// election would only delay the next. After one heartbeat timeout the library does it by itself.
func (g *Group) electWhenReady(r *replica, others []raft.ServerAddress) {
	ctx, cancel := context.WithTimeout(g.ctx, g.heartbeat)
	defer cancel()
	for {
		ready := 0
		for _, to := range others {
			if c, err := g.node.dialRaft(ctx, g.id, to); err == nil {
				ready++
				c.Close()
			}
		}
		if ready >= (len(others)+1)/2 {
			r.elect()
			return
		}
		pause(ctx, electPoll)
		if _, _, known := g.Leader(); known || ctx.Err() != nil {
			return
		}
	}
}

// wrote is told of every synced write of the log.
func (g *Group) wrote(took time.Duration, bytes int64) {
	g.metrics.sync(took, bytes)
	g.node.spare.saw(time.Now(), sawWrite, took, bytes)
	if g.sinceBytes.Add(bytes) >= g.node.o.CheckpointBytes {
		signal(g.due)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ID is the shard's id.
func (g *Group) ID() meta.ShardID { return g.id }

func (g *Group) raft() *raft.Raft { return g.cur.Load().raft }

func (g *Group) term() uint64 { return g.raft().CurrentTerm() }

// AppliedIndex is the index of the last entry that the state machine has applied, or of the
// checkpoint it was restored from. Entries of Raft's own are not counted.
func (g *Group) AppliedIndex() uint64 { return g.fsm.applied.Load() }

// CommitIndex is the highest index that this replica knows to be committed.
func (g *Group) CommitIndex() uint64 { return g.raft().CommitIndex() }

// Err is non-nil once the replica has stopped because of a failure.
func (g *Group) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.err
}

// Failed is closed when the replica has stopped because of a failure.
func (g *Group) Failed() <-chan struct{} { return g.failed }

// fail stops the replica: it keeps the first reason, and the watcher shuts Raft down.
func (g *Group) fail(err error) {
	g.mu.Lock()
	first := g.mu.err == nil
	if first {
		g.mu.err = fmt.Errorf("replica of shard %d stopped: %w", g.id, err)
		close(g.failed)
	}
	g.mu.Unlock()
	if first {
		g.slog.Error("replica stopped", "err", err)
	}
}

// serve gives a connection from another replica to this one.
func (g *Group) serve(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if !g.cur.Load().trans.stream.offer(c) {
		c.Close()
	}
}

// halt stops the replica without handing anything over, as a crash would.
func (g *Group) halt() { g.stop(func() {}) }

// stopCleanly takes a checkpoint, hands leadership over, lets what was proposed finish, and takes a
// checkpoint of what was applied meanwhile, so that nothing is replayed at the next start.
func (g *Group) stopCleanly() {
	g.stop(func() {
		ctx, cancel := context.WithTimeout(g.ctx, stopTimeout)
		defer cancel()
		if g.Err() != nil {
			return
		}
		if err := g.Checkpoint(ctx); err != nil {
			g.slog.Warn("no checkpoint before handing over", "err", err)
		}
		g.handOver(ctx)
		g.stopping.Store(true)
		g.queue.close()
		g.queue.drain(ctx)
		g.settle(ctx)
		if err := g.Checkpoint(ctx); err != nil {
			g.slog.Warn("no checkpoint at stop", "err", err)
		}
	})
}

func (g *Group) stop(first func()) {
	g.once.Do(func() {
		first()
		g.stopping.Store(true)
		g.queue.close()
		ctx, cancel := context.WithTimeout(g.ctx, stopTimeout)
		g.queue.drain(ctx)
		g.verify.drain(ctx)
		cancel()
		g.cancel()
		<-g.watched // it may be giving the replica a new life
		g.cur.Load().stop()
		close(g.gone)
		g.wg.Wait()
		g.node.noteSynced(g.id, g.log)
		if err := g.log.Close(); err != nil {
			g.slog.Warn("log not closed", "err", err)
		}
		g.broadcast()
	})
}

// handOver transfers leadership to the member that is most up to date, if there is one in sync.
func (g *Group) handOver(ctx context.Context) {
	if g.raft().State() != raft.Leader {
		return
	}
	var best *Replica
	for _, r := range g.Replicas() {
		if r.Voter && r.InSync && r.Server != g.node.o.Self && (best == nil || r.LastIndex > best.LastIndex) {
			best = &r
		}
	}
	if best == nil {
		return
	}
	if err := g.Transfer(ctx, best.Server.Node); err != nil {
		g.slog.Info("leadership not handed over", "err", err)
	}
}

// settle waits until the state machine has been given everything that is committed here.
func (g *Group) settle(ctx context.Context) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for g.raft().Stats()["fsm_pending"] != "0" {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
