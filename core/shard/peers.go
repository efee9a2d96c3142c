package shard

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// peers is what a leader has seen of its followers' answers.
type peers struct {
	last func() uint64 // the leader's last index

	mu   sync.Mutex
	byID map[raft.ServerID]*peer
	lost map[raft.ServerID]time.Time // the last request that failed
	// confirmed is the term in which a member has answered with success; it has what it says since.
	confirmed map[raft.ServerID]uint64
	back      map[raft.ServerID]back
}

type peer struct {
	lastIndex uint64
	complete  bool
	target    uint64 // the leader's last index when the request before was sent
	answered  time.Time
	caughtUp  time.Time
}

func newPeers(last func() uint64) *peers {
	return &peers{last: last, byID: map[raft.ServerID]*peer{}, lost: map[raft.ServerID]time.Time{}, confirmed: map[raft.ServerID]uint64{}, back: map[raft.ServerID]back{}}
}

// sending is called before a request is sent.
func (p *peers) sending() (last uint64) { return p.last() }

// heard is called with the answer to a request before which sending returned last. A follower has
// caught up when it has all that the leader had when it sent the request before this one: under
// load no follower ever has what the leader has now.
func (p *peers) heard(id raft.ServerID, last uint64, resp *raft.AppendEntriesResponse) {
	if !resp.Success {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.byID[id]
	if f == nil {
		f = &peer{target: last}
		p.byID[id] = f
	}
	f.answered = now
	p.returnedLocked(id, now)
	f.lastIndex = resp.LastLog
	switch string(resp.Addr) {
	case markComplete:
		f.complete = true
	case markIncomplete:
		f.complete = false
	}
	if f.lastIndex >= f.target {
		f.caughtUp = now
	}
	f.target = last
}

// missed notes that a request has failed.
func (p *peers) missed(id raft.ServerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost[id] = time.Now()
}

// lostSince tells whether a request to a member has failed after that time.
func (p *peers) lostSince(id raft.ServerID, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost[id].After(since)
}

// forget drops what is known of a server.
func (p *peers) forget(id raft.ServerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byID, id)
	delete(p.confirmed, id)
}

// get returns what is known of a follower: whether it answers, is in sync, and its last index.
func (p *peers) get(id raft.ServerID) (answers, inSync, complete bool, lastIndex uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.byID[id]
	if f == nil {
		return false, false, false, 0
	}
	now := time.Now()
	answers = now.Sub(f.answered) <= inSyncWindow
	inSync = answers && f.complete && now.Sub(f.caughtUp) <= inSyncWindow
	return answers, inSync, f.complete, f.lastIndex
}
