package uplink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// recover takes the journal's state over. Every partition it knows is asked before it is sent to again.
func (u *Uplink) recover() error {
	s := &u.journal.state
	u.roundID = s.Round
	u.cutAt = u.buffer.Log().Start()
	if s.Started {
		u.cutAt = s.Offset
	}
	if n := len(s.Rounds); n > 0 {
		u.cutAt = s.Rounds[n-1].To
	}
	for _, r := range s.Rounds {
		for _, b := range r.Batches {
			u.order = max(u.order, b.Order)
		}
	}
	for _, ps := range s.Partitions {
		u.order = max(u.order, ps.Order)
	}
	if s.MachineID != "" && u.o.MachineID != "" && s.MachineID != u.o.MachineID {
		u.alarm("this disk was written on another machine: it is a clone, or was moved; a new producer id is taken")
		u.order++
		s.ProducerID = -1
		for i := range s.Partitions { // in the journal too: some will have nothing to send for a long time
			ps := &s.Partitions[i]
			ps.ProducerID, ps.Epoch, ps.Order = -1, 0, u.order
		}
		u.cloned = true
	}
	for _, ps := range s.Partitions {
		u.parts[ps.Target] = &partition{target: ps.Target, id: ps.TopicID, leader: -1, producerID: ps.ProducerID, epoch: ps.Epoch,
			next: ps.Sequence, acked: ps.Acked, order: ps.Order, ask: true, fenced: ps.ProducerID < 0}
	}
	if end := u.buffer.Synced(); u.cutAt > end {
		return fmt.Errorf("the journal has forwarded up to offset %d, but the buffer ends at %d: the buffer was restored from an older copy or deleted; "+
			"remove the uplink's directory to begin anew (what the buffer still holds may then come twice)", u.cutAt, end)
	}
	u.status.Confirmed = u.cutAt
	if len(s.Rounds) > 0 {
		u.status.Confirmed = s.Rounds[0].From
		u.buffer.Hold(s.Rounds[0].From)
	}
	return nil
}

// rebuild makes the open rounds again, exactly as they were planned.
func (u *Uplink) rebuild() error {
	for i := range u.journal.state.Rounds {
		r := &round{plan: u.journal.state.Rounds[i]}
		planned := append([]batchPlan(nil), r.plan.Batches...)
		s, err := u.spanOf(r)
		if err == nil {
			err = u.fill(r, s)
		}
		if err != nil {
			return fmt.Errorf("rebuild round %d (buffer offsets %d to %d): %w", r.plan.ID, r.plan.From, r.plan.To-1, err)
		}
		for k, b := range r.plan.Batches {
			if b.CRC != planned[k].CRC {
				return fmt.Errorf("%w: round %d, batch for %s-%d", ErrRebuiltDiffers, r.plan.ID, b.Target.Topic, b.Target.Partition)
			}
		}
		u.rounds = append(u.rounds, r)
	}
	for t, p := range u.parts {
		p.resume(u.cloned)
		u.cluster.topics[t.Topic] = nil
	}
	return u.confirm() // a round without batches is complete
}

// resume puts the batches that were open before a restart in the order of their sequences, which is not that of their rounds where a dead letter
// or a half came late into an old one, and goes on after the last.
func (p *partition) resume(cloned bool) {
	slices.SortStableFunc(p.queue, func(a, b *batch) int { return cmp.Compare(a.plan.Order, b.plan.Order) })
	for _, b := range p.queue {
		b.doubt, p.ask = true, true
		if b.plan.Order > p.order || b.plan.Order == 0 { // 0: a journal that did not have it yet
			p.producerID, p.epoch, p.next = b.plan.ProducerID, b.plan.Epoch, addSequence(b.plan.Sequence, b.plan.Count)
		}
	}
	p.fenced = cloned || p.producerID < 0
}

func (u *Uplink) spanOf(r *round) (span, error) {
	s, err := readSpan(u.buffer.Log(), r.plan.From, r.plan.To, int64(roundBytesMax)<<8)
	if err == nil && s.to != r.plan.To {
		err = fmt.Errorf("the buffer ends at offset %d", s.to)
	}
	return s, err
}

