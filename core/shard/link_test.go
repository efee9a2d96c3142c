package shard

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

func TestBeatsOnTheWire(t *testing.T) {
	asked := []question{{7, 1}, {1 << 31, 1<<64 - 1}}
	round, gotQ, err := readQuestions(bufio.NewReader(bytes.NewReader(encodeQuestions(42, asked))))
	if err != nil || round != 42 || !slices.Equal(gotQ, asked) {
		t.Errorf("round %d, %v, %v", round, gotQ, err)
	}
	said := []answer{
		{shard: 7, life: 3, term: 9, last: 1 << 40, verdict: beatTaken, mark: markIncomplete},
		{shard: 8, verdict: beatNoReplica}, {shard: 9, term: 12, verdict: beatRefused, mark: markComplete},
		{shard: 10, term: 12, verdict: beatUnderWay + 1}, // of a later release
	}
	round, gotA, err := readAnswers(bufio.NewReader(bytes.NewReader(encodeAnswers(43, said))))
	if err != nil || round != 43 || !slices.Equal(gotA, said) {
		t.Errorf("round %d, %v, %v", round, gotA, err)
	}
	later := encodeAnswers(44, said[:1])
	later[len(later)-1] = byte(len(marks))
	if _, gotA, err = readAnswers(bufio.NewReader(bytes.NewReader(later))); err != nil || len(gotA) != 1 || gotA[0].mark != "" {
		t.Errorf("an unknown mark: %v, %v", gotA, err)
	}
	for name, frame := range map[string][]byte{
		"nothing in it":     encodeQuestions(1, nil),
		"term 0":            encodeQuestions(1, []question{{7, 0}}),
		"half a question":   append([]byte{0, 0, 0, 10}, make([]byte, 10)...),
		"too many of them":  encodeQuestions(1, make([]question, maxBeats+1)),
		"shorter than told": encodeQuestions(1, asked)[:20],
	} {
		if _, _, err := readQuestions(bufio.NewReader(bytes.NewReader(frame))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzBeats(f *testing.F) {
	f.Add(encodeQuestions(1, []question{{7, 3}}))
	f.Add(encodeAnswers(2, []answer{{shard: 7, life: 1, term: 3, verdict: beatTaken, mark: markComplete}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if round, all, err := readQuestions(bufio.NewReader(bytes.NewReader(b))); err == nil && !bytes.HasPrefix(b, encodeQuestions(round, all)) {
			t.Errorf("read as %v", all)
		}
		if round, all, err := readAnswers(bufio.NewReader(bytes.NewReader(b))); err == nil {
			again := encodeAnswers(round, all) // as b, but for marks that are not known
			if r, same, err := readAnswers(bufio.NewReader(bytes.NewReader(again))); err != nil || r != round || !slices.Equal(same, all) || len(again) > len(b) {
				t.Errorf("read as %v", all)
			}
		}
	})
}

// some opens replicas that are alone in their shards, and lead them.
func some(t *testing.T, ids ...meta.ShardID) (*Node, map[meta.ShardID]*Group) {
	m := newCluster(t, 1, func(_ meta.NodeID, o *Options) { o.quietBeat = time.Hour }).leader() // nothing is sent but by the test
	groups := map[meta.ShardID]*Group{}
	for _, id := range ids {
		if err := m.node.Bootstrap(id, []meta.Server{m.self}); err != nil {
			t.Fatal(err)
		}
		g, err := m.node.Open(id, &kv{})
		if err != nil {
			t.Fatal(err)
		}
		m.c.until("it leads", func() bool { _, ok := g.Serving(); return ok })
		groups[id] = g
	}
	return m.node, groups
}

// linked is a link whose other end the test holds.
type linked struct {
	*link
	t      *testing.T
	groups map[meta.ShardID]*Group
	end    net.Conn
	r      *bufio.Reader
}

func newLinked(t *testing.T, ids ...meta.ShardID) *linked {
	n, groups := some(t, ids...)
	near, far := net.Pipe()
	far.SetDeadline(time.Now().Add(patience))
	l := &linked{link: n.links.get("2.disk2"), t: t, groups: groups, end: far, r: bufio.NewReader(far)}
	l.mu.retry = time.Now().Add(time.Hour) // there is nobody else to talk to
	used := make(chan struct{})
	go func() {
		defer close(used)
		l.use(near)
	}()
	t.Cleanup(func() {
		far.Close()
		<-used
	})
	for l.connection() == nil {
		pause(t.Context(), time.Millisecond)
	}
	return l
}

func (l *link) connection() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.conn
}

func (l *linked) enroll(id meta.ShardID, term uint64) *call {
	return l.link.enroll(l.groups[id].cur.Load().trans, term)
}

// sends has what waits sent, and returns it.
func (l *linked) sends() (round uint32, all []question) {
	l.t.Helper()
	go l.link.send(5)
	round, all, err := readQuestions(l.r)
	if err != nil {
		l.t.Fatal(err)
	}
	return round, all
}

// patiently takes their time limit from heartbeats that were sent: it is not what is tested, and the machine may stand still.
func (l *linked) patiently(calls ...*call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range calls {
		c.timer.Stop()
	}
}

func (l *linked) says(round uint32, all ...answer) {
	l.t.Helper()
	if _, err := l.end.Write(encodeAnswers(round, all)); err != nil {
		l.t.Fatal(err)
	}
}

func (c *call) result(t *testing.T) (answer, error) {
	t.Helper()
	select {
	case <-c.done:
		return c.answer, c.err
	case <-time.After(patience):
		t.Fatal("a heartbeat is never answered")
		return answer{}, nil
	}
}

// Each group gets its own answer, in whatever frame it comes.
func TestAnswersFindTheirGroup(t *testing.T) {
	l := newLinked(t, 7+1, 7+2, 7+3)
	calls := map[meta.ShardID]*call{}
	for id := range l.groups {
		calls[id] = l.enroll(id, uint64(id)*10)
	}
	round, asked := l.sends()
	l.patiently(slices.Collect(maps.Values(calls))...)
	for _, q := range asked {
		if q.term != uint64(q.shard)*10 {
			t.Errorf("asked %+v", q)
		}
	}
	if len(asked) != len(calls) {
		t.Errorf("asked %+v", asked)
	}
	of := func(id meta.ShardID, verdict byte) answer {
		return answer{shard: id, life: 1, term: uint64(id) * 10, last: uint64(id), verdict: verdict, mark: markComplete}
	}
	l.says(round+1, of(8, beatRefused), of(9, beatRefused)) // of another round
	l.says(round, of(10, beatTaken), of(77, beatTaken))
	l.says(round, of(9, beatRefused), of(8, beatTaken))
	for id, c := range calls {
		a, err := c.result(t)
		if want := of(id, beatTaken); err != nil || a.term != want.term || a.last != want.last || (a.verdict == beatTaken) != (id != 9) {
			t.Errorf("shard %d: %+v, %v", id, a, err)
		}
		if r := a.response("2.disk2"); r.Success != (id != 9) || r.Term != a.term || string(r.Addr) != markComplete || r.LastLog != uint64(id) {
			t.Errorf("shard %d: the library gets %+v", id, r)
		}
	}
}

// A connection that ends fails all that goes over it, and those that did so a moment ago are told once.
func TestLostLinkFailsItsCalls(t *testing.T) {
	l := newLinked(t, 8, 9, 10)
	before := l.enroll(10, 1)
	round, _ := l.sends()
	l.patiently(before)
	l.says(round, answer{shard: 10, life: 1, term: 1, verdict: beatTaken})
	if _, err := before.result(t); err != nil {
		t.Fatal(err)
	}
	sent := l.enroll(8, 1)
	l.sends()
	waits, withdrawn := l.enroll(9, 1), l.enroll(9, 1)
	if !withdrawn.withdraw() || sent.withdraw() {
		t.Error("what waits can be withdrawn, and what is sent cannot")
	}
	l.end.Close()
	for _, c := range []*call{sent, waits} {
		if _, err := c.result(t); err == nil || c.at.IsZero() {
			t.Errorf("answered without a connection: %v", err)
		}
	}
	owed := l.enroll(10, 1)
	if owed.withdraw() {
		t.Error("a failure that is owed can be withdrawn, and nobody is told")
	}
	if _, err := owed.result(t); err == nil {
		t.Error("a group that went over the connection is not told of its end")
	}
	for id := range l.groups {
		if c := l.enroll(id, 1); c != nil {
			t.Errorf("a heartbeat of shard %d waits for a connection that is gone", id)
		}
	}
}

// A replica that was started anew is as one whose connection was lost.
func TestNewLifeFailsOnce(t *testing.T) {
	l := newLinked(t, 8)
	for _, step := range []struct {
		life uint64
		want error
	}{{1, nil}, {1, nil}, {2, errNewLife}, {2, nil}} {
		c := l.enroll(8, 3)
		round, _ := l.sends()
		l.patiently(c)
		l.says(round, answer{shard: 8, life: step.life, term: 3, verdict: beatTaken})
		if _, err := c.result(t); !errors.Is(err, step.want) {
			t.Errorf("life %d: %v", step.life, err)
		}
	}
	for verdict, want := range map[byte]error{beatNoReplica: errNoReplica, beatUnderWay: errUnderWay, beatUnderWay + 1: errBadVerdict} {
		c := l.enroll(8, 3)
		round, _ := l.sends()
		l.patiently(c)
		l.says(round, answer{shard: 8, verdict: verdict})
		if _, err := c.result(t); !errors.Is(err, want) {
			t.Errorf("verdict %d: %v", verdict, err)
		}
	}
}

// A group that does not answer fails by itself; when nobody does the connection ends.
func TestSlowGroupFailsAlone(t *testing.T) {
	l := newLinked(t, 8, 9)
	slow, quick := l.enroll(8, 1), l.enroll(9, 1)
	round, _ := l.sends()
	l.patiently(quick)
	l.says(round, answer{shard: 9, life: 1, term: 1, verdict: beatTaken})
	if _, err := quick.result(t); err != nil {
		t.Error(err)
	}
	if _, err := slow.result(t); !errors.Is(err, errBeatTimeout) {
		t.Errorf("answered: %v", err)
	}
	if l.connection() == nil {
		t.Error("the connection of all ended with one")
	}
	l.says(round, answer{shard: 8, life: 1, term: 1, verdict: beatTaken}) // too late
	slow, quick = l.enroll(8, 1), l.enroll(9, 1)
	l.sends()
	for _, c := range []*call{slow, quick} {
		if _, err := c.result(t); !errors.Is(err, errBeatTimeout) {
			t.Errorf("answered: %v", err)
		}
	}
	for l.connection() != nil {
		pause(t.Context(), time.Millisecond)
	}
}

// A group that is busy with its heartbeat holds back no other's, of this frame or the next.
func TestSlowGroupHoldsBackNone(t *testing.T) {
	n, groups := some(t, 8, 9, 10)
	release, asked := make(chan struct{}), make(chan struct{}, 1)
	slowly := func(rpc raft.RPC) {
		asked <- struct{}{}
		<-release
		rpc.Respond(&raft.AppendEntriesResponse{Term: 88, Success: true}, nil)
	}
	groups[9].cur.Load().trans.beat.Store(&slowly)
	s := newServed(t, n)
	s.ask(1, 8, 9, 10, 11)
	s.hear("1/8", "1/10", "1/11")
	<-asked
	s.ask(2, 9, 10)
	s.hear("2/9", "2/10")
	close(release)
	s.hear("1/9")
	s.ask(3, 8, 9)
	s.hear("3/8", "3/9")
	got := s.got
	for key, verdict := range map[string]byte{
		"1/11": beatNoReplica, "2/9": beatUnderWay, "1/9": beatTaken, "3/9": beatTaken,
	} {
		if got[key].verdict != verdict {
			t.Errorf("%s: %+v", key, got[key])
		}
	}
	if got["1/9"].term != 88 || got["1/8"].term != groups[8].term() || got["1/8"].life == got["1/10"].life {
		t.Errorf("answers are mixed up: %+v", got)
	}
}

// together tells whether the heartbeats of a leader's group go over the links to these members, and to no others. One that has lost its place gets it
// back.
func together(m *member, id meta.ShardID, to ...*member) func() bool {
	return func() bool {
		m.lead()
		over := 0
		for other := range m.c.nodes {
			l := m.node.links.get(serverAddress(m.c.nodes[other].self))
			l.mu.Lock()
			_, known := l.mu.lives[id]
			linked := known && l.mu.conn != nil
			l.mu.Unlock()
			if linked != slices.Contains(to, m.c.nodes[other]) {
				return false
			}
			if linked {
				over++
			}
		}
		return over == len(to)
	}
}

// idleCluster has groups that are idle at once, and leaders that stay.
func idleCluster(t *testing.T, early func(meta.NodeID) bool) *cluster {
	return newCluster(t, 3, func(id meta.NodeID, o *Options) {
		o.quietAfter, o.quietBeat, o.Heartbeat = 100*time.Millisecond, 10*time.Millisecond, calm
		o.early = early != nil && early(id)
	})
}

// keepsBeating waits until a leader has sent heartbeats at some more moments.
func keepsBeating(m *member) {
	m.c.t.Helper()
	began := m.group.beats.turn.Load()
	m.c.until("heartbeats go on", func() bool {
		m.lead()
		return m.group.beats.turn.Load() >= began+20
	})
}

func (m *member) peers() (others []*member) {
	for _, id := range m.c.others(m.id) {
		others = append(others, m.c.nodes[id])
	}
	return others
}

func TestIdleGroupsBeatTogether(t *testing.T) {
	attempts(t, func() error { return idleGroupsBeatTogether(t) })
}

func idleGroupsBeatTogether(t *testing.T) error {
	c := idleCluster(t, nil)
	defer c.close()
	leader := c.leader()
	leader.mustPut("a=1")
	c.until("heartbeats go together", together(leader, testShard, leader.peers()...))
	term := leader.group.term()
	keepsBeating(leader)
	for _, f := range leader.peers() {
		c.until("the follower is in sync", func() bool { return leader.group.inSync(f.self) })
	}
	if err := leader.group.Verify(t.Context()); err != nil || leader.group.term() != term {
		return fmt.Errorf("the leader changed: term %d, then %d; %w", term, leader.group.term(), err)
	}
	f := leader.peers()[0]
	f.sm.incomplete.Store(true) // which is told in the answers
	c.until("a follower that lacks data is not in sync", func() bool { return !leader.group.inSync(f.self) })
	f.sm.incomplete.Store(false)
	c.until("it is again", func() bool { return leader.group.inSync(f.self) })
	return nil
}

// A server of an early release gets heartbeats as it knows them, and takes no others; so does one that leads.
func TestMixedReleasesBeatAsBothKnow(t *testing.T) {
	early := meta.NodeID(3)
	c := idleCluster(t, func(id meta.NodeID) bool { return id == early })
	c.leader()
	old := c.nodes[early]
	for _, leader := range []*member{c.nodes[1], old, c.nodes[2]} {
		leader.insist("it leads and writes", func() error { return leader.put(fmt.Sprintf("by=%d", leader.id)) })
		var both []*member
		for _, p := range leader.peers() {
			if leader != old && p != old {
				both = append(both, p)
			}
		}
		c.until("the group is idle", leader.group.beats.quiet.Load)
		keepsBeating(leader)
		c.until("heartbeats go together where both know how", together(leader, testShard, both...))
		for _, p := range leader.peers() {
			c.until("the follower is in sync", func() bool { return leader.group.inSync(p.self) })
		}
	}
	early = meta.NoNode
	old.crash()
	old.restart()
	leader := c.nodes[2]
	leader.lead()
	c.until("they go to the one that was upgraded", func() bool {
		l := leader.node.links.get(serverAddress(old.self))
		l.mu.Lock()
		l.mu.retry = time.Time{} // at once, instead of within linkRefusedRetry
		l.mu.Unlock()
		return together(leader, testShard, leader.peers()...)()
	})
}

// One that is dead, or gone without a word, keeps nobody else from getting heartbeats, and gets them again when it is back.
func TestDeadPeerBeatsNoOther(t *testing.T) {
	attempts(t, func() error { return deadPeerBeatsNoOther(t) })
}

func deadPeerBeatsNoOther(t *testing.T) error {
	c := idleCluster(t, nil)
	defer c.close()
	leader := c.leader()
	leader.mustPut("a=1")
	others := leader.peers() // in any order, another one each time
	dead, well := others[0], others[1]
	c.until("heartbeats go together", together(leader, testShard, dead, well))
	term := leader.group.term()
	dead.crash()
	c.until("the link to the dead ends", together(leader, testShard, well))
	keepsBeating(leader)
	dead.restart()
	c.until("it is linked again", together(leader, testShard, dead, well))
	c.halfOpen(dead.id, true)
	c.until("the link to whom nothing reaches ends", together(leader, testShard, well))
	keepsBeating(leader)
	c.halfOpen(dead.id, false)
	c.until("it is linked again", together(leader, testShard, dead, well))
	c.until("it is in sync", func() bool { return leader.group.inSync(dead.self) })
	if now := leader.group.term(); now != term {
		return fmt.Errorf("led in term %d, then in %d", term, now)
	}
	leader.mustPut("b=2")
	c.until("all have the entry", func() bool { return c.same(leader, dead)() && c.same(leader, well)() })
	return nil
}

// A link that nobody uses ends.
func TestUnusedLinkEnds(t *testing.T) {
	l := newLinked(t, 8)
	l.mu.Lock()
	l.mu.used = time.Now().Add(-2 * linkIdle)
	l.mu.Unlock()
	l.n.links.send(1)
	for l.connection() != nil {
		pause(t.Context(), time.Millisecond)
	}
	if again := l.n.links.get(l.to); again == l.link {
		t.Error("it is kept")
	}
}
