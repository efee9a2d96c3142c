package shard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/raftlog"
	"sluice/core/vfs"
)

func TestGuard08SlowDiskLosesLeadership(t *testing.T) {
	attempts(t, func() error { return slowDiskLosesLeadership(t) })
}

func slowDiskLosesLeadership(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	old := c.leader()
	old.mustPut("a=1")
	hung := make(chan struct{})
	release := sync.OnceFunc(func() { close(hung) })
	defer release()
	old.fault.SetHook(func(op vfs.Op, name string) error {
		if op == vfs.OpSync && strings.HasSuffix(name, ".rlog") {
			<-hung
		}
		return nil
	})
	future := old.group.Propose([]byte("stuck=1"))
	next := c.leader(c.others(old.id)...)
	next.mustPut("b=2")
	if _, ok := old.group.Serving(); ok {
		t.Error("a leader with a hung disk serves")
	}
	old.fault.SetHook(nil)
	release()
	if _, err := future.Wait(context.Background()); !errors.Is(err, ErrUnknown) {
		return fmt.Errorf("the proposal that hung: %w", err)
	}
	c.until("the old leader follows", c.same(old, next))
	if _, ok := next.sm.get("stuck"); ok {
		t.Error("an entry that was on one disk only was committed")
	}
	return nil
}

func TestGuard09FailedDiskStopsReplica(t *testing.T) {
	attempts(t, func() error { return failedDiskStopsReplica(t) })
}

func failedDiskStopsReplica(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	old := c.leader()
	old.mustPut("a=1")
	broken := errors.New("input/output error")
	old.fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			return broken
		}
		return nil
	})
	_, err := old.group.Propose([]byte("b=2")).Wait(context.Background())
	if !errors.Is(err, ErrUnknown) {
		return fmt.Errorf("proposal: %w", err)
	}
	<-old.group.Failed()
	if err := old.group.Err(); !errors.Is(err, broken) {
		t.Errorf("group says %v", err)
	}
	next := c.leader(c.others(old.id)...)
	next.mustPut("c=3")
	if _, err := old.group.Propose([]byte("d=4")).Wait(context.Background()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("proposal after the failure: %v", err)
	}
	old.fault.SetHook(nil)
	old.node.Stop(testShard)
	old.open()
	c.until("the replica follows after its disk was repaired", c.same(next, old))
	return nil
}

func TestGuard09FailedStateMachineStopsReplica(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	m.mustPut("a=1")
	broken := errors.New("segment is gone")
	m.sm.failure.Store(&broken)
	if _, err := m.group.Propose([]byte("b=2")).Wait(context.Background()); !errors.Is(err, ErrUnknown) {
		t.Errorf("proposal: %v", err)
	}
	<-m.group.Failed()
	if err := m.group.Err(); !errors.Is(err, broken) {
		t.Errorf("group says %v", err)
	}
	if _, ok := m.group.Serving(); ok {
		t.Error("it serves")
	}
}

func TestGuard09DamagedEntryEndsOnlyTheReplica(t *testing.T) {
	store := &guardedStore{Store: mustLog(t), fail: func(error) {}, stored: func() {}}
	failed := make(chan error, 1)
	store.fail = func(err error) { failed <- err }
	store.running.Store(true)
	store.Store.Close()
	ended := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { ended <- returned }()
		var l raft.Log
		store.GetLog(1, &l)
		returned = true
	}()
	if <-ended {
		t.Error("GetLog returned")
	}
	if err := <-failed; !errors.Is(err, raftlog.ErrClosed) {
		t.Errorf("failed with %v", err)
	}
}

