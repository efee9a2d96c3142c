package shard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/vfs"
)

// lie lets all syncs of a member be answered and not done.
func (m *member) lie() {
	m.c.t.Helper()
	rules, err := vfs.NewRules("", []vfs.Rule{{Mode: vfs.Lie}})
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.fault.SetRules(rules)
}

// kill stops a member as kill -9 does: what it wrote is there.
func (m *member) kill() {
	for _, g := range m.node.Groups() {
		g.halt()
	}
	m.stop()
}

func (m *member) wasAsked() bool {
	m.group.doubt.mu.Lock()
	defer m.group.doubt.mu.Unlock()
	return !m.group.doubt.mu.asked.IsZero()
}

// A leader's disk lies, its power is cut, and it is back before the only replica that has the last records is: it must not help the
// one that lacks them to lead.
func TestLyingLeader(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.doubtFor = patience })
	liar := c.leader()
	others := c.others(liar.id)
	honest, behind := c.nodes[others[0]], c.nodes[others[1]]
	liar.mustPut("first=1")
	c.until("all have it", func() bool { return c.same(liar, honest)() && c.same(liar, behind)() })
	c.partition(behind.id, true)
	liar.lie()
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprintf("k%d=v", i))
	}
	liar.mustPut(want...)

	c.partition(honest.id, true)
	liar.crash()
	c.link(behind.id, liar.id)
	liar.restart()
	if last := liar.group.raft().LastIndex(); last >= 50 {
		t.Fatalf("%d entries survived on a disk that lies", last)
	}
	c.until("the one that is behind stands for election", liar.wasAsked)
	if _, _, known := behind.group.Leader(); known {
		t.Fatal("the one that is behind leads")
	}
	for _, id := range others {
		c.partition(id, false)
	}
	next := c.leader()
	for _, e := range want {
		if key, _, _ := strings.Cut(e, "="); !has(next, key) {
			t.Fatalf("%s was acknowledged, the new leader lacks it", e)
		}
	}
	c.until("it has been told again", c.same(next, liar))
	c.until("it is not in doubt any more, as it has caught up", func() bool { return !liar.group.doubtful() })
}

func TestDoubtEndsByTime(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.leader().mustPut("k=v")
	for _, m := range c.nodes {
		m.crash()
	}
	began := time.Now()
	for _, m := range c.nodes {
		m.restart()
		if !m.group.doubtful() && time.Since(m.node.started) < doubtFor {
			t.Errorf("node %d does not doubt itself after a power cut", m.id)
		}
	}
	next := c.leader()
	if took := time.Since(began); took < doubtFor {
		t.Errorf("a leader was elected %v after all had lost their power, before %v", took, doubtFor)
	}
	if !has(next, "k") {
		t.Error("the record is lost")
	}
}

// A process that is killed loses nothing, and one that is killed in doubt is started in doubt.
func TestDoubtOutlivesTheProcess(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.doubtFor = patience }) // it does not end by time here
	leader := c.leader()
	leader.mustPut("k=v")
	f := follower(c, leader)
	booted := func() bool { known, err := f.group.knowsBoot(); return err == nil && known }
	c.until("the boot is written down", booted)
	f.kill()
	f.restart()
	if f.group.doubtful() {
		t.Error("it is in doubt after kill -9")
	}

	c.partition(f.id, true)
	f.crash()
	f.restart()
	if !f.group.doubtful() {
		t.Fatal("it is not in doubt after a power cut")
	}
	f.kill()
	f.restart()
	if !f.group.doubtful() {
		t.Fatal("it is not in doubt after a power cut and kill -9")
	}
	c.partition(f.id, false)
	c.until("it has caught up", func() bool { return !f.group.doubtful() })
	c.until("the boot is written down again", booted)
}

func TestFewVotersDoNotDoubt(t *testing.T) {
	for _, size := range []int{1, 2} {
		c := newCluster(t, size, nil)
		c.leader().mustPut("k=v")
		m := c.nodes[1]
		m.crash()
		m.restart()
		if m.group.doubtful() {
			t.Errorf("one of %d voters is in doubt", size)
		}
		c.leader()
	}
}

