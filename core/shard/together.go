package shard

import (
	"bytes"
	"errors"

	"github.com/hashicorp/raft"
)

// together sends a heartbeat of an idle group at the next moment with those of the others, in one message, where the server takes such,
// and waits for the answer. It returns false, at that moment or when a heartbeat is wanted at once, when it is to be sent by itself. So it is
// after an answer too: that may be older than the check of leadership that wants one, as it has waited for those of other groups.
func (t *transport) together(id raft.ServerID, to raft.ServerAddress, a *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (done bool, err error) {
	now, asked := t.g.beats.wanted()
	if asked {
		return false, nil
	}
	c := t.enroll(to, a)
	if c == nil {
		if t.g.beats.wait(t.g.ctx, &t.g.node.moments) {
			t.g.cur.Load().wantBeats()
		}
		return false, nil
	}
	select {
	case <-c.done:
	case <-t.stream.done:
	case <-now:
		if c.withdraw() {
			return false, nil
		}
		select {
		case <-c.done:
		case <-t.stream.done:
		}
	}
	select {
	case <-c.done:
		if err := t.told(id, to, c, resp); err != nil {
			return true, err
		}
		_, asked = t.g.beats.wanted()
		return !asked, nil
	default:
		c.withdraw()
		return true, errStopping
	}
}

// enroll returns nil when a heartbeat has to be sent by itself.
func (t *transport) enroll(to raft.ServerAddress, a *raft.AppendEntriesRequest) *call {
	self := []byte(t.g.node.o.Self.String())
	if t.g.node.o.early || !bytes.Equal(a.ID, self) || !bytes.Equal(a.Addr, self) { // what the other side makes of it would differ
		return nil
	}
	return t.g.node.links.get(to).enroll(t, a.Term)
}

// told does with the answer what is done with that to a heartbeat that was sent by itself.
func (t *transport) told(id raft.ServerID, to raft.ServerAddress, c *call, resp *raft.AppendEntriesResponse) error {
	if c.err != nil {
		if !c.at.IsZero() {
			if severed(c.err) {
				t.quick.CloseStreams() // they carried nothing meanwhile, and may have been lost too
			}
			t.g.peers.missed(id)
			t.g.news.tell()
		}
		return c.err
	}
	if c.first { // nobody would notice that the follower has been started anew since it was heard of by itself
		t.g.peers.missed(id)
		t.g.news.tell()
	}
	*resp = c.answer.response(to)
	t.g.peers.heard(id, c.last, resp)
	t.dropStale(id, to)
	if t.g.beats.turn.Swap(c.turn) != c.turn {
		t.g.cur.Load().wantBeats()
	}
	return nil
}

// severed tells whether the connections to a server may be lost that refused a heartbeat, or did not answer it. They are not where the process
// lives and has said something, but for the end of a replica, whose connections it closes.
func severed(err error) bool {
	for _, said := range []error{errNoReplica, errUnderWay, errOtherTerm, errBadVerdict} {
		if errors.Is(err, said) {
			return false
		}
	}
	return true
}
