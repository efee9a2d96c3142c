package shard

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"github.com/hashicorp/raft"
)

// pump takes requests from the stock transport, guards them, and gives them to Raft one by one.
func (t *transport) pump(stop <-chan struct{}) {
	defer close(t.stopped)
	for {
		select {
		case <-stop:
			t.refuseHeld()
			t.wg.Wait()
			return
		case rpc := <-t.NetworkTransport.Consumer():
			t.receive(rpc, stop)
		case in := <-t.installs:
			t.install(in, stop)
		case <-t.g.fsm.progress:
			if len(t.held) > 0 && !t.g.unappliedTooMuch() {
				t.releaseHeld(stop)
			}
		}
	}
}

func (t *transport) forward(rpc raft.RPC, stop <-chan struct{}) bool {
	select {
	case t.out <- rpc:
		return true
	case <-stop:
		rpc.Respond(nil, errStopping)
		return false
	}
}

func (t *transport) refuseHeld() {
	for _, rpc := range t.held {
		rpc.Respond(nil, errStopping)
	}
	t.held = nil
}

func (t *transport) releaseHeld(stop <-chan struct{}) {
	held := t.held
	t.held = nil
	for _, rpc := range held {
		t.forward(rpc, stop)
	}
}

func (t *transport) receive(rpc raft.RPC, stop <-chan struct{}) {
	if t.g.stopping.Load() {
		t.refuse(rpc, errStopping)
		return
	}
	switch c := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		t.receiveAppend(rpc, c, stop)
	case *raft.RequestVoteRequest:
		if !t.g.member() || t.g.abstains() {
			rpc.Respond(&raft.RequestVoteResponse{RPCHeader: t.header(), Term: t.g.term()}, nil)
			return
		}
		t.forward(rpc, stop)
	case *raft.RequestPreVoteRequest:
		if !t.g.member() || t.g.abstains() {
			rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: t.header(), Term: t.g.term()}, nil)
			return
		}
		t.g.hasten()
		t.forward(rpc, stop)
	case *raft.TimeoutNowRequest:
		if !t.g.member() || !t.g.sm.Complete() {
			rpc.Respond(&raft.TimeoutNowResponse{RPCHeader: t.header()}, errIncomplete)
			return
		}
		if t.g.doubtful() {
			rpc.Respond(&raft.TimeoutNowResponse{RPCHeader: t.header()}, errDoubtful)
			return
		}
		t.forward(rpc, stop)
	case *raft.InstallSnapshotRequest:
		t.spool(rpc, c, stop)
	default:
		rpc.Respond(nil, unexpected(c))
	}
}

func (t *transport) refuse(rpc raft.RPC, err error) {
	if rpc.Reader != nil {
		t.wg.Go(func() {
			io.Copy(io.Discard, rpc.Reader)
			rpc.Respond(nil, err)
		})
		return
	}
	rpc.Respond(nil, err)
}

func (t *transport) header() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(t.g.node.o.Self.String())}
}

// receiveAppend lowers the commit index to what the request itself confirms. A follower takes
// min(leader's commit, its own last index), but what it has behind the request's entries may be an
// old leader's and not what was committed.
func (t *transport) receiveAppend(rpc raft.RPC, a *raft.AppendEntriesRequest, stop <-chan struct{}) {
	t.g.hears(a.LeaderCommitIndex)
	t.g.hearsLeader(a)
	a.LeaderCommitIndex = min(a.LeaderCommitIndex, a.PrevLogEntry+uint64(len(a.Entries)))
	t.g.learned(a.Term, a.LeaderCommitIndex)
	if len(t.held) > 0 || (len(a.Entries) > 0 && t.g.unappliedTooMuch()) {
		t.held = append(t.held, rpc)
		return
	}
	t.forward(rpc, stop)
}

// install is a checkpoint that has been received whole.
type install struct {
	rpc  raft.RPC
	req  *raft.InstallSnapshotRequest
	data []byte
	done chan struct{}
}

