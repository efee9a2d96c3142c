package shard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// served is a connection for heartbeats that a node serves; the test asks.
type served struct {
	t   *testing.T
	end net.Conn
	r   *bufio.Reader
	got map[string]answer // by round and shard
}

func newServed(t *testing.T, n *Node) *served {
	near, far := net.Pipe()
	far.SetDeadline(time.Now().Add(patience))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.serveBeats(context.Background(), "2.disk2", near)
	}()
	t.Cleanup(func() {
		far.Close()
		<-ended
	})
	return &served{t: t, end: far, r: bufio.NewReader(far), got: map[string]answer{}}
}

// ask sends a frame in term 1, which is over.
func (s *served) ask(round uint32, ids ...meta.ShardID) {
	s.t.Helper()
	var all []question
	for _, id := range ids {
		all = append(all, question{id, 1})
	}
	if _, err := s.end.Write(encodeQuestions(round, all)); err != nil {
		s.t.Fatal(err)
	}
}

// hear waits for these answers and no others.
func (s *served) hear(want ...string) {
	s.t.Helper()
	for len(want) > 0 {
		round, all, err := readAnswers(s.r)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, a := range all {
			key := fmt.Sprintf("%d/%d", round, a.shard)
			i := slices.Index(want, key)
			if i < 0 {
				s.t.Fatalf("unexpected answer %s: %+v", key, a)
			}
			s.got[key], want = a, slices.Delete(want, i, i+1)
		}
	}
}

// A group whose log fails ends the goroutine that asks it. The others get their answers, in that frame and the next, also while one more
// is slow.
func TestDyingGroupHoldsBackNone(t *testing.T) {
	n, groups := some(t, 8, 9, 10)
	dies := func(raft.RPC) { runtime.Goexit() }
	groups[9].cur.Load().trans.beat.Store(&dies)
	s := newServed(t, n)
	s.ask(1, 9, 8, 10)
	s.hear("1/8", "1/10")
	s.ask(2, 8, 9, 10)
	s.hear("2/8", "2/10")
	s.ask(3, 8, 10, 9) // the last one
	s.hear("3/8", "3/10")
	s.ask(4, 9)
	s.ask(5, 8)
	s.hear("5/8")
	release, asked := make(chan struct{}), make(chan struct{}, 1)
	slowly := func(rpc raft.RPC) {
		asked <- struct{}{}
		<-release
		rpc.Respond(&raft.AppendEntriesResponse{Term: 88, Success: true}, nil)
	}
	groups[10].cur.Load().trans.beat.Store(&slowly)
	s.ask(6, 10, 9, 8)
	<-asked
	s.hear("6/8")
	s.ask(7, 8)
	s.hear("7/8")
	close(release)
	s.hear("6/10")
}

// One that is slow and then ends has lost its place to another, and takes nobody's.
func TestSlowGroupDiesAlone(t *testing.T) {
	n, groups := some(t, 8, 9)
	release, asked := make(chan struct{}), make(chan struct{}, 1)
	dies := func(raft.RPC) {
		asked <- struct{}{}
		<-release
		runtime.Goexit()
	}
	groups[9].cur.Load().trans.beat.Store(&dies)
	s := newServed(t, n)
	s.ask(1, 9, 8)
	<-asked
	s.hear("1/8")
	s.ask(2, 8)
	s.hear("2/8")
	close(release)
	for round := range uint32(20) {
		s.ask(3+round, 8)
		s.hear(fmt.Sprintf("%d/8", 3+round))
	}
}

// Of two calls of a group in one frame the newer one is sent, whatever their order.
func TestOneCallOfAGroupInAFrame(t *testing.T) {
	l := newLinked(t, 8, 9)
	for _, terms := range [][2]uint64{{3, 4}, {6, 5}, {7, 7}} {
		first, other, second := l.enroll(8, terms[0]), l.enroll(9, 1), l.enroll(8, terms[1])
		round, asked := l.sends()
		goes, stays := second, first
		if terms[0] > terms[1] {
			goes, stays = first, second
		}
		l.patiently(goes, other)
		if len(asked) != 2 || !slices.Contains(asked, goes.q) || !slices.Contains(asked, other.q) {
			t.Errorf("terms %d: asked %+v", terms, asked)
		}
		if _, err := stays.result(t); !errors.Is(err, errUnderWay) || !stays.at.IsZero() {
			t.Errorf("terms %d: the older one: %v at %v", terms, err, stays.at)
		}
		l.says(round, answer{shard: 8, life: 1, term: goes.q.term, verdict: beatTaken}, answer{shard: 9, life: 1, term: 1, verdict: beatTaken})
		for _, c := range []*call{goes, other} {
			if _, err := c.result(t); err != nil {
				t.Errorf("terms %d: %v", terms, err)
			}
		}
	}
}