func TestNewReplicasDoNotDoubt(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, m := range c.nodes {
		if m.group.doubtful() {
			t.Error("a founder is in doubt")
		}
	}
	m := c.add(4)
	m.open()
	if m.group.doubtful() {
		t.Error("an empty replica is in doubt")
	}
}

// What ends the doubt is an entry of the leader's own term, not below what it knows to be committed.
func TestWhatEndsDoubt(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = calm }) // another leader would have more committed
	leader := c.leader()
	leader.mustPut("k=v")
	m := follower(c, leader)
	c.until("the follower has it", c.same(leader, m))
	g := m.group
	last := g.raft().LastIndex()
	var l raft.Log
	if err := g.log.GetLog(last, &l); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		sent raft.AppendEntriesRequest
		ends bool
	}{
		"a leader of a later term":        {raft.AppendEntriesRequest{Term: l.Term + 1, PrevLogEntry: last, PrevLogTerm: l.Term, LeaderCommitIndex: last}, false},
		"more is committed":               {raft.AppendEntriesRequest{Term: l.Term, PrevLogEntry: last, PrevLogTerm: l.Term, LeaderCommitIndex: last + 1}, false},
		"an entry that has not come":      {raft.AppendEntriesRequest{Term: l.Term, PrevLogEntry: last + 1, PrevLogTerm: l.Term, LeaderCommitIndex: last}, false},
		"an entry that is not stored yet": {raft.AppendEntriesRequest{Term: l.Term, PrevLogEntry: last, PrevLogTerm: l.Term, Entries: []*raft.Log{{Index: last + 1, Term: l.Term}}}, false},
		"everything":                      {raft.AppendEntriesRequest{Term: l.Term, PrevLogEntry: last, PrevLogTerm: l.Term, LeaderCommitIndex: last}, true},
	} {
		if got := g.holds(proof(&tt.sent)); got != tt.ends {
			t.Errorf("%s: ends the doubt: %v, want %v", name, got, tt.ends)
		}
	}
}

// The leader says so when a follower has lost what it had confirmed, once.
func TestLeaderSeesALyingDisk(t *testing.T) {
	attempts(t, func() error { return leaderSeesALyingDisk(t) })
}

func leaderSeesALyingDisk(t *testing.T) error {
	c := newCluster(t, 3, nil)
	defer c.close()
	leader := c.leader()
	liar := follower(c, leader)
	leader.mustPut("k=v")
	c.until("all have it", c.same(leader, liar))
	liar.kill()
	liar.restart()
	leader.mustPut("honest=1")
	c.until("it has come back", c.same(leader, liar))
	if n := leader.group.metrics.forgotten.Get(); n != 0 {
		t.Fatalf("%d honest replicas were taken for liars", n)
	}
	liar.lie()
	for i := range 20 {
		leader.mustPut(fmt.Sprintf("k%d=v", i))
	}
	c.until("it has said that it has all", c.same(leader, liar))
	liar.crash()
	liar.restart()
	c.until("it has been told again", c.same(leader, liar))
	if n := leader.group.metrics.forgotten.Get(); n != 1 {
		return fmt.Errorf("the leader has seen it %d times, want once", n) // it does not lead any more, perhaps
	}
	return nil
}

func has(m *member, key string) bool { _, ok := m.sm.get(key); return ok }

// A leader that was deposed does not know what its successor has committed: what it sends ends no doubt.
func TestDeposedLeaderEndsNoDoubt(t *testing.T) {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = calm })
	leader := c.leader()
	leader.mustPut("k=v")
	g := leader.group
	last, term := g.raft().LastIndex(), g.term()
	var l raft.Log
	if err := g.log.GetLog(last, &l); err != nil {
		t.Fatal(err)
	}
	g.doubt.over.Store(false)
	defer g.doubt.over.Store(true)
	g.hearsLeader(&raft.AppendEntriesRequest{Term: term - 1, PrevLogEntry: last, PrevLogTerm: term - 1, LeaderCommitIndex: last})
	g.doubt.mu.Lock()
	told := g.doubt.mu.told
	g.doubt.mu.Unlock()
	if told.index != 0 {
		t.Errorf("what the leader of term %d has sent counts in term %d: %+v", term-1, term, told)
	}
}
