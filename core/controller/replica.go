package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

const (
	// dutyTimeout bounds one round of duties, so that a shard without a majority tries anew.
	dutyTimeout = 10 * time.Second
	// dutyWait and dutyWaitMax separate rounds that failed.
	dutyWait    = 50 * time.Millisecond
	dutyWaitMax = 2 * time.Second
	// proposalsMax may be under way for one shard: creating 10,000 partitions must not hold
	// 10,000 futures.
	proposalsMax = 256
	// reportAgain is how long a report may take to come back in this node's image.
	reportAgain = time.Second
	// foundWait is how long a new shard's first leader waits for the other members.
	foundWait = 500 * time.Millisecond
	foundPoll = 5 * time.Millisecond
)

// replica is this node's part in one shard. Its goroutine does the duties of the shard's leader
// while the node leads it. Each shard has its own, so that one without a majority, where proposals
// wait, does not hold up the others.
type replica struct {
	c     *Controller
	id    meta.ShardID
	group *shard.Group
	set   *partition.Set

	// done is the metadata index up to which the shard has all that it shall have, and doneTerm the
	// term in which this node saw to that; 0 while it does not lead.
	done, doneTerm atomic.Uint64

	moving  moving
	cancel  context.CancelFunc // ends run and the set's
	running sync.WaitGroup
	rate    rate // at which segments are fetched

	// The rest belongs to run.
	term           uint64
	since          time.Time // of the term
	preferredSince time.Time // the preferred leader is in sync since then; zero: it is not
	reported       *meta.ReportShard
	reportedAt     time.Time
	retained       time.Time // last look at retention
}

