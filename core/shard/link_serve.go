package shard

import (
	"bufio"
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// beatPatience is how long the answers of groups wait for those of others in the same frame.
const beatPatience = 20 * time.Millisecond

// beatServer answers the heartbeats of one server. One goroutine reads them and asks one group after the other: a goroutine for each would
// wake the processor's other cores for nothing. When a group takes longer than beatPatience another goroutine takes over, answers for
// the others and goes on reading, and the one that waits for the group answers for this group alone.
type beatServer struct {
	n    *Node
	from []byte // the server
	conn net.Conn
	r    *bufio.Reader // belongs to the goroutine that reads
	wg   sync.WaitGroup

	writing sync.Mutex
	mu      struct {
		sync.Mutex
		busy map[meta.ShardID]bool // there are as many goroutines at most
	}
}

// serveBeats serves a connection of kind `beats`.
func (n *Node) serveBeats(_ context.Context, from string, c net.Conn) {
	s := &beatServer{n: n, from: []byte(from), conn: c, r: bufio.NewReader(c)}
	s.mu.busy = map[meta.ShardID]bool{}
	s.wg.Go(s.read)
	s.wg.Wait()
}

// read answers frames until the connection ends or another goroutine goes on with it.
func (s *beatServer) read() {
	for {
		round, all, err := readQuestions(s.r)
		if err != nil {
			s.conn.Close()
			return
		}
		f := &beatFrame{s: s, round: round, questions: all}
		if !f.work(0) {
			return
		}
	}
}

// beatFrame is one frame under way.
type beatFrame struct {
	s         *beatServer
	round     uint32
	questions []question

	mu      sync.Mutex
	next    int // the question that is being answered
	worker  int // which goroutine works on it, counted
	answers []answer
	ended   bool
}

// work answers the questions that are left, by one goroutine until another takes over. It returns false when one has.
func (f *beatFrame) work(worker int) bool {
	watch := time.AfterFunc(beatPatience, func() { f.takeOver(worker) })
	defer watch.Stop()
	over := false
	defer func() {
		if !over { // a group whose log fails ends the goroutine that asked (guardedStore): another one goes on without it
			f.s.wg.Go(func() { f.takeOver(worker) })
		}
	}()
	for {
		f.mu.Lock()
		if f.next == len(f.questions) {
			f.ended, over = true, true
			f.mu.Unlock()
			f.s.reply(f.round, f.answers)
			return true
		}
		q := f.questions[f.next]
		f.mu.Unlock()
		a := f.s.ask(q)
		f.mu.Lock()
		if f.worker != worker {
			over = true
			f.mu.Unlock()
			f.s.reply(f.round, []answer{a})
			return false
		}
		f.answers = append(f.answers, a)
		f.next++
		f.mu.Unlock()
	}
}

// takeOver goes on with a frame whose worker waits for a group or has ended in one, and then with the connection. That group's question is
// left to the worker; one that has ended never answers it.
func (f *beatFrame) takeOver(worker int) {
	f.mu.Lock()
	if f.ended || f.worker != worker || f.next == len(f.questions) {
		f.mu.Unlock()
		return
	}
	f.worker++
	f.next++
	ready := f.answers
	f.answers = nil
	f.s.wg.Add(1) // the worker has not ended, or is waited for by who was started as it did
	f.mu.Unlock()
	defer f.s.wg.Done()
	f.s.reply(f.round, ready)
	if f.work(worker + 1) {
		f.s.read()
	}
}

// reply sends answers. Where that fails the leader gets none.
func (s *beatServer) reply(round uint32, all []answer) {
	if len(all) == 0 {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	err := s.conn.SetWriteDeadline(time.Now().Add(quickTimeout))
	if err == nil {
		_, err = s.conn.Write(encodeAnswers(round, all))
	}
	if err != nil {
		s.conn.Close()
	}
}

// ask gives a heartbeat to its group.
func (s *beatServer) ask(q question) answer {
	s.mu.Lock()
	busy := s.mu.busy[q.shard]
	s.mu.busy[q.shard] = true
	s.mu.Unlock()
	if busy {
		return answer{shard: q.shard, verdict: beatUnderWay}
	}
	defer func() {
		s.mu.Lock()
		delete(s.mu.busy, q.shard)
		s.mu.Unlock()
	}()
	g, ok := s.n.Group(q.shard)
	if !ok {
		return answer{shard: q.shard, verdict: beatNoReplica}
	}
	return g.takeBeat(s.from, q)
}

// takeBeat answers a leader's heartbeat.
func (g *Group) takeBeat(from []byte, q question) answer {
	r := g.cur.Load()
	a := answer{shard: q.shard, life: r.trans.life, verdict: beatNoReplica}
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: from, Addr: from}
	answered := make(chan raft.RPCResponse, 1)
	r.trans.heartbeat(raft.RPC{
		Command:  &raft.AppendEntriesRequest{RPCHeader: header, Term: q.term, Leader: from},
		RespChan: answered,
	})
	got := <-answered
	resp, ok := got.Response.(*raft.AppendEntriesResponse)
	if got.Error != nil || !ok {
		return a
	}
	a.term, a.last, a.mark, a.verdict = resp.Term, resp.LastLog, string(resp.Addr), beatRefused
	if resp.Success {
		a.verdict = beatTaken
		r.postpone()
	}
	return a
}