// Nobody's heartbeat of one term is taken for that of another.
func TestAnswerOfAnotherTermIsNone(t *testing.T) {
	l := newLinked(t, 8)
	for term, want := range map[uint64]error{3: errOtherTerm, 4: nil, 5: errOtherTerm} {
		c := l.enroll(8, 4)
		round, _ := l.sends()
		l.patiently(c)
		l.says(round, answer{shard: 8, life: 1, term: term, verdict: beatTaken})
		if _, err := c.result(t); !errors.Is(err, want) {
			t.Errorf("answered in term %d: %v", term, err)
		}
	}
}

// idleBeat is a heartbeat as the library sends it.
func (l *linked) idleBeat(id meta.ShardID, term uint64) *raft.AppendEntriesRequest {
	self := []byte(l.n.o.Self.String())
	return &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ID: self, Addr: self}, Term: term, Leader: self}
}

// beat sends a heartbeat of a group over the link. It tells whether that was all.
func (l *linked) beat(id meta.ShardID, life uint64, meanwhile func()) (done bool) {
	l.t.Helper()
	trans := l.groups[id].cur.Load().trans
	ended := make(chan error, 1)
	var resp raft.AppendEntriesResponse
	go func() {
		var err error
		done, err = trans.together("2.disk2", l.to, l.idleBeat(id, 3), &resp)
		ended <- err
	}()
	for l.waits() == 0 {
		pause(l.t.Context(), time.Millisecond)
	}
	round, _ := l.sends()
	l.mu.Lock()
	for _, c := range l.mu.sent {
		c.timer.Stop()
	}
	l.mu.Unlock()
	meanwhile()
	l.says(round, answer{shard: id, life: life, term: 3, verdict: beatTaken})
	if err := <-ended; err != nil || !resp.Success {
		l.t.Errorf("answered %+v, %v", resp, err)
	}
	return done
}

func (l *link) waits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.waiting)
}

// An answer that was on its way when leadership is checked does not count: the heartbeat is sent once more, by itself.
func TestAnswerOlderThanTheCheckIsNotEnough(t *testing.T) {
	l := newLinked(t, 8)
	if !l.beat(8, 1, func() {}) {
		t.Error("a heartbeat that was answered is sent again")
	}
	var over func()
	if l.beat(8, 1, func() { over = l.groups[8].beats.hurry() }) {
		t.Error("an answer from before the check counts for it")
	}
	over()
	if !l.beat(8, 1, func() {}) {
		t.Error("a heartbeat is sent again after the check")
	}
}

// With its first answer over a connection a follower may have been started anew since it was heard of: it is told what is committed.
func TestFirstAnswerTellsOfAStart(t *testing.T) {
	l := newLinked(t, 8)
	g := l.groups[8]
	for _, first := range []bool{true, false} {
		news, began := g.news.wait(), time.Now()
		l.beat(8, 1, func() {})
		if told := g.peers.lostSince("2.disk2", began); told != first {
			t.Errorf("first %v: told again: %v", first, told)
		}
		if !g.peers.answeredSince("2.disk2", began) {
			t.Errorf("first %v: the answer does not count", first)
		}
		select {
		case <-news:
		default:
			if first {
				t.Error("who sends to it is not told")
			}
		}
	}
}

// A server that says why it did not take a heartbeat keeps its connections, and so do all others.
func TestRefusedBeatKeepsConnections(t *testing.T) {
	n, groups := some(t, 8)
	trans := groups[8].cur.Load().trans
	self := serverAddress(n.o.Self)
	dialled := func() (open int) {
		trans.stream.mu.Lock()
		defer trans.stream.mu.Unlock()
		for c := range trans.stream.conns {
			if c.to != "" {
				open++
			}
		}
		return open
	}
	beat := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: 1, Leader: []byte(self)}
	var resp raft.AppendEntriesResponse
	for _, step := range []struct {
		err  error
		open int
	}{
		{errNoReplica, 1}, {errUnderWay, 1}, {errOtherTerm, 1}, {errBadVerdict, 1},
		{errBeatTimeout, 0}, {net.ErrClosed, 0}, {errNewLife, 0},
	} {
		if err := trans.quick.AppendEntries(serverID(n.o.Self), self, &beat, &resp); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := trans.told("2.disk2", "2.disk2", &call{at: began, err: step.err}, &resp); !errors.Is(err, step.err) {
			t.Errorf("%v: %v", step.err, err)
		}
		if got := dialled(); got != step.open || !groups[8].peers.lostSince("2.disk2", began) {
			t.Errorf("%v: %d connections are left", step.err, got)
		}
	}
}
