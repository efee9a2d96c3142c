package shard

import (
	"time"

	"github.com/hashicorp/raft"
)

// staleAfter a member has answered a heartbeat again, what was asked before that has had the time to be answered too.
const staleAfter = time.Second

// back is since when a member answers again after a request to it had failed.
type back struct {
	since   time.Time
	pending bool // connections from before have not been looked at
}

// returned notes an answer.
func (p *peers) returnedLocked(id raft.ServerID, now time.Time) {
	if lost := p.lost[id]; lost.After(p.back[id].since) {
		p.back[id] = back{since: now, pending: true}
	}
}

// outlasted tells, once, that a member has answered for staleAfter since its last failure, and since when.
func (p *peers) outlasted(id raft.ServerID, now time.Time) (since time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.back[id]
	if !b.pending || p.lost[id].After(b.since) || now.Sub(b.since) < staleAfter {
		return time.Time{}, false
	}
	p.back[id] = back{since: b.since}
	return b.since, true
}

// dropStale is called when a member has answered a heartbeat. It closes connections to it on which an answer is missing since before the
// time when the member could not be reached: a network that has forgotten them tells nobody, and a request with entries would wait for
// its answer until bulkTimeout, with all that come after it. What was sent and not answered is sent again.
func (t *transport) dropStale(id raft.ServerID, to raft.ServerAddress) {
	since, ok := t.g.peers.outlasted(id, time.Now())
	if !ok {
		return
	}
	if n := t.stream.closeWaiting(to, since); n > 0 {
		t.g.metrics.dropped.Add(n)
		t.g.slog.Info("closed connections that were not answered", "server", string(id), "connections", n)
	}
}

// closeWaiting closes the connections to a server on which an answer is missing since before that time. It returns how many.
func (s *stream) closeWaiting(to raft.ServerAddress, since time.Time) (n int) {
	s.mu.Lock()
	var stale []*streamConn
	for c := range s.conns {
		if at := c.waiting.Load(); c.to == to && at != 0 && at < since.UnixNano() {
			stale = append(stale, c)
		}
	}
	s.mu.Unlock()
	for _, c := range stale {
		c.Close()
	}
	return len(stale)
}

// Read implements net.Conn.
func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.to != "" {
		c.waiting.Store(0)
	}
	return n, err
}

// Write implements net.Conn.
func (c *streamConn) Write(b []byte) (int, error) {
	if c.to != "" && c.waiting.Load() == 0 {
		c.waiting.Store(time.Now().UnixNano())
	}
	return c.Conn.Write(b)
}