// spool receives a checkpoint before Raft hears of it: its main loop would wait for the network,
// without votes and appends meanwhile.
func (t *transport) spool(rpc raft.RPC, req *raft.InstallSnapshotRequest, stop <-chan struct{}) {
	if req.Size < 0 || req.Size > maxCheckpointBytes {
		rpc.Respond(nil, fmt.Errorf("checkpoint of %d bytes is larger than %d", req.Size, maxCheckpointBytes))
		return
	}
	if !t.receiving.TryLock() {
		t.refuse(rpc, errReceiving)
		return
	}
	t.wg.Go(func() {
		defer t.receiving.Unlock()
		var buf bytes.Buffer
		if n, err := io.Copy(&buf, rpc.Reader); err != nil || n != req.Size {
			rpc.Respond(nil, fmt.Errorf("received %d of %d bytes of a checkpoint: %w", n, req.Size, err))
			return
		}
		// No checkpoint of our own may be written meanwhile: it would be older than this one and
		// Raft would take its index for the newest.
		t.g.checkpointing.Lock()
		defer t.g.checkpointing.Unlock()
		in := install{rpc: rpc, req: req, data: buf.Bytes(), done: make(chan struct{})}
		select {
		case t.installs <- in:
			<-in.done
		case <-stop:
			rpc.Respond(nil, errStopping)
		}
	})
}

// install gives a checkpoint to Raft if it is newer than what is applied. The library does not
// compare: it would roll the replica back and empty its log. Whether it is newer is only known when
// every request before it has been processed, which a request that Raft refuses tells.
func (t *transport) install(in install, stop <-chan struct{}) {
	defer close(in.done)
	if !t.fence(stop) {
		in.rpc.Respond(nil, errStopping)
		return
	}
	r := t.g.raft()
	if in.req.LastLogIndex <= r.AppliedIndex() {
		term := r.CurrentTerm()
		in.rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: t.header(), Term: term, Success: in.req.Term >= term}, nil)
		return
	}
	// The library keeps the index of the last entry over the emptied log. If it lies at or above
	// the checkpoint's, the replica could never be reached again: it must start anew.
	anew := r.LastIndex() >= in.req.LastLogIndex
	t.g.installing.Store(in.req.LastLogIndex)
	defer t.g.installing.Store(0)
	answer := make(chan raft.RPCResponse, 1)
	if !t.forward(raft.RPC{Command: in.req, Reader: bytes.NewReader(in.data), RespChan: answer}, stop) {
		in.rpc.Respond(nil, errStopping)
		return
	}
	select {
	case resp := <-answer:
		in.rpc.RespChan <- resp
		if ok, _ := resp.Response.(*raft.InstallSnapshotResponse); anew && resp.Error == nil && ok != nil && ok.Success {
			t.g.restart()
		}
	case <-stop:
		in.rpc.Respond(nil, errStopping)
	}
}

// fence waits until Raft has processed everything it was given.
func (t *transport) fence(stop <-chan struct{}) bool {
	answer := make(chan raft.RPCResponse, 1)
	if !t.forward(raft.RPC{Command: fence{}, RespChan: answer}, stop) {
		return false
	}
	select {
	case <-answer:
		return true
	case <-stop:
		return false
	}
}

// fence is a request that Raft does not know and answers with an error.
type fence struct{}

// refuseInstall is asked by the store of checkpoints, on Raft's own goroutine, before anything is
// changed: entries of a leader that has been deposed meanwhile may have been applied after the
// comparison above.
func (g *Group) refuseInstall(index, _ uint64) bool {
	return g.installing.Load() == index && index <= g.raft().AppliedIndex()
}

// unappliedTooMuch tells whether so much that is committed waits for the state machine that no
// further entries should be accepted.
func (g *Group) unappliedTooMuch() bool {
	return g.log.Span(g.fsm.applied.Load(), g.raft().CommitIndex()) > g.maxUnapplied
}

// member tells whether this replica is in the configuration that it knows. Without one the library
// would vote for anybody.
func (g *Group) member() bool {
	servers := g.raft().GetConfiguration().Configuration().Servers
	return slices.ContainsFunc(servers, func(s raft.Server) bool {
		return s.ID == serverID(g.node.o.Self)
	})
}