func (r *replica) run(ctx context.Context) {
	wait := dutyWait
	for {
		r.rate.sample(r.set.Fetched())
		beat, group, image := r.c.beat.wait(), r.group.Changed(), r.c.Changed()
		err := r.round(ctx)
		var retry <-chan time.Time
		if err != nil && ctx.Err() == nil {
			r.c.log.Debug("shard duties failed", "shard", r.id, "err", err)
			r.c.metrics.dutyErrors.Inc()
			retry, wait = time.After(wait), min(2*wait, dutyWaitMax)
			beat, group, image = nil, nil, nil // back off, whatever happens meanwhile
		} else {
			wait = dutyWait
		}
		select {
		case <-group:
		case <-image:
		case <-beat:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// round does what the leader has to do now.
func (r *replica) round(ctx context.Context) error {
	term, ok := r.group.Serving()
	if why := r.mustYield(); ok && why != "" && r.yield(ctx, why) {
		return nil
	}
	if !ok {
		r.term = 0
		r.doneTerm.Store(0)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	if term != r.term {
		if err := r.begin(ctx, term); err != nil {
			return err
		}
	}
	image := r.c.Image()
	s := image.Shard(r.id)
	if s == nil || s.Term > term {
		return nil
	}
	if s.Leader == meta.NoNode && r.found(ctx, s) {
		return nil
	}
	if err := r.report(ctx, s, term); err != nil {
		return err
	}
	before := r.done.Load()
	if err := r.create(ctx, image, s); err != nil {
		return err
	}
	r.done.Store(image.Index())
	if r.doneTerm.Swap(term) != term || s.ModIndex > before {
		r.c.progress.notify()
	}
	return errors.Join(r.thaw(ctx, image), r.keepMembers(ctx, s), r.preferLeader(ctx, s), r.retain(ctx, image))
}

// begin starts a term. The image must be at least as new as the term: an earlier leader may have
// deleted partitions that an older image still wants, and creating them again would bring them
// back for ever, since their removal is already confirmed.
func (r *replica) begin(ctx context.Context, term uint64) error {
	r.doneTerm.Store(0)
	r.done.Store(0)
	if err := r.c.catchUp(ctx); err != nil {
		return fmt.Errorf("begin term %d: %w", term, err)
	}
	r.term, r.since, r.preferredSince, r.retained = term, time.Now(), time.Time{}, time.Now()
	return nil
}

// servesFrom tells whether this node leads the shard and has done all that the metadata wanted of
// it at index, and in which term.
func (r *replica) servesFrom(index uint64) (term uint64, ok bool) {
	if r == nil {
		return 0, false
	}
	term, ok = r.group.Serving()
	return term, ok && r.doneTerm.Load() == term && r.done.Load() >= index
}

// isr returns the voters that are in sync: the wanted ones in their order, then those that are to leave and are still needed.
func (r *replica) isr(s *meta.Shard) []meta.NodeID {
	replicas := r.group.Replicas()
	var out []meta.NodeID
	for _, v := range s.Voters {
		self := v == r.c.id.server()
		if self || slices.ContainsFunc(replicas, func(x shard.Replica) bool { return x.Server == v && x.Voter && x.InSync }) {
			out = append(out, v.Node)
		}
	}
	for _, x := range replicas {
		if x.Voter && (x.InSync || x.Server.Node == r.c.Self()) && !slices.Contains(out, x.Server.Node) && !s.Has(x.Server) && slices.Contains(s.Leaving, x.Server) {
			out = append(out, x.Server.Node)
		}
	}
	return out
}

// report tells the metadata who leads and who is in sync when that is news.
func (r *replica) report(ctx context.Context, s *meta.Shard, term uint64) error {
	now := &meta.ReportShard{Shard: r.id, Term: term, Leader: r.c.Self(), ISR: r.isr(s)}
	if s.Term == term && s.Leader == now.Leader && slices.Equal(s.ISR, now.ISR) {
		return nil
	}
	if r.reported != nil && r.reported.Term == term && slices.Equal(r.reported.ISR, now.ISR) && time.Since(r.reportedAt) < reportAgain {
		return nil // committed, and on its way to this node's image
	}
	if _, err := r.c.submit(ctx, &commandRequest{Command: cmdReport, Report: now}); err != nil {
		return fmt.Errorf("report shard %d: %w", r.id, err)
	}
	r.reported, r.reportedAt = now, time.Now()
	return nil
}

// proposals are entries under way in one shard.
type proposals struct {
	group *shard.Group
	wait  []shard.Future
}

func (p *proposals) add(ctx context.Context, entry []byte) error {
	p.wait = append(p.wait, p.group.Propose(entry))
	if len(p.wait) < proposalsMax {
		return nil
	}
	return p.flush(ctx)
}

// flush waits for all of them.
func (p *proposals) flush(ctx context.Context) error {
	var errs []error
	for _, f := range p.wait {
		if _, err := f.Wait(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	p.wait = p.wait[:0]
	return errors.Join(errs...)
}

// create makes the shard's partitions what the metadata wants: it proposes the entries that
// create, configure and delete. All of them change nothing when they are committed twice.
func (r *replica) create(ctx context.Context, image *meta.Image, s *meta.Shard) error {
	done := r.done.Load()
	if s.ModIndex <= done {
		return nil
	}
	p := &proposals{group: r.group}
	for t := range image.ShardTopics(r.id) {
		if t.ModIndex <= done && image.DefaultsIndex() <= done {
			continue
		}
		if err := r.createTopic(ctx, p, image, t); err != nil {
			return err
		}
	}
	removals := image.Removals(r.id)
	for _, x := range removals {
		if x.Move != 0 {
			p.wait = append(p.wait, r.proposeDrop(x))
			continue
		}
		if err := p.add(ctx, partition.EncodeDelete(partition.Key{Topic: x.Topic, Index: x.Index})); err != nil {
			return fmt.Errorf("delete partitions of shard %d: %w", r.id, err)
		}
	}
	if err := p.flush(ctx); err != nil {
		return fmt.Errorf("reconcile partitions of shard %d: %w", r.id, err)
	}
	return r.confirm(ctx, removals)
}

func (r *replica) createTopic(ctx context.Context, p *proposals, image *meta.Image, t *meta.Topic) error {
	config := logConfig(image.TopicSettings(t))
	for _, part := range t.Partitions {
		if part.Shard != r.id {
			continue
		}
		key := partition.Key{Topic: t.ID, Index: part.Index}
		var entry []byte
		switch have, ok := r.set.Get(key); {
		case !ok && part.Arrived != 0:
			return fmt.Errorf("%w: %s-%d was moved into shard %d and is not there", errMissing, t.Name, part.Index, r.id)
		case !ok:
			entry = partition.EncodeCreate(partition.Create{Key: key, Name: t.Name, EpochBase: part.EpochBase, Config: config})
		case have.Config() != config:
			entry = partition.EncodeConfigure(key, config)
		default:
			continue
		}
		if err := p.add(ctx, entry); err != nil {
			return fmt.Errorf("create partitions of %s: %w", t.Name, err)
		}
	}
	return nil
}

func logConfig(s meta.TopicSettings) partition.LogConfig {
	return partition.LogConfig{SegmentBytes: s.SegmentBytes, SegmentMs: s.SegmentMs, IndexIntervalBytes: s.IndexIntervalBytes}
}

// confirm lets the metadata forget removals that are committed in the shard.
func (r *replica) confirm(ctx context.Context, removals []meta.Removal) error {
	if len(removals) == 0 {
		return nil
	}
	_, err := r.c.submit(ctx, &commandRequest{Command: cmdConfirmRemovals, Confirm: &meta.ConfirmRemovals{Removals: removals}})
	if err != nil {
		return fmt.Errorf("confirm removals of shard %d: %w", r.id, err)
	}
	return nil
}

func (r *replica) usable(s meta.Server) bool {
	n, ok := r.c.Image().Node(s.Node)
	return ok && !n.Fenced && n.Incarnation == s.Incarnation && !r.c.heals.isHeld(r.id, s)
}

// found looks after a shard that never had a leader, before anybody knows of it. It waits a moment
// until all members are there, so that the first answer to a client names a full ISR and the first
// record finds enough replicas in sync; and it gives the shard to the preferred leader, so that
// clients need not follow it there a moment later. It tells whether it did the latter.
func (r *replica) found(ctx context.Context, s *meta.Shard) (handed bool) {
	want := 0
	for _, v := range s.Voters {
		if r.usable(v) {
			want++
		}
	}
	for len(r.isr(s)) < want && time.Since(r.since) < foundWait && ctx.Err() == nil {
		pause(ctx, foundPoll)
	}
	preferred := s.Preferred()
	if preferred == r.c.Self() || !slices.Contains(r.isr(s), preferred) {
		return false
	}
	return r.group.Transfer(ctx, preferred) == nil
}

// preferLeader gives the shard back to its preferred leader once that one has been in sync for a
// while.
func (r *replica) preferLeader(ctx context.Context, s *meta.Shard) error {
	preferred := s.Preferred()
	if preferred == r.c.Self() || !slices.Contains(r.isr(s), preferred) || !r.usable(s.Voters[0]) || r.c.disks.spent(preferred) {
		r.preferredSince = time.Time{}
		return nil
	}
	if r.preferredSince.IsZero() {
		r.preferredSince = time.Now()
	}
	if time.Since(r.preferredSince) < r.c.o.PreferredDelay {
		return nil
	}
	r.preferredSince = time.Now() // a transfer that fails is tried again as late
	if err := r.group.Transfer(ctx, preferred); err != nil {
		return fmt.Errorf("hand shard %d to its preferred leader %d: %w", r.id, preferred, err)
	}
	r.c.log.Info("handed shard to its preferred leader", "shard", r.id, "node", preferred)
	return nil
}

// retain proposes where logs shall start by their topics' retention. The proposals are not waited
// for: what is lost is proposed again.
func (r *replica) retain(ctx context.Context, image *meta.Image) error {
	if time.Since(r.retained) < r.c.o.RetentionInterval {
		return nil
	}
	r.retained = time.Now()
	var starts []partition.Start
	for t := range image.ShardTopics(r.id) {
		starts = append(starts, r.expired(image, t)...)
	}
	if len(starts) == 0 {
		return nil
	}
	if _, err := r.group.Propose(partition.EncodeStart(starts)).Wait(ctx); err != nil {
		return fmt.Errorf("propose retention of shard %d: %w", r.id, err)
	}
	r.c.metrics.retentions.Add(len(starts))
	return nil
}

func (r *replica) expired(image *meta.Image, t *meta.Topic) []partition.Start {
	s := image.TopicSettings(t)
	if !s.Delete {
		return nil
	}
	var out []partition.Start
	now := r.c.o.Now().UnixMilli()
	for _, part := range t.Partitions {
		if part.Shard != r.id {
			continue
		}
		key := partition.Key{Topic: t.ID, Index: part.Index}
		if p, ok := r.set.Get(key); ok {
			if start := p.RetentionStart(now, s.RetentionMs, s.RetentionBytes); start > p.Start() {
				out = append(out, partition.Start{Key: key, Offset: start})
			}
		}
	}
	return out
}
