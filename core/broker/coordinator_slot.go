package broker

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"sluice/core/group"
	"sluice/core/meta"
	"sluice/core/partition"
)

const (
	// reloadDelay separates two attempts to bring up the coordinator of a partition whose log cannot be read or written.
	reloadDelay = 200 * time.Millisecond
	// replicaPoll is how often a slot looks for a replica that the metadata says is here: it opens without the metadata changing.
	replicaPoll = 50 * time.Millisecond
)

// slot is the place of the coordinator of one partition of __consumer_offsets: empty, or with the session of the term in which this
// node leads the partition. Terms are compared, never edges of leadership: a session of an old term has ended before the next one reads the log.
type slot struct {
	c       *coordinators
	key     partition.Key
	current atomic.Pointer[tenure]
}

// tenure is a session with the term that it belongs to.
type tenure struct {
	*session
	at *replica
}

// session returns the running coordinator.
func (s *slot) session() (*session, group.Code) {
	current := s.current.Load()
	switch {
	case current == nil:
		return nil, s.absent()
	case !current.active.Load():
		return nil, group.CoordinatorLoadInProgress
	}
	return current.session, group.None
}

// absent returns why there is no coordinator: this node may lead the partition already and only not know it yet.
func (s *slot) absent() group.Code {
	_, g, ok := s.c.b.ctl.Local(s.key.Topic, s.key.Index)
	if !ok {
		return group.NotCoordinator
	}
	if node, _, ok := g.Leader(); !ok || node != s.c.b.self() {
		return group.NotCoordinator
	}
	return group.CoordinatorLoadInProgress
}

// run keeps the session of the present term until the topic is gone or ctx ends.
func (s *slot) run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := s.c.b.ctl.Changed()
		topic := s.c.b.ctl.Image().TopicByID(s.key.Topic)
		if topic == nil {
			return nil
		}
		p, g, ok := s.c.b.ctl.Local(s.key.Topic, s.key.Index)
		if !ok {
			s.idle(ctx, changed, nil, s.expected(topic))
			continue
		}
		groupChanged := g.Changed()
		term, ok := g.Serving()
		if !ok || p.Frozen() {
			s.idle(ctx, changed, groupChanged, ok) // nobody tells when a freeze is taken back
			continue
		}
		at := &replica{b: s.c.b, key: s.key, part: p, raft: g, term: term}
		next := &tenure{newSession(at, s.c.config, s.c.metrics, &s.c.tickets), at}
		s.current.Store(next)
		s.hold(ctx, next)
		s.current.Store(nil)
	}
	return nil
}

// expected tells whether this node is to have a replica of the partition.
func (s *slot) expected(topic *meta.Topic) bool {
	sh := s.c.b.ctl.Image().Shard(topic.Partitions[s.key.Index].Shard)
	return sh != nil && slices.Contains(sh.Nodes(), s.c.b.self())
}

// idle waits until this node may lead the partition; poll: without being told.
func (s *slot) idle(ctx context.Context, imageChanged, groupChanged <-chan struct{}, poll bool) {
	if poll {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, replicaPoll)
		defer cancel()
	}
	select {
	case <-ctx.Done():
	case <-imageChanged:
	case <-groupChanged:
	}
}

// hold runs a session until its term is over or it fails. When it returns nothing of the session writes any more.
func (s *slot) hold(parent context.Context, current *tenure) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		defer cancel()
		s.watch(ctx, current)
	}()
	err := current.run(ctx)
	cancel()
	<-watched
	if err == nil || errors.Is(err, errNotCoordinator) || errors.Is(err, context.Canceled) {
		return
	}
	s.c.metrics.failures.Inc()
	s.c.log.Warn("group coordinator starts again", "partition", s.key.Index, "term", current.at.term, "err", err)
	pause(parent, reloadDelay)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// watch returns when the session's term is over.
func (s *slot) watch(ctx context.Context, current *tenure) {
	for {
		changed, imageChanged := current.at.raft.Changed(), s.c.b.ctl.Changed()
		if !current.at.leads() || s.c.b.ctl.Image().TopicByID(s.key.Topic) == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-imageChanged:
			current.topicsChanged()
		}
	}
}

// status describes the slot's coordinator.
func (s *slot) status() (partitionStatus, bool) {
	current := s.current.Load()
	if current == nil {
		return partitionStatus{}, false
	}
	return partitionStatus{
		Partition: s.key.Index, Term: current.at.term, Loading: !current.active.Load(), stats: current.published(),
	}, true
}
