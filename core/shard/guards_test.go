package shard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/raftlog"
	"sluice/core/vfs"
)

// The tests are numbered as the guards in DESIGN.md.

func (m *member) trans() *transport { return m.group.cur.Load().trans }

func (m *member) rpcHeader() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(m.self.String()), Addr: []byte(m.self.String())}
}

func follower(c *cluster, leader *member) *member { return c.nodes[c.others(leader.id)[0]] }

func (c *cluster) same(ms ...*member) func() bool {
	return func() bool {
		for _, m := range ms[1:] {
			if !slices.Equal(m.sm.all(), ms[0].sm.all()) {
				return false
			}
		}
		return true
	}
}

func TestGuard01LateCheckpoint(t *testing.T) {
	attempts(t, func() error { return lateCheckpoint(t) })
}

func lateCheckpoint(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	leader.mustPut("a=1", "b=2")
	if err := leader.group.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	points, err := leader.group.points.List()
	if err != nil || len(points) != 1 {
		t.Fatalf("%d checkpoints, %v", len(points), err)
	}
	_, r, err := leader.group.points.Open(points[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := io.ReadAll(r)
	r.Close()
	leader.mustPut("c=3", "d=4")
	f := follower(c, leader)
	c.until("the follower has applied", c.same(leader, f))
	req := &raft.InstallSnapshotRequest{
		RPCHeader: leader.rpcHeader(), SnapshotVersion: raft.SnapshotVersionMax, Term: leader.group.term(),
		LastLogIndex: points[0].Index, LastLogTerm: points[0].Term, Size: int64(len(old)),
		Configuration:      raft.EncodeConfiguration(points[0].Configuration),
		ConfigurationIndex: points[0].ConfigurationIndex,
	}
	var resp raft.InstallSnapshotResponse
	if err := leader.trans().InstallSnapshot(serverID(f.self), serverAddress(f.self), req, &resp, bytes.NewReader(old)); err != nil {
		return err
	}
	if n := f.sm.restores.Load(); n != 0 {
		t.Fatalf("%d restores", n)
	}
	if !resp.Success {
		return fmt.Errorf("refused in term %d, sent in %d", resp.Term, req.Term)
	}
	req.Term-- // of a deposed leader: it must learn that it is
	if err := leader.trans().InstallSnapshot(serverID(f.self), serverAddress(f.self), req, &resp, bytes.NewReader(old)); err != nil {
		return err
	}
	if resp.Success || resp.Term <= req.Term {
		t.Fatalf("a deposed leader was answered success %v, term %d", resp.Success, resp.Term)
	}
	leader.mustPut("e=5")
	c.until("the follower goes on", c.same(leader, f))
	return nil
}

func TestGuard01CheckpointOlderThanAppliedIsRefusedByStore(t *testing.T) {
	points, err := openCheckpoints(vfs.NewMem(), ".")
	if err != nil {
		t.Fatal(err)
	}
	points.refuse = func(index, _ uint64) bool { return index <= 10 }
	if _, err := points.Create(1, 10, 1, raft.Configuration{}, 1, nil); !errors.Is(err, errInstalling) {
		t.Fatalf("got %v", err)
	}
}

// newDisk returns a replica's files with a checkpoint at an index and a log of entries of term 1.
func newDisk(t *testing.T, point, term, first, last uint64) (*raftlog.Store, *checkpoints) {
	t.Helper()
	mem := vfs.NewMem()
	points, err := openCheckpoints(mem, ".")
	if err != nil {
		t.Fatal(err)
	}
	if point > 0 {
		s, err := points.Create(1, point, term, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	log, err := raftlog.Open(mem, "log", raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	for i := first; i <= last && last > 0; i++ {
		if err := log.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	return log, points
}

func TestGuard02LogAgainstCheckpoint(t *testing.T) {
	cases := []struct {
		name                     string
		point, term, first, last uint64
		damaged, dropped         bool
	}{
		{"log goes on", 5, 1, 3, 9, false, false},
		{"log begins right behind", 5, 1, 6, 9, false, false},
		{"log ends before", 8, 1, 1, 7, false, true},
		{"log ends at it", 7, 1, 1, 7, false, false},
		{"another leader's entry at it", 5, 2, 1, 9, false, true},
		{"entries are missing", 5, 1, 7, 9, true, false},
		{"log without its checkpoint", 0, 0, 2, 9, true, false},
		{"log from the beginning", 0, 0, 1, 9, false, false},
		{"no log", 5, 1, 0, 0, false, false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			log, points := newDisk(t, tc.point, tc.term, tc.first, tc.last)
			err := reconcile(log, points)
			if errors.Is(err, ErrDamaged) != tc.damaged || (err != nil && !tc.damaged) {
				t.Fatalf("got %v", err)
			}
			if last, _ := log.LastIndex(); (last == 0) != (tc.dropped || tc.last == 0) {
				t.Fatalf("the log ends at %d", last)
			}
		})
	}
}

func TestGuard02UnreadableCheckpointIsDamage(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	m.mustPut("a=1")
	m.stop()
	name := "data/shards/7/checkpoint"
	data, err := vfs.ReadFile(m.disk, name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		bad := slices.Clone(data)
		bad[i] ^= 0x40
		if err := vfs.WriteFile(m.disk, name, bad); err != nil {
			t.Fatal(err)
		}
		if _, err := openCheckpoints(m.disk, "data/shards/7"); !errors.Is(err, ErrDamaged) {
			t.Fatalf("bit in byte %d of %d: %v", i, len(data), err)
		}
	}
	m.start()
	if _, err := m.node.Open(testShard, &kv{}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("open: %v", err)
	}
	if err := m.node.Remove(testShard); err != nil {
		t.Fatal(err)
	}
	if _, err := m.node.Open(testShard, &kv{}); err != nil {
		t.Fatalf("open as a new member: %v", err)
	}
}

func TestGuard03Preface(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	m.node.Handle("echo", func(_ context.Context, from meta.NodeID, conn net.Conn) { fmt.Fprintf(conn, "from %d", from) })
	good := preface{shard: testShard, kind: kindRaft, cluster: "test", from: "2.x", to: m.self.String()}
	cases := []struct {
		name   string
		change func(*preface)
		want   byte
	}{
		{"right", func(*preface) {}, answerWelcome},
		{"other cluster", func(p *preface) { p.cluster = "other" }, answerCluster},
		{"no cluster", func(p *preface) { p.cluster = "" }, answerCluster},
		{"other incarnation", func(p *preface) { p.to = "1.other" }, answerTarget},
		{"no incarnation", func(p *preface) { p.to = "1" }, answerTarget},
		{"from nobody", func(p *preface) { p.from = "" }, answerTarget},
		{"other shard", func(p *preface) { p.shard = 8 }, answerShard},
		{"unknown kind", func(p *preface) { p.kind = "what" }, answerKind},
		{"known kind", func(p *preface) { p.kind, p.to = "echo", "1" }, answerWelcome},
		{"known kind, other node", func(p *preface) { p.kind, p.to = "echo", "2" }, answerTarget},
		{"join without cluster", func(p *preface) { p.kind, p.cluster, p.to = KindJoin, "", "" }, answerKind},
		{"join other cluster", func(p *preface) { p.kind, p.cluster, p.to = KindJoin, "other", "" }, answerCluster},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			p := good
			tc.change(&p)
			b, err := p.encode()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", m.node.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
			var answer [1]byte
			if _, err := io.ReadFull(conn, answer[:]); err != nil || answer[0] != tc.want {
				t.Fatalf("answer %d, %v, want %d", answer[0], err, tc.want)
			}
			if tc.want != answerWelcome {
				if n, err := conn.Read(answer[:]); err != io.EOF {
					t.Fatalf("connection stays open: %d, %v", n, err)
				}
			}
		})
	}
	conn, err := m.node.Dial(context.Background(), 1, "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if said, _ := io.ReadAll(conn); string(said) != "from 1" {
		t.Errorf("handler said %q", said)
	}
	if _, err := m.node.Dial(context.Background(), 1, "nothing"); !errors.Is(err, ErrRefused) {
		t.Errorf("dial of an unknown kind: %v", err)
	}
	if _, err := m.node.DialAddr(context.Background(), m.node.Addr().String(), "echo"); err == nil {
		t.Error("an address was dialled for a kind that needs a node")
	}
}

func FuzzPreface(f *testing.F) {
	b, _ := preface{shard: 3, kind: kindRaft, cluster: "c", from: "1.a", to: "2.b"}.encode()
	f.Add(b)
	f.Add([]byte("SLPN\x01\x00\x00\x04\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		p, version, err := readPreface(r)
		if err != nil || version != prefaceVersion {
			return
		}
		again, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		q, _, err := readPreface(bytes.NewReader(again))
		if err != nil || q != p {
			t.Fatalf("%+v became %+v, %v", p, q, err)
		}
	})
}

func TestGuard03NoVoteWithoutConfiguration(t *testing.T) {
	c := newCluster(t, 1, nil)
	leader := c.leader()
	empty := c.add(2)
	empty.open()
	vote := &raft.RequestVoteRequest{RPCHeader: leader.rpcHeader(), Term: 99, LastLogIndex: 99, LastLogTerm: 99}
	var voted raft.RequestVoteResponse
	if err := leader.trans().RequestVote(serverID(empty.self), serverAddress(empty.self), vote, &voted); err != nil || voted.Granted {
		t.Errorf("vote: granted %v, %v", voted.Granted, err)
	}
	pre := &raft.RequestPreVoteRequest{RPCHeader: leader.rpcHeader(), Term: 99, LastLogIndex: 99, LastLogTerm: 99}
	var prevoted raft.RequestPreVoteResponse
	if err := leader.trans().RequestPreVote(serverID(empty.self), serverAddress(empty.self), pre, &prevoted); err != nil || prevoted.Granted {
		t.Errorf("pre-vote: granted %v, %v", prevoted.Granted, err)
	}
	now := &raft.TimeoutNowRequest{RPCHeader: leader.rpcHeader()}
	if err := leader.trans().TimeoutNow(serverID(empty.self), serverAddress(empty.self), now, &raft.TimeoutNowResponse{}); err == nil {
		t.Error("a replica without a configuration stood for election")
	}
	if empty.group.term() != 0 {
		t.Errorf("its term is %d", empty.group.term())
	}
}

func TestGuard04BootstrapCutAnywhere(t *testing.T) {
	voters := []meta.Server{{Node: 1, Incarnation: "a"}}
	cut := errors.New("power cut")
	for calls := 0; ; calls++ {
		disk := vfs.NewMem()
		fault := vfs.NewFault(disk)
		n := bareNode(t, fault)
		left := calls
		fault.SetHook(func(op vfs.Op, _ string) error {
			if op.Changes() {
				if left == 0 {
					return cut
				}
				left--
			}
			return nil
		})
		err := n.Bootstrap(testShard, voters)
		n.Close()
		for _, keep := range []bool{false, true} {
			after := bareNode(t, disk.CrashClone(func() bool { return keep }))
			if err == nil {
				if used, _ := after.hasState(after.dir(testShard)); !used {
					t.Fatal("a bootstrapped shard was lost")
				}
			}
			if err := after.Bootstrap(testShard, voters); err != nil {
				t.Fatalf("after a cut at call %d: %v", calls, err)
			}
			g, err := after.Open(testShard, &kv{})
			if err != nil {
				t.Fatalf("after a cut at call %d: %v", calls, err)
			}
			if servers := g.raft().GetConfiguration().Configuration().Servers; len(servers) != 1 || g.term() == 0 {
				t.Fatalf("after a cut at call %d: %d servers, term %d", calls, len(servers), g.term())
			}
			names, _ := after.o.FS.List("data/shards")
			names = slices.DeleteFunc(names, func(name string) bool { return name == "7"+bootSuffix }) // written once it takes part in elections
			if !slices.Equal(names, []string{"7", "7.mark"}) {
				t.Fatalf("after a cut at call %d: %v is left", calls, names)
			}
			after.Close()
		}
		if err == nil {
			return
		}
	}
}

func bareNode(t *testing.T, fsys vfs.FS) *Node {
	t.Helper()
	n, err := NewNode(Options{
		FS: fsys, Dir: "data", ClusterID: func() string { return "test" }, Self: meta.Server{Node: 1, Incarnation: "a"},
		Listen: "127.0.0.1:0", Resolve: func(meta.NodeID) (string, bool) { return "", false },
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (c *cluster) inSync(leader, of *member) bool { return leader.group.inSync(of.self) }

func TestGuard05IncompleteReplica(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	leader.mustPut("a=1")
	f := follower(c, leader)
	c.until("the follower is in sync", func() bool { return c.inSync(leader, f) })
	f.sm.incomplete.Store(true)
	c.until("the follower is out of sync", func() bool { return !c.inSync(leader, f) })
	leader.mustPut("b=2")
	c.until("it applies", c.same(leader, f))
	c.until("a transfer is refused", func() bool {
		leader.lead()
		err := leader.group.Transfer(context.Background(), f.id)
		if err == nil {
			t.Fatal("an incomplete replica got the lead")
		}
		return errors.Is(err, ErrNotInSync)
	})
	now := &raft.TimeoutNowRequest{RPCHeader: leader.rpcHeader()}
	if err := leader.trans().TimeoutNow(serverID(f.self), serverAddress(f.self), now, &raft.TimeoutNowResponse{}); err == nil {
		t.Error("an incomplete replica stood for election")
	}
	third := c.nodes[6-leader.id-f.id]
	c.until("a removal is refused while another one is incomplete", func() bool {
		leader.lead()
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		err := leader.group.RemoveServer(ctx, third.self)
		if err == nil {
			t.Fatal("removed")
		}
		return errors.Is(err, ErrNotInSync)
	})
	leader.sm.incomplete.Store(true)
	if _, ok := leader.group.Serving(); ok {
		t.Error("an incomplete leader serves")
	}
	leader.sm.incomplete.Store(false)
	f.sm.incomplete.Store(false)
	c.until("the third is removed", func() bool {
		leader.lead()
		err := leader.group.RemoveServer(context.Background(), third.self)
		return err == nil || len(leader.group.Replicas()) == 2
	})
	if n := len(leader.group.Replicas()); n != 2 {
		t.Errorf("%d members, want 2", n)
	}
}

func TestGuard06DeposedLeaderDoesNotVerify(t *testing.T) {
	c := newCluster(t, 3, nil)
	old := c.leader()
	old.mustPut("a=1")
	old.insist("the leader is verified", func() error { return old.group.Verify(context.Background()) })
	c.partition(old.id, true)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := old.group.Verify(ctx); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("verify on a leader that is cut off: %v", err)
	}
	next := c.leader(c.others(old.id)...)
	next.mustPut("b=2")
	since := next.group.term()
	c.partition(old.id, false)
	c.until("the old leader follows", c.same(old, next))
	if term, ok := old.group.Serving(); ok && term <= since { // it may have been elected again
		t.Errorf("the old leader serves in term %d, another one does since term %d", term, since)
	}
}

// The library takes questions when it has been shut down, and answers none of them.
func TestGuard06NothingIsAskedAfterTheEnd(t *testing.T) {
	r := newCluster(t, 1, nil).leader().group.cur.Load()
	r.stop()
	for range 64 {
		if err := r.verify(func() {}); !errors.Is(err, raft.ErrRaftShutdown) {
			t.Fatal(err)
		}
	}
}

// A follower may have applied, and shown, what its leader has only committed.
func TestGuard06VerifyWaitsForWhatAFollowerShows(t *testing.T) {
	attempts(t, func() error { return verifyWaits(t) })
}

func verifyWaits(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	leader.mustPut("a=1")
	f := follower(c, leader)
	if err := leader.group.Verify(context.Background()); err != nil {
		return err
	}
	release := leader.sm.block()
	defer release()
	future := leader.group.Propose([]byte("b=2"))
	c.until("the follower shows it", func() bool { _, ok := f.sm.get("b"); return ok })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	switch err := leader.group.Verify(ctx); {
	case err == nil:
		t.Fatal("verified a leader that has not applied what a follower shows")
	case !errors.Is(err, context.DeadlineExceeded):
		return err
	}
	release()
	if err := leader.group.Verify(context.Background()); err != nil {
		return err
	}
	if _, ok := leader.sm.get("b"); !ok {
		t.Error("verified, and does not show what the follower showed")
	}
	_, err := future.Wait(context.Background())
	return err
}

func TestGuard06ChecksAreShared(t *testing.T) {
	attempts(t, func() error { return checksAreShared(t) })
}

func checksAreShared(t *testing.T) (failed error) {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	since := time.Now()
	errs := make(chan error, 500)
	for range cap(errs) {
		go func() { errs <- leader.group.Verify(context.Background()) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			failed = err
		}
	}
	t.Logf("%d checks in %v", cap(errs), time.Since(since))
	return failed
}

func TestGuard07CurrentAfterStart(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	leader.mustPut("a=1", "b=2")
	f := follower(c, leader)
	for _, m := range []*member{leader, f} {
		select {
		case <-m.group.Current():
		case <-time.After(patience):
			t.Fatalf("node %d never became current", m.id)
		}
	}
	f.crash()
	c.partition(f.id, true)
	f.restart()
	select {
	case <-f.group.Current():
		t.Fatal("current without having heard of a leader")
	case <-time.After(300 * time.Millisecond):
	}
	c.partition(f.id, false)
	select {
	case <-f.group.Current():
	case <-time.After(patience):
		t.Fatal("never became current")
	}
	if got := len(f.sm.all()); got != 2 {
		t.Fatalf("current with %d entries, want 2", got)
	}
}
