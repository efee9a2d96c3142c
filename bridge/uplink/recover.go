package uplink

import (
	"context"
	"errors"
	"fmt"
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
	cloned := s.MachineID != "" && u.o.MachineID != "" && s.MachineID != u.o.MachineID
	for _, ps := range s.Partitions {
		u.parts[ps.Target] = &partition{target: ps.Target, id: ps.TopicID, leader: -1, producerID: ps.ProducerID, epoch: ps.Epoch,
			next: ps.Sequence, acked: ps.Acked, ask: true, fenced: cloned}
	}
	if cloned {
		u.alarm("this disk was written on another machine: it is a clone, or was moved; a new producer id is taken")
		s.ProducerID = -1
	}
	if end := u.buffer.Synced(); u.cutAt > end {
		return fmt.Errorf("the journal has forwarded up to offset %d, but the buffer ends at %d: the buffer was restored from an older copy or deleted; "+
			"remove the uplink's directory to begin anew (what the buffer still holds may then come twice)", u.cutAt, end)
	}
	return nil
}

// rebuild makes the open rounds again, exactly as they were planned.
func (u *Uplink) rebuild() error {
	for i := range u.journal.state.Rounds {
		r := &round{plan: u.journal.state.Rounds[i]}
		for _, b := range r.plan.Batches {
			p := u.partition(b.Target)
			p.producerID, p.epoch, p.next, p.ask = b.ProducerID, b.Epoch, addSequence(b.Sequence, b.Count), true
		}
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
		u.hold()
	}
	for t := range u.parts {
		u.cluster.topics[t.Topic] = nil
	}
	return u.confirm() // a round without batches is complete
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
		if !a.found {
			p.acked = max(p.acked, a.next) // what was read need not be read again
		}
		u.retry(p, fmt.Errorf("look for what is already there: %w", a.err))
		return nil
	}
	p.ask, p.answered = false, time.Now()
	if a.eaten && !p.stateLost {
		u.m.possiblyTwice.Add(int(p.queue[0].plan.Count))
		u.alarm(fmt.Sprintf("%s-%d: retention has removed what would show whether %d records had arrived; they are sent again", p.Topic, p.Partition, p.queue[0].plan.Count))
	}
	if a.found && a.epoch >= p.queue[0].plan.Epoch {
		if n, ahead := p.reached(a.sequence); ahead || a.epoch > p.queue[0].plan.Epoch {
			p.fenced = true
			u.alarm(fmt.Sprintf("%s-%d: the cluster is ahead of this gateway's journal: the disk was rolled back or copied; a new producer id is taken", p.Topic, p.Partition))
		} else {
			for range n {
				u.m.recovered.Inc()
				u.done(p, a.end)
			}
		}
	}
	return u.restart(p)
}

// reached tells how many batches of the queue are in the log when the last sequence found there is s; ahead: s is none that we gave out.
func (p *partition) reached(s int32) (n int, ahead bool) {
	for i, b := range p.queue {
		if b.plan.Epoch == p.queue[0].plan.Epoch && b.lastSequence() == s {
			return i + 1, false
		}
	}
	// The distance on the circle of sequences: less than half of it behind the first open one is the past.
	behind := (int64(p.queue[0].plan.Sequence) - int64(s)) & 0x7fffffff
	return 0, behind == 0 || behind >= 1<<30
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

// renumber gives p's open batches new sequences from 0, under p's producer and epoch: journaled before anything is sent. None may be under way.
func (u *Uplink) renumber(p *partition) error {
	if p.epoch < 0 { // wrapped: take a new producer id instead of a used epoch
		p.fenced = true
		return u.restart(p)
	}
	p.next = 0
	var changed []*round
	for _, b := range p.queue {
		for k := range b.round.batches {
			if b.round.batches[k] == b {
				u.number(&b.round.plan.Batches[k])
				b.plan = b.round.plan.Batches[k]
			}
		}
		if len(changed) == 0 || changed[len(changed)-1] != b.round {
			changed = append(changed, b.round)
		}
	}
	return u.replan(changed)
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
	return u.journal.append(true, entries...)
}

// refused acts on a batch that the cluster will never take: it is halved until the record that is to blame stands alone, and that one
// becomes a dead letter. What follows in the partition is renumbered under a new epoch, for the refused sequences were never used.
func (u *Uplink) refused(p *partition, r *kmsg.ProduceResponseTopicPartition, cause error) error {
	b := p.queue[0]
	if b.plan.Source != nil || u.partitionCount(u.o.DeadLetter) < 1 {
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
	first, second := b.plan, b.plan
	if b.plan.Count == 1 {
		u.warn("refused", "uplink: a record was refused for good and goes to the dead-letter topic", "topic", p.Topic, "partition", p.Partition, "reason", reason)
		b.round.plan.Partitions[u.o.DeadLetter] = u.partitionCount(u.o.DeadLetter)
		return u.replace(p, b, deadLetterPlan(&b.round.plan, u.o.DeadLetter, p.target, b.plan.First, 1, reason))
	}
	first.Count = b.plan.Count / 2
	second.First, second.Count = b.plan.First+first.Count, b.plan.Count-first.Count
	return u.replace(p, b, first, second)
}

// replace puts other plans in the place of p's first batch b, which was refused as a whole and left no trace.
func (u *Uplink) replace(p *partition, b *batch, plans ...batchPlan) error {
	r := b.round
	p.queue = p.queue[1:]
	var mine []*batch
	for i := range r.batches {
		if r.batches[i] != b {
			continue
		}
		r.batches[i], r.plan.Batches[i] = &batch{plan: plans[0], round: r}, plans[0]
		mine = append(mine, r.batches[i])
	}
	for _, pl := range plans[1:] {
		nb := &batch{plan: pl, round: r}
		r.batches, r.plan.Batches = append(r.batches, nb), append(r.plan.Batches, pl)
		mine = append(mine, nb)
		r.left++
	}
	if to := plans[0].Target; to != p.target {
		d := u.partition(to)
		u.number(&r.plan.Batches[indexOf(r, mine[0])])
		d.queue = append(d.queue, mine[0])
	} else {
		p.queue = append(mine, p.queue...)
	}
	p.epoch++
	p.tries, p.notBefore = 0, time.Time{}
	if err := u.replan([]*round{r}); err != nil { // the dead letter's round, also when p has nothing left to renumber
		return err
	}
	return u.renumber(p)
}

func indexOf(r *round, b *batch) int {
	for i := range r.batches {
		if r.batches[i] == b {
			return i
		}
	}
	panic("BUG: batch is not in its round")
}
