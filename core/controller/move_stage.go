package controller

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"

	"sluice/core/meta"
	"sluice/core/partition"
)

const (
	// kindMoves is the kind of connection by which a node copies partitions of other shards.
	kindMoves = "moves"
	// copiesAtOnce is how many partitions a node copies at one time; more would only make each
	// slower, and the first ones done are the first to be served elsewhere.
	copiesAtOnce = 4
)

// stageKey names the copy of a partition for one move.
type stageKey struct {
	key  partition.Key
	move uint64
}

// stages are the copies that this node makes of partitions which move into its shards.
type stages struct {
	c     *Controller
	slots chan struct{}
	// in holds back what this node copies, out what others copy from it.
	in, out *partition.Throttle
	// swept is true when nothing was left over at the last look and no move was under way: nothing can be until there is one. It belongs
	// to run.
	swept bool

	mu struct {
		sync.Mutex
		running map[stageKey]*runningStage
	}
}

type runningStage struct {
	*partition.Stage
	shard  meta.ShardID
	cancel context.CancelFunc
	done   chan struct{}
}

func newStages(c *Controller) *stages {
	s := &stages{c: c, slots: make(chan struct{}, copiesAtOnce)}
	s.in = partition.NewThrottle(func() int64 { return c.moveRate("follower.replication.throttled.rate") })
	s.out = partition.NewThrottle(func() int64 { return c.moveRate("leader.replication.throttled.rate") })
	s.mu.running = make(map[stageKey]*runningStage)
	return s
}

// moveRate returns how many bytes a second this node shall send or receive for moves and for replicas that catch up. Kafka's tool for
// reassignments sets these when it is told to throttle. What nobody has set is what live traffic leaves.
func (c *Controller) moveRate(name string) int64 {
	for _, broker := range []string{strconv.Itoa(int(c.Self())), ""} {
		if text, ok := c.Image().Config(meta.ResourceBroker, broker)[name]; ok {
			if rate, err := strconv.ParseInt(text, 10, 64); err == nil {
				return rate
			}
		}
	}
	return c.node.SpareBytesPerSecond()
}

// run begins the copies that the metadata asks for, and ends and removes those that it no longer does.
func (s *stages) run(ctx context.Context) {
	defer s.stop()
	select {
	case <-s.c.current:
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		beat, changed := s.c.beat.wait(), s.c.Changed()
		s.end()
		s.begin(ctx)
		s.sweep()
		select {
		case <-changed:
		case <-beat:
		case <-ctx.Done():
		}
	}
}

// begin opens the copies that are missing.
func (s *stages) begin(ctx context.Context) {
	image := s.c.Image()
	if image.MoveCount() == 0 {
		return
	}
	for _, shard := range image.Shards() {
		if !shard.Has(s.c.id.server()) {
			continue
		}
		for m := range image.MovesTo(shard.ID) {
			key := stageKey{partition.Key{Topic: m.Topic.ID, Index: m.Partition.Index}, m.Partition.Move.ID}
			if s.get(key) == nil && !s.arrived(shard.ID, key) {
				s.open(ctx, m, key)
			}
		}
	}
}

// arrived tells whether the partition has been adopted here by that move.
func (s *stages) arrived(id meta.ShardID, key stageKey) bool {
	r := s.c.replica(id)
	if r == nil {
		return false
	}
	p, ok := r.set.Get(key.key)
	return ok && p.Arrived() == key.move
}

func (s *stages) get(key stageKey) *runningStage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.running[key]
}

func (s *stages) all() []*runningStage {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*runningStage, 0, len(s.mu.running))
	for _, r := range s.mu.running {
		list = append(list, r)
	}
	return list
}