// apply compares what the log holds with what is open, and goes on after the last batch found.
func (a asked) apply(u *Uplink) error {
	p := a.p
	p.inFlight = false
	if a.err != nil {
		if !a.found && a.id == p.id {
			p.acked = max(p.acked, a.next) // what was read need not be read again
		}
		u.retry(p, fmt.Errorf("look for what is already there: %w", a.err))
		return nil
	}
	if a.id != p.id {
		return nil // of a topic that has been deleted meanwhile: ask again
	}
	p.ask, p.answered = false, time.Now()
	if n := p.doubtful(); a.eaten && !a.found && n > 0 {
		u.m.possiblyTwice.Add(n)
		u.alarm(fmt.Sprintf("%s-%d: retention has removed what would show whether %d records had arrived; they are sent again", p.Topic, p.Partition, n))
	}
	if a.found {
		n, ahead := p.reached(a.producer, a.epoch, a.sequence)
		if ahead {
			p.fenced = true
			u.alarm(fmt.Sprintf("%s-%d: the cluster is ahead of this gateway's journal: the disk was rolled back or copied; a new producer id is taken", p.Topic, p.Partition))
		}
		for i := range n {
			u.m.recovered.Inc()
			end := p.acked // where the last one ends is known, of the others only that it is before
			if i == n-1 {
				end = a.end
			}
			u.done(p, end)
		}
	}
	return u.restart(p)
}

// doubtful counts the open records of which it is not known whether they arrived.
func (p *partition) doubtful() (n int) {
	for _, b := range p.queue {
		if b.doubt {
			n += int(b.plan.Count)
		}
	}
	return n
}

// behind tells whether sequence a was given out before b: the distance on their circle is less than half of it.
func behind(a, b int32) bool {
	d := (int64(b) - int64(a)) & 0x7fffffff
	return d > 0 && d < 1<<30
}

// reached tells how many batches of the queue are in the log, when s is the last sequence found there of the queue's producers; ahead: s is none that
// we gave out. Batches arrive in the queue's order. Between those that are open others may have been confirmed (see resume).
func (p *partition) reached(producer int64, epoch int16, s int32) (n int, ahead bool) {
	known := false
	for i, b := range p.queue {
		if b.plan.ProducerID != producer || b.plan.Epoch != epoch {
			continue
		}
		switch known = true; {
		case behind(s, b.plan.Sequence):
			return i, false
		case behind(s, b.lastSequence()):
			return 0, true // within a batch
		}
		n = i + 1
		if s == b.lastSequence() {
			return n, false
		}
	}
	switch first := p.queue[0].plan; {
	case producer == p.producerID && epoch == p.epoch && !behind(s, p.next):
		return 0, true
	case producer == p.producerID && epoch == p.epoch && !known:
		return len(p.queue), false // all of it is older
	case producer == p.producerID && epoch == p.epoch:
		return n, false
	case producer == first.ProducerID && epoch < first.Epoch:
		return 0, false
	case known && producer == p.producerID && epoch < p.epoch:
		return n, false // after what was open under an old epoch something came that is confirmed
	}
	return 0, producer == p.producerID || known
}

// restart numbers p's open batches anew when the broker has lost our state or somebody else writes under our id.
func (u *Uplink) restart(p *partition) error {
	switch {
	case p.fenced:
		ctx, cancel := context.WithTimeout(u.cluster.ctx, metadataTimeout)
		defer cancel()
		id, err := u.cluster.newProducerID(ctx)
		if err != nil {
			p.ask = true
			u.retry(p, err)
			return nil
		}
		p.producerID, p.epoch = id, 0
	case p.stateLost && len(p.queue) > 0:
		u.alarm(fmt.Sprintf("%s-%d: the cluster no longer knows this gateway's sequences; they begin anew", p.Topic, p.Partition))
		p.epoch++
	default:
		p.stateLost = false
		return nil
	}
	p.fenced, p.stateLost = false, false
	return u.renumber(p)
}

// renumber gives p's open batches new sequences from 0, under p's producer and epoch, and builds them and the rounds in changed again: journaled
// before anything is sent. None may be under way.
func (u *Uplink) renumber(p *partition, changed ...*round) error {
	if p.epoch < 0 { // all epochs of the producer are used up
		p.producerID, p.epoch, p.fenced, p.ask = -1, 0, true, true
	}
	p.next = 0
	for _, b := range p.queue {
		u.numberAgain(b)
		if !slices.Contains(changed, b.round) {
			changed = append(changed, b.round)
		}
	}
	return u.replan(changed)
}

// numberAgain gives a batch of an open round another number.
func (u *Uplink) numberAgain(b *batch) {
	i := slices.Index(b.round.batches, b)
	u.number(&b.round.plan.Batches[i])
	b.plan = b.round.plan.Batches[i]
}

