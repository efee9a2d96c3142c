package shard

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// replica is one life of the library's instance. A group normally has one; it gets another after a
// checkpoint was installed below the end of its log (see transport.install).
type replica struct {
	g      *Group
	raft   *raft.Raft
	trans  *transport
	store  *guardedStore
	events chan raft.Observation
	quit   chan struct{}
	once   sync.Once

	setting sync.Mutex // held while the library's settings are changed

	asking sync.Mutex // held while leadership is verified
	ended  bool       // guarded by asking
}

func (g *Group) config() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = serverID(g.node.o.Self)
	c.HeartbeatTimeout, c.ElectionTimeout = g.heartbeat, g.heartbeat
	c.LeaderLeaseTimeout = leaseBeats * momentFor(g.heartbeat)
	c.CommitTimeout = commitTimeout
	if g.id == meta.MetadataShard {
		c.CommitTimeout = metadataCommitTimeout
	}
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	c.SnapshotThreshold = math.MaxUint64 // checkpoints are taken by bytes
	c.SnapshotInterval = time.Hour
	c.TrailingLogs = math.MaxUint64
	c.Logger = g.raftLog
	c.NoLegacyTelemetry = true
	return c
}

// start makes the replica of what is on disk. The library panics on what it cannot read then.
func (g *Group) start() (r *replica, err error) {
	r = &replica{
		g: g, events: make(chan raft.Observation, 1), quit: make(chan struct{}),
		store: &guardedStore{Store: g.log, fail: g.fail, stored: g.news.tell},
	}
	r.trans = newTransport(g)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("start raft: %v", p)
		}
		if err != nil {
			r.trans.Close()
		}
	}()
	r.raft, err = raft.NewRaft(g.config(), g.fsm, r.store, r.store, g.points, r.trans)
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	r.store.running.Store(true)
	g.cur.Store(r)
	close(r.trans.ready)
	r.raft.RegisterObserver(raft.NewObserver(r.events, false, observed))
	go r.trans.pump(r.quit)
	return r, nil
}

// observed tells which of Raft's observations may change what the group tells others.
func observed(o *raft.Observation) bool {
	switch o.Data.(type) {
	case raft.RaftState, raft.LeaderObservation, raft.PeerObservation:
		return true
	}
	return false
}

// stop ends Raft and its connections. Those go first: the library waits for requests that are under
// way, to a peer that may never answer.
func (r *replica) stop() {
	r.once.Do(func() {
		if err := r.trans.Close(); err != nil {
			r.g.slog.Debug("transport not closed", "err", err)
		}
		close(r.quit)
		r.asking.Lock() // not for long: a leader without connections steps down, and answers then
		r.ended = true
		r.asking.Unlock()
		_ = r.raft.Shutdown().Error() // it only waits
		<-r.trans.stopped
	})
}

// verify asks the library whether this replica still leads. begin is called before, so that no answer counts to a heartbeat that was sent
// with those of others earlier. The library never answers what is in its
// channel when it is shut down, and takes questions after that: so none is asked then, and stop waits for the one that is under way.
func (r *replica) verify(begin func()) error {
	r.asking.Lock()
	defer r.asking.Unlock()
	if r.ended {
		return raft.ErrRaftShutdown
	}
	begin()
	return r.raft.VerifyLeader().Error()
}

// set changes settings of the library. Each of its calls replaces them all.
func (r *replica) set(change func(*raft.ReloadableConfig)) error {
	r.setting.Lock()
	defer r.setting.Unlock()
	c := r.raft.ReloadableConfig()
	change(&c)
	return r.raft.ReloadConfig(c)
}

// wantBeats has the library send the next heartbeats as soon as these are answered, so that they wait for the next moment in AppendEntries
// and not for a timer of the library's, one each, 50 to 100 ms later. What makes it do so is that the heartbeat timeout becomes shorter: it
// becomes longer by a nanosecond first. It does not block, and where it comes too late the timer is waited for.
func (r *replica) wantBeats() {
	if r.raft.State() != raft.Leader { // a follower that is told so would not wait for its leader
		return
	}
	r.nudge()
}

// postpone has a follower that has just heard its leader wait from now on. The library's timer runs for 500 to 1,000 ms from when it ran out
// the last time, and wakes the process for each group at a time of its own; and a leader that dies was missed when it ran out for the
// second time. What has heard nothing for too long meanwhile stands for election, as it would have.
func (r *replica) postpone() {
	if r.raft.State() == raft.Follower {
		r.nudge()
	}
}

// nudge has the library look at its timers.
func (r *replica) nudge() {
	for _, more := range []time.Duration{1, 0} {
		_ = r.set(func(c *raft.ReloadableConfig) { // what was valid stays so
			c.HeartbeatTimeout, c.ElectionTimeout = r.g.heartbeat+more, r.g.heartbeat+more
		})
	}
}

// elect lets the replica stand for election at once. It is what the library does when leadership is
// transferred to it.
func (r *replica) elect() {
	rpc := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: r.trans.header()},
		RespChan: make(chan raft.RPCResponse, 1),
	}
	r.trans.forward(rpc, r.quit)
}

// restart asks the watcher for a new life of the replica.
func (g *Group) restart() { signal(g.again) }

func (g *Group) startAnew() {
	g.slog.Info("restarting raft after a checkpoint below the end of the log")
	g.cur.Load().stop()
	if err := reconcile(g.log, g.points); err != nil {
		g.fail(err)
		return
	}
	if _, err := g.start(); err != nil {
		g.fail(err)
	}
}
