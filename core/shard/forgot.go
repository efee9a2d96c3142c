package shard

import "github.com/hashicorp/raft"

// looksForgetful notices a member that has less than what it had confirmed to this leader in this term. A disk that was honest, and
// is the same, does not come back like that.
//
// The library goes on after the last entry that a member has confirmed, but for its first request in a term, which is a guess.
func (g *Group) looksForgetful(id raft.ServerID, a *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	if !g.peers.forgot(id, a, resp) {
		return
	}
	g.metrics.forgotten.Inc()
	server, _ := parseServer(string(id))
	g.slog.Warn("a replica has lost what it had confirmed: its disk lied about a sync, or its directory is an older copy",
		"node", int(server.Node), "server", string(id), "confirmed", a.PrevLogEntry, "has", resp.LastLog)
}

// forgot takes note of the answer to a request that was not pipelined, and tells whether the member has lost what it had confirmed.
func (p *peers) forgot(id raft.ServerID, a *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if resp.Success {
		p.confirmed[id] = a.Term
		return false
	}
	lost := resp.Term == a.Term && p.confirmed[id] == a.Term && resp.LastLog < a.PrevLogEntry
	if lost {
		delete(p.confirmed, id) // told once
	}
	return lost
}
