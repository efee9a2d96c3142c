package shard

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// The reasons why this replica neither leads nor answers.
var (
	errSlowDisk   = errors.New("a write to the log takes longer than an election")
	errStopping   = errors.New("replica is stopping")
	errIncomplete = errors.New("replica lacks data")
	errReceiving  = errors.New("another checkpoint is being received")
)

// transport wraps the stock one with what DESIGN.md lists under "guards". It embeds it, so that it
// has RequestPreVote, without which Raft silently does without pre-votes.
type transport struct {
	*raft.NetworkTransport
	// quick carries what must not wait ten seconds for a paused peer: heartbeats, votes, TimeoutNow.
	quick  *raft.NetworkTransport
	g      *Group
	stream *stream
	life   uint64                         // another one each time a replica is started in this process
	beat   atomic.Pointer[func(raft.RPC)] // the library's, with what SetHeartbeatHandler adds

	ready    chan struct{} // the group knows its replica
	out      chan raft.RPC // to Raft
	installs chan install  // received checkpoints
	stopped  chan struct{} // pump has ended
	wg       sync.WaitGroup
	held     []raft.RPC // appends that wait for the state machine; at most one per connection

	receiving sync.Mutex // one checkpoint is received at a time
}

func newTransport(g *Group) *transport {
	s := newStream(g.node, g.id)
	config := func(layer raft.StreamLayer) *raft.NetworkTransportConfig {
		return &raft.NetworkTransportConfig{
			Logger: g.raftLog, Stream: layer, MaxPool: maxPooledConns, MaxRPCsInFlight: maxRPCsInFlight,
			MsgpackUseNewTimeFormat: true,
		}
	}
	bulk, quick := config(s), config(mute{s})
	bulk.Timeout, quick.Timeout = bulkTimeout, quickTimeout
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(bulk),
		quick:            raft.NewNetworkTransportWithConfig(quick),
		g:                g, stream: s, life: g.node.lives.Add(1),
		ready:    make(chan struct{}),
		out:      make(chan raft.RPC),
		installs: make(chan install),
		stopped:  make(chan struct{}),
	}
	return t
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.out }

// Close implements raft.WithClose.
func (t *transport) Close() error {
	err := errors.Join(t.quick.Close(), t.NetworkTransport.Close())
	t.quick.CloseStreams()
	t.CloseStreams()
	return err
}

// mayLead refuses to speak as a leader while the log cannot be written: heartbeats have a goroutine
// of their own in the library, so that a leader with a hung disk would stay one for ever.
func (t *transport) mayLead() error {
	<-t.ready
	if t.g.log.Busy() > t.g.heartbeat {
		return errSlowDisk
	}
	return t.g.Err()
}

func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, a *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	beat := isHeartbeat(a)
	if beat && t.g.beats.quiet.Load() {
		if done, err := t.together(id, to, a, resp); done {
			return err
		}
	}
	if err := t.mayLead(); err != nil {
		return err
	}
	send := t.NetworkTransport.AppendEntries
	if beat {
		send = t.quick.AppendEntries
	} else if err := t.load(id, a); err != nil {
		return err
	}
	sent := t.g.peers.sending()
	if err := send(id, to, a, resp); err != nil {
		t.g.peers.missed(id)
		t.g.news.tell()
		if !beat {
			t.awaitReachable(id, a.Term, time.Now())
		}
		return err
	}
	t.g.peers.heard(id, sent, resp)
	if beat {
		t.dropStale(id, to)
	} else {
		t.g.looksForgetful(id, a, resp)
	}
	return nil
}

// load reads the entries of a request that are not in memory, and bounds it by bytes. The library counts only entries, and looks at the
// request afterwards to see what was sent. What is read from disk is for a follower that is behind: it is sent at the rate that is left beside
// live traffic, unless the group needs that follower.
func (t *transport) load(to raft.ServerID, a *raft.AppendEntriesRequest) error {
	bytes, read := int64(0), int64(0)
	for i, e := range a.Entries {
		if isUnloaded(e) {
			if bytes >= maxAppendBytes && i > 0 { // it would be cut: leave it on disk
				a.Entries = a.Entries[:i]
				break
			}
			if err := t.g.log.GetLog(e.Index, e); err != nil {
				return fmt.Errorf("load entry %d to send it: %w", e.Index, err)
			}
			read += int64(len(e.Data))
		}
		if bytes += int64(len(e.Data) + len(e.Extensions)); bytes > maxAppendBytes && i > 0 {
			a.Entries = a.Entries[:i]
			break
		}
	}
	if read == 0 {
		return nil
	}
	t.g.metrics.readToSend.AddInt64(read)
	if t.g.canWaitFor(to) {
		t.g.node.spare.wait(t.g.ctx, read)
	}
	return nil
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return &pipeline{AppendPipeline: p, t: t, to: id}, nil
}

// pipeline belongs to the library's goroutine that sends to one follower.
type pipeline struct {
	raft.AppendPipeline
	t  *transport
	to raft.ServerID

	told told // by the last request
	at   time.Time
}

// AppendEntries implements raft.AppendPipeline. A request that would only repeat the last one is
// dropped: its future, which the library does not look at, is nil, and no answer is ever made up
// for it, for an answer would count as a sign of life and confirm leadership.
func (p *pipeline) AppendEntries(a *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.t.mayLead(); err != nil {
		return nil, err
	}
	if err := p.t.load(p.to, a); err != nil {
		return nil, err
	}
	if now := time.Now(); p.repeats(a, now) {
		return nil, p.rest(a)
	}
	return p.AppendPipeline.AppendEntries(a, resp)
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, to raft.ServerAddress, a *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	<-t.ready
	if t.g.doubtful() {
		return errDoubtful
	}
	return t.quick.RequestVote(id, to, a, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, a *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	<-t.ready
	if err := t.g.awaitCertainty(); err != nil {
		return err
	}
	if err := t.g.yields(a); err != nil {
		return err
	}
	return t.quick.RequestPreVote(id, to, a, resp)
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, a *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.quick.TimeoutNow(id, to, a, resp)
}

// InstallSnapshot implements raft.Transport.
func (t *transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, a *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.mayLead(); err != nil {
		return err
	}
	return t.NetworkTransport.InstallSnapshot(id, to, a, resp, data)
}

// completeness is what a replica adds to its answer to a heartbeat, in the address of the answer's
// header, which the library does not read: a leader must know who lacks data.
const (
	markComplete   = "complete"
	markIncomplete = "incomplete"
)

// SetHeartbeatHandler implements raft.Transport.
func (t *transport) SetHeartbeatHandler(fn func(raft.RPC)) {
	handle := func(rpc raft.RPC) {
		answer := make(chan raft.RPCResponse, 1)
		fn(raft.RPC{Command: rpc.Command, RespChan: answer})
		select {
		case r := <-answer:
			if a, ok := r.Response.(*raft.AppendEntriesResponse); ok {
				a.RPCHeader.Addr = []byte(t.mark())
			}
			rpc.RespChan <- r
		default: // the library ignores heartbeats while it shuts down
			rpc.Respond(&raft.AppendEntriesResponse{}, errStopping)
		}
	}
	t.beat.Store(&handle)
	t.NetworkTransport.SetHeartbeatHandler(handle)
}

// heartbeat gives a heartbeat to the library, and answers it.
func (t *transport) heartbeat(rpc raft.RPC) { (*t.beat.Load())(rpc) }

func (t *transport) mark() string {
	if t.g.sm.Complete() {
		return markComplete
	}
	return markIncomplete
}

func unexpected(command any) error { return fmt.Errorf("unexpected request %T", command) }