func (s *stages) open(ctx context.Context, m meta.Moving, key stageKey) {
	from := m.Partition.Shard
	stage, err := partition.OpenStage(partition.StageOptions{
		FS: s.c.o.FS, Dirs: s.c.dirs, Key: key.key, Name: m.Topic.Name, Shard: m.Partition.Move.To, From: from, Move: key.move,
		Sources: func() []partition.Peer { return s.sources(from) },
		Slots:   s.slots, Throttle: s.in, Logger: s.c.log,
	})
	if err != nil {
		s.c.log.Warn("could not begin to copy a partition", "topic", m.Topic.Name, "partition", key.key.Index, "err", err)
		return // the next round tries again
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &runningStage{Stage: stage, shard: m.Partition.Move.To, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	s.mu.running[key] = r
	s.mu.Unlock()
	go func() {
		defer close(r.done)
		stage.Run(ctx)
	}()
}

// end closes copies that were adopted and discards those of moves that are over.
func (s *stages) end() {
	image := s.c.Image()
	for _, r := range s.all() {
		taken := r.Taken()
		if !taken && wanted(image, r.Key(), r.Move()) {
			continue
		}
		s.finish(r)
		if err := r.Discard(); err != nil {
			s.c.log.Warn("could not remove a copy", "err", err)
		}
	}
}

// wanted tells whether the metadata may still need a copy: the move is under way, or is done and this
// replica has not come to the entry that adopts it.
func wanted(image *meta.Image, k partition.Key, move uint64) bool {
	p := image.Partition(k.Topic, k.Index)
	if image.Index() < move {
		return true
	}
	return p != nil && (p.Move != nil && p.Move.ID == move || p.Arrived == move)
}

// finish ends a copy's goroutine and forgets it.
func (s *stages) finish(r *runningStage) {
	r.cancel()
	<-r.done
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.running, stageKey{r.Key(), r.Move()})
}

func (s *stages) stop() {
	for _, r := range s.all() {
		s.finish(r)
		r.Close()
	}
}

// sweep removes what an earlier run of this process has left of moves that are over. A look lists the data directory, which may have ten
// thousand entries, so there is none while nothing moves.
func (s *stages) sweep() {
	image := s.c.Image()
	moving := image.MoveCount() > 0
	if s.swept && !moving {
		return
	}
	left, err := s.c.dirs.Leftovers()
	if err != nil {
		s.c.log.Warn("could not look for copies that are left over", "err", err)
		return
	}
	s.swept = len(left) == 0 && !moving
	for _, l := range left {
		if wanted(image, l.Key, l.Move) && !s.arrived(l.Shard, stageKey{l.Key, l.Move}) {
			continue
		}
		if err := s.c.dirs.RemoveLeftover(l); err != nil {
			s.c.log.Warn("could not remove a copy that was left over", "err", err)
		}
	}
}

// sources are the replicas of a shard in the order in which they are asked for a copy: this node's own,
// then followers in sync, which have less to do than the leader, then the others.
func (s *stages) sources(id meta.ShardID) []partition.Peer {
	shard := s.c.Image().Shard(id)
	if shard == nil {
		return nil
	}
	leader, _, _ := s.c.LeaderOf(id)
	var out []partition.Peer
	voters := slices.Concat(shard.Voters, shard.Leaving)
	rank := func(v meta.Server) int {
		switch {
		case v.Node == s.c.Self():
			return 0
		case !slices.Contains(shard.ISR, v.Node):
			return 3
		case v.Node == leader:
			return 2
		}
		return 1
	}
	slices.SortStableFunc(voters, func(a, b meta.Server) int { return rank(a) - rank(b) })
	for _, v := range voters {
		out = append(out, partition.Peer{Name: fmt.Sprintf("node %d", v.Node), Dial: func(ctx context.Context) (net.Conn, error) {
			if v.Node == s.c.Self() {
				return s.local(ctx), nil
			}
			return s.c.node.Dial(ctx, v.Node, kindMoves)
		}})
	}
	return out
}

// local connects to this node itself, without the network: only the copying is held back then.
func (s *stages) local(ctx context.Context) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		_ = partition.ServeMove(ctx, theirs, s.lookup, partition.NewThrottle(func() int64 { return partition.DefaultCatchUpBytesPerSecond }))
	}()
	return ours
}

func (s *stages) lookup(id meta.ShardID) (*partition.Set, bool) {
	r := s.c.replica(id)
	if r == nil {
		return nil, false
	}
	return r.set, true
}

// serve lets a node elsewhere copy partitions of the replicas here.
func (s *stages) serve(ctx context.Context, from meta.NodeID, conn net.Conn) {
	if err := partition.ServeMove(ctx, conn, s.lookup, s.out); err != nil && ctx.Err() == nil {
		s.c.log.Debug("connection of a move ended", "node", from, "err", err)
	}
}