// replan builds rounds again after their plan has changed and journals them. Batches that are done stay done.
func (u *Uplink) replan(rounds []*round) error {
	var entries []entry
	for _, r := range rounds {
		s, err := u.spanOf(r)
		if err != nil {
			return err
		}
		wires, sums, err := build(s, &r.plan, u.o.Codec)
		if err != nil {
			return err
		}
		for i, b := range r.batches {
			r.plan.Batches[i].CRC = sums[i]
			b.plan, b.wire = r.plan.Batches[i], wires[i]
		}
		entries = append(entries, entry{Round: &r.plan})
	}
	return u.journal.commit(entries...)
}

// refused acts on a batch that the cluster will never take: it is halved until the record that is to blame stands alone, and that one
// becomes a dead letter. What follows in the partition is renumbered under a new epoch, for the refused sequences were never used.
func (u *Uplink) refused(p *partition, r *kmsg.ProduceResponseTopicPartition, cause error) error {
	b := p.queue[0]
	noTime := errors.Is(cause, kerr.InvalidTimestamp)
	switch {
	case b.plan.Count > 1:
		first, second := b.plan, b.plan
		first.Count = b.plan.Count / 2
		second.First, second.Count = b.plan.First+first.Count, b.plan.Count-first.Count
		return u.replace(p, first, second)
	case b.plan.Source != nil && noTime && !b.plan.NoTime:
		again := b.plan
		again.NoTime = true
		return u.replace(p, again)
	case b.plan.Source != nil || u.partitionCount(u.o.DeadLetter) < 1:
		u.retry(p, fmt.Errorf("refused, and the dead-letter topic cannot take it: %w", cause))
		return nil
	}
	reason := cause.Error()
	if ke := (*kerr.Error)(nil); errors.As(cause, &ke) {
		reason = ke.Message
	}
	if r.ErrorMessage != nil && *r.ErrorMessage != "" {
		reason += ": " + *r.ErrorMessage
	}
	u.warn("refused", "uplink: a record was refused for good and goes to the dead-letter topic", "topic", p.Topic, "partition", p.Partition, "reason", reason)
	return u.replace(p, u.deadLetter(b, reason, noTime))
}

// deadLetter is a plan that sends b's records to the dead-letter topic, which must be there.
func (u *Uplink) deadLetter(b *batch, reason string, noTime bool) batchPlan {
	d := b.plan
	if d.Source == nil {
		d.Source, d.Reason, d.NoTime = &target{d.Target.Topic, d.Target.Partition}, reason, noTime
	}
	d.Target = deadLetterOf(u.o.DeadLetter, u.partitionCount(u.o.DeadLetter), *d.Source)
	return d
}

// lost tells that p's topic is gone, or has come back with fewer partitions: what is open for p cannot be delivered any more.
func (u *Uplink) lost(p *partition, now time.Time) bool {
	if info := u.cluster.topics[p.Topic]; info != nil && info.impossible {
		return true
	}
	return !p.gone.IsZero() && now.Sub(p.gone) > topicPatience
}

// bury makes p's first batch a dead letter because p is lost.
func (u *Uplink) bury(p *partition) error {
	if u.partitionCount(u.o.DeadLetter) < 1 {
		u.retry(p, errors.New("the partition is gone, and there is no dead-letter topic"))
		return nil
	}
	u.alarm(fmt.Sprintf("%s-%d: the partition is gone, what was open for it goes to the dead-letter topic", p.Topic, p.Partition))
	return u.replace(p, u.deadLetter(p.queue[0], "the partition is gone", false))
}

// replace puts other plans, all of one partition, in the place of p's first batch, of which the cluster has nothing.
func (u *Uplink) replace(p *partition, plans ...batchPlan) error {
	old := p.queue[0]
	r := old.round
	p.queue = p.queue[1:]
	mine := make([]*batch, len(plans))
	for i, plan := range plans {
		mine[i] = &batch{plan: plan, round: r}
	}
	i := slices.Index(r.batches, old)
	r.batches = append(slices.Replace(r.batches, i, i+1, mine[0]), mine[1:]...)
	r.plan.Batches = append(slices.Replace(r.plan.Batches, i, i+1, plans[0]), plans[1:]...)
	r.left += len(plans) - 1
	if to := plans[0].Target; to == p.target {
		p.queue = append(mine, p.queue...)
	} else {
		d := u.partition(to)
		for _, b := range mine {
			u.numberAgain(b)
			d.queue = append(d.queue, b)
		}
	}
	p.epoch++
	p.tries, p.notBefore = 0, time.Time{}
	return u.renumber(p, r)
}