func mustLog(t *testing.T) *raftlog.Store {
	log, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func TestGuard09Outcomes(t *testing.T) {
	certain := []error{raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress}
	unknown := []error{raft.ErrLeadershipLost, raft.ErrRaftShutdown, raft.ErrAbortedByRestore, errors.New("disk")}
	for _, err := range certain {
		if !errors.Is(outcome(err), ErrNotLeader) || errors.Is(outcome(err), ErrUnknown) {
			t.Errorf("%v became %v", err, outcome(err))
		}
	}
	for _, err := range unknown {
		if !errors.Is(outcome(err), ErrUnknown) || errors.Is(outcome(err), ErrNotLeader) {
			t.Errorf("%v became %v", err, outcome(err))
		}
	}
	if outcome(nil) != nil {
		t.Error("success is an error")
	}
}

func TestGuard10And12And13Configuration(t *testing.T) {
	n := bareNode(t, vfs.NewMem())
	defer n.Close()
	for _, id := range []meta.ShardID{meta.MetadataShard, 1} {
		g := &Group{node: n, id: id, heartbeat: n.o.Heartbeat}
		c := g.config()
		if err := raft.ValidateConfig(c); err != nil {
			t.Error(err)
		}
		if c.HeartbeatTimeout != 500*time.Millisecond || c.ElectionTimeout != c.HeartbeatTimeout {
			t.Errorf("timeouts %v, %v", c.HeartbeatTimeout, c.ElectionTimeout)
		}
		if c.LeaderLeaseTimeout < 250*time.Millisecond || c.LeaderLeaseTimeout > 400*time.Millisecond {
			t.Errorf("lease %v", c.LeaderLeaseTimeout)
		}
		if c.SnapshotThreshold != math.MaxUint64 || c.TrailingLogs == 0 || !c.BatchApplyCh || c.PreVoteDisabled {
			t.Errorf("%+v", c)
		}
		if c.MaxAppendEntries != 128 || maxRPCsInFlight < 16 {
			t.Errorf("%d entries, %d requests", c.MaxAppendEntries, maxRPCsInFlight)
		}
	}
}

func TestGuard11RequestsAreCut(t *testing.T) {
	a := &raft.AppendEntriesRequest{}
	for i := range 100 {
		a.Entries = append(a.Entries, &raft.Log{Index: uint64(i), Data: make([]byte, 1<<20)})
	}
	cut := func() {
		if err := (&transport{}).load("2.b", a); err != nil {
			t.Fatal(err)
		}
	}
	cut()
	if len(a.Entries) != maxAppendBytes>>20 {
		t.Errorf("%d entries of 1 MiB", len(a.Entries))
	}
	a.Entries = []*raft.Log{{Data: make([]byte, MaxEntryBytes)}, {}}
	cut()
	if len(a.Entries) != 1 {
		t.Errorf("%d entries, want the large one alone", len(a.Entries))
	}
}

func TestGuard11FollowerStopsReading(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = calm })
	leader := c.leader()
	f := follower(c, leader)
	c.until("the follower is there", func() bool { return c.inSync(leader, f) })
	f.group.maxUnapplied = 1 << 20
	release := f.sm.block()
	defer release()
	value := strings.Repeat("x", 256<<10)
	for i := range 16 {
		leader.mustPut(fmt.Sprintf("k%d=%s", i, value))
	}
	last := leader.group.raft().LastIndex()
	if behind := f.group.raft().LastIndex(); behind >= last {
		t.Errorf("the follower accepted everything: %d of %d", behind, last)
	}
	release()
	c.until("the follower has read on", c.same(leader, f))
}

func TestGuard14CheckpointAfterChangeOfMembers(t *testing.T) {
	c := newCluster(t, 1, nil)
	leader := c.leader()
	leader.mustPut("a=1")
	other := c.add(2)
	other.open()
	if err := leader.group.AddNonvoter(context.Background(), other.self); err != nil {
		t.Fatal(err)
	}
	if err := leader.group.Checkpoint(context.Background()); err != nil {
		t.Fatalf("checkpoint right after the change: %v", err)
	}
	leader.insist("the new member has a vote", func() error { return leader.group.AddVoter(context.Background(), other.self) })
	c.until("the new member has applied", c.same(leader, other))
	other.lead()
}

func TestGuard15Interfaces(t *testing.T) {
	var trans raft.Transport = (*transport)(nil)
	if _, ok := trans.(raft.WithPreVote); !ok {
		t.Error("the transport has no pre-vote")
	}
	if _, ok := trans.(raft.WithClose); !ok {
		t.Error("the transport cannot be closed")
	}
	log := mustLog(t)
	store := &guardedStore{Store: log, stored: func() {}}
	var logs raft.LogStore = store
	if m, ok := logs.(raft.MonotonicLogStore); !ok || !m.IsMonotonic() {
		t.Error("the log store is not monotonic")
	}
	var l raft.Log
	if err := store.GetLog(5, &l); err != raft.ErrLogNotFound {
		t.Errorf("a missing entry is %v", err)
	}
}

func TestGuard16CommitIndexIsLowered(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	leader.mustPut("a=1")
	f := follower(c, leader)
	c.until("the follower has applied", c.same(leader, f))
	for _, m := range c.nodes { // so that nobody else is elected meanwhile, who would tell the follower of more
		c.partition(m.id, true)
	}
	// The follower gets entries of the leader's that are not committed anywhere ...
	r := f.group.raft()
	last, term := r.LastIndex(), r.CurrentTerm()
	append1 := &raft.AppendEntriesRequest{
		RPCHeader: leader.rpcHeader(), Term: term, PrevLogEntry: last, PrevLogTerm: term,
		Entries: []*raft.Log{{Index: last + 1, Term: term, Data: []byte("never=1")}},
	}
	// ... and then a request that confirms only what was there before them, with a higher commit.
	append2 := &raft.AppendEntriesRequest{
		RPCHeader: leader.rpcHeader(), Term: term, PrevLogEntry: last, PrevLogTerm: term, LeaderCommitIndex: last + 1,
	}
	for _, a := range []*raft.AppendEntriesRequest{append1, append2} {
		answer := make(chan raft.RPCResponse, 1)
		f.trans().receive(raft.RPC{Command: a, RespChan: answer}, nil)
		<-answer
	}
	if got := r.CommitIndex(); got > last {
		t.Errorf("committed up to %d, only %d was confirmed", got, last)
	}
}

func TestGuard17ResultsKeepOrder(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	var futures []Future
	for i := range 2000 {
		futures = append(futures, m.group.Propose(fmt.Appendf(nil, "k=%d", i)))
	}
	for i, f := range futures {
		if result, err := f.Wait(context.Background()); err != nil || result != i+1 {
			t.Fatalf("proposal %d: %v, %v", i, result, err)
		}
	}
	for i, e := range m.sm.all() {
		if e != fmt.Sprintf("k=%d", i) {
			t.Fatalf("entry %d is %s", i, e)
		}
	}
}
