package shard

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// SpareBytesPerSecondMax is what catch-up takes when nothing else happens: a quarter of what a common disk writes.
	SpareBytesPerSecondMax = 64 << 20
	// spareMin is what it takes however busy the node is, as being behind is a danger of its own: 100 GB take three and a half hours.
	spareMin = 8 << 20
	// spareStep and spareBack change the rate once every sparePeriod: up by the step, down to that part.
	spareStep   = 4 << 20
	spareBack   = 0.75
	sparePeriod = 200 * time.Millisecond
	// slowShare of the writes and commits of a period may be slow before the rate goes down: what it shall keep is the 99th percentile.
	slowShare = 0.05
	// A write or commit is slow when it takes more than twice what it took before anybody caught up, and this, and the time its bytes need on a common disk.
	slowWrite         = 5 * time.Millisecond
	slowCommit        = 10 * time.Millisecond
	slowBytesPerSec   = 100 << 20
	quietWeight       = 1.0 / 64 // of one measurement in the average of the quiet time
	sparePause        = 2 * time.Second
	spareWaitMax      = time.Second // of one request: its follower shall hear of what is committed
	spareUsualAtFirst = time.Millisecond
)

// spare is the rate that is left for catch-up beside live traffic, which it learns from what live traffic feels: how long writes of the logs and commits
// take now, compared with the time when nobody caught up. It is the node's, for all its groups.
type spare struct {
	mu          sync.Mutex
	rate        float64
	changed     time.Time
	used        time.Time // when somebody asked last
	slow, total int
	usual       [2]time.Duration // what a write and a commit take in quiet times
	free        time.Time        // when the next bytes of wait may pass
}

const (
	sawWrite = iota
	sawCommit
)

func (s *spare) init() {
	s.rate = SpareBytesPerSecondMax / 2
	s.usual = [2]time.Duration{spareUsualAtFirst, spareUsualAtFirst}
}

// saw notes what a write or a commit of live traffic took.
func (s *spare) saw(now time.Time, what int, took time.Duration, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	took -= time.Duration(bytes) * time.Second / slowBytesPerSec
	if now.Sub(s.used) > sparePause {
		s.usual[what] += time.Duration(float64(max(took, 0)-s.usual[what]) * quietWeight)
		return
	}
	floor := slowWrite
	if what == sawCommit {
		floor = slowCommit
	}
	s.total++
	if took > 2*s.usual[what]+floor {
		s.slow++
	}
}

// bytesPerSecond returns the rate now, and counts as using it.
func (s *spare) bytesPerSecond(now time.Time) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.rateLocked(now))
}

func (s *spare) rateLocked(now time.Time) float64 {
	if now.Sub(s.used) > sparePause { // begins anew
		s.rate, s.changed, s.slow, s.total = SpareBytesPerSecondMax/2, now, 0, 0
	}
	s.used = now
	if now.Sub(s.changed) < sparePeriod {
		return s.rate
	}
	if float64(s.slow) > slowShare*float64(s.total) {
		s.rate = max(s.rate*spareBack, spareMin)
	} else {
		s.rate = min(s.rate+spareStep, SpareBytesPerSecondMax)
	}
	s.changed, s.slow, s.total = now, 0, 0
	return s.rate
}

// wait blocks until so many bytes may pass, for spareWaitMax at most.
func (s *spare) wait(ctx context.Context, bytes int64) {
	now := time.Now()
	s.mu.Lock()
	rate := s.rateLocked(now)
	if s.free.Before(now) {
		s.free = now
	}
	turn := s.free
	s.free = turn.Add(time.Duration(float64(bytes) / rate * float64(time.Second)))
	s.mu.Unlock()
	if d := min(turn.Sub(now), spareWaitMax); d > 0 {
		pause(ctx, d)
	}
}

// SpareBytesPerSecond is the rate that is left now for catch-up, beside what live traffic takes. Asking counts as using it: the node then watches what
// that does to live traffic.
func (n *Node) SpareBytesPerSecond() int64 { return n.spare.bytesPerSecond(time.Now()) }

// canWaitFor tells whether the group commits without a member: a majority of the voters is in sync beside it.
func (g *Group) canWaitFor(id raft.ServerID) bool {
	voters, inSync := 0, 0
	for _, r := range g.Replicas() {
		if !r.Voter {
			continue
		}
		voters++
		if r.InSync && serverID(r.Server) != id {
			inSync++
		}
	}
	return inSync > voters/2
}
