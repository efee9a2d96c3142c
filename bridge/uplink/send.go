package uplink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// idleWait is the longest the loop sleeps without an event: it bounds how late a window of the day is noticed and a confirmation synced.
	idleWait = time.Second
	// fullCut: with so many records waiting a round is cut without lingering.
	fullCut = 2000
	// corruptTries: a checksum that does not fit can be the way's fault, so a batch is sent again before it counts as refused.
	corruptTries = 3
)

// cut turns what is synced into open rounds, as many as the bound allows. Every new plan is journaled, in one sync, before dispatch sees it.
func (u *Uplink) cut() error {
	var plans []entry
	for len(u.rounds) < openRoundsMax {
		r, err := u.cutOne()
		if err != nil {
			return err
		}
		if r == nil {
			break
		}
		u.rounds = append(u.rounds, r)
		plans = append(plans, entry{Round: &r.plan})
	}
	u.hold()
	if len(plans) == 0 {
		return nil
	}
	u.m.rounds.Add(len(plans))
	if err := u.journal.commit(plans...); err != nil {
		return err
	}
	u.confirmSynced()
	return u.confirm() // a round of nothing but the gateway's own records is complete
}

// cutOne cuts the next round, or returns nil when there is nothing to cut yet.
func (u *Uplink) cutOne() (*round, error) {
	if u.blocked {
		return nil, nil
	}
	if len(u.rounds) == 0 && u.unsynced.IsZero() {
		u.buffer.Hold(u.cutAt) // before it is read
	}
	if start := u.buffer.Log().Start(); u.cutAt < start {
		u.alarm(fmt.Sprintf("the buffer dropped offsets %d to %d before they were forwarded", u.cutAt, start-1))
		u.m.dropped.Add(int(start - u.cutAt))
		u.cutAt = start
	}
	end := u.buffer.Synced()
	if u.cutAt >= end {
		u.lingering = time.Time{}
		return nil, nil
	}
	if u.lingering.IsZero() {
		u.lingering = time.Now()
	}
	if end-u.cutAt < fullCut && time.Since(u.lingering) < u.o.Linger {
		return nil, nil
	}
	s, err := readSpan(u.buffer.Log(), u.cutAt, end, roundBytesMax)
	if err != nil {
		return nil, err
	}
	p, err := plan(s, u.roundID+1, u.o.DeadLetter, u.partitionCount)
	if err != nil {
		return nil, err
	}
	if p.To == p.From {
		u.blocked = true
		return nil, nil
	}
	return u.openRound(s, p)
}

// partitionCount answers plan and notes what has to be asked.
func (u *Uplink) partitionCount(topic string) int32 {
	info, ok := u.cluster.topics[topic]
	switch {
	case !ok:
		u.cluster.topics[topic] = nil
		u.cluster.stale = true
		return 0
	case info == nil:
		u.cluster.stale = true
		return 0
	case info.impossible:
		return -1
	}
	return int32(len(info.leaders))
}

// openRound gives the sequences out and builds the batches.
func (u *Uplink) openRound(s span, p roundPlan) (*round, error) {
	u.roundID, u.cutAt, u.lingering = p.ID, p.To, time.Time{}
	for i := range p.Batches {
		u.number(&p.Batches[i])
	}
	r := &round{plan: p}
	return r, u.fill(r, s)
}

// number gives a batch its producer and sequence.
func (u *Uplink) number(b *batchPlan) {
	p := u.partition(b.Target)
	u.order++
	b.ProducerID, b.Epoch, b.Sequence, b.Order = p.producerID, p.epoch, p.next, u.order
	p.next = addSequence(p.next, b.Count)
}

// partition returns the state of t, made on first use.
func (u *Uplink) partition(t target) *partition {
	p := u.parts[t]
	if p == nil {
		p = &partition{target: t, leader: -1, producerID: u.journal.state.ProducerID}
		u.parts[t] = p
		if info := u.cluster.topics[t.Topic]; info != nil {
			p.follow(info)
		} else {
			u.cluster.topics[t.Topic], u.cluster.stale = nil, true
		}
	}
	return p
}

// fill builds a new round's batches, notes their checksums in the plan, and queues them.
func (u *Uplink) fill(r *round, s span) error {
	wires, sums, err := build(s, &r.plan, u.o.Codec)
	if err != nil {
		return err
	}
	for i := range wires {
		r.plan.Batches[i].CRC = sums[i]
		b := &batch{plan: r.plan.Batches[i], round: r, wire: wires[i]}
		r.batches = append(r.batches, b)
		p := u.partition(b.plan.Target)
		p.queue = append(p.queue, b)
	}
	r.left = len(r.batches)
	return nil
}

// dispatch starts what can be started and returns how long until something more can, if nothing happens before.
func (u *Uplink) dispatch() (time.Duration, error) {
	now := time.Now()
	wait := idleWait
	if !u.lingering.IsZero() && !u.blocked && len(u.rounds) < openRoundsMax {
		wait = min(wait, max(time.Millisecond, u.lingering.Add(u.o.Linger).Sub(now)))
	}
	wait = min(wait, u.dispatchMetadata(now))
	if err := u.syncConfirmed(now); err != nil {
		return 0, err
	}
	if !open(u.o.Windows, now) {
		return wait, nil
	}
	if w := u.limit.wait(now); w > 0 {
		return min(wait, w), nil
	}
	byLeader := map[int32][]*partition{}
	sizes := map[int32]int{}
	for _, p := range u.parts {
		if len(p.queue) == 0 || p.inFlight {
			continue
		}
		if d := p.notBefore.Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		if u.lost(p, now) {
			if err := u.bury(p); err != nil {
				return 0, err
			}
			wait = time.Millisecond
			continue
		}
		u.collect(p, now, byLeader, sizes)
	}
	for leader, parts := range byLeader {
		u.busy[leader] = true
		u.limit.take(sizes[leader])
		u.m.requests.Inc()
		u.cluster.produce(leader, parts)
	}
	return wait, nil
}

// collect adds p's first batch to its leader's request, or asks the log first.
func (u *Uplink) collect(p *partition, now time.Time, byLeader map[int32][]*partition, sizes map[int32]int) {
	if p.leader < 0 {
		u.cluster.stale = true
		return
	}
	if !p.answered.IsZero() && now.Sub(p.answered) > silenceMax {
		p.ask = true
	}
	if p.ask {
		p.inFlight = true
		u.cluster.ask(p)
		return
	}
	size := len(p.queue[0].wire)
	if u.busy[p.leader] || (sizes[p.leader] > 0 && sizes[p.leader]+size > requestBytesMax) {
		return
	}
	p.inFlight = true
	sizes[p.leader] += size
	byLeader[p.leader] = append(byLeader[p.leader], p)
}

func (u *Uplink) dispatchMetadata(now time.Time) time.Duration {
	if u.metaBusy || len(u.cluster.topics) == 0 {
		return idleWait
	}
	due := u.metaAt.Add(metadataEvery)
	if u.cluster.stale {
		due = u.metaAt
	}
	if d := due.Sub(now); d > 0 {
		return d
	}
	u.metaBusy = true
	u.cluster.refresh()
	return idleWait
}

func (e produced) apply(u *Uplink) error {
	delete(u.busy, e.leader)
	results := map[target]*kmsg.ProduceResponseTopicPartition{}
	if e.err == nil {
		names := map[[16]byte]string{}
		for i, p := range e.parts {
			names[e.ids[i]] = p.Topic
		}
		for i := range e.resp.Topics {
			t := &e.resp.Topics[i]
			name := t.Topic
			if name == "" {
				name = names[t.TopicID]
			}
			for k := range t.Partitions {
				results[target{name, t.Partitions[k].Partition}] = &t.Partitions[k]
			}
		}
	}
	for i, p := range e.parts {
		p.inFlight = false
		if len(p.queue) == 0 || p.queue[0] != e.batches[i] {
			panic("BUG: a batch under way is no longer the first of its partition")
		}
		r := results[p.target]
		switch {
		case e.err != nil:
			u.unanswered(p, e.err)
		case r == nil:
			u.unanswered(p, errors.New("the answer does not name the partition"))
		default:
			if e.ids[i] != p.id {
				r.BaseOffset = noOffset
			}
			if err := u.answered(p, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// noOffset is Kafka's base offset of an answer that has none, and ours of one that a topic gave which has been deleted since.
const noOffset = -1

// unanswered notes that p's first batch may have arrived nevertheless, and puts p back for a while.
func (u *Uplink) unanswered(p *partition, err error) {
	p.queue[0].doubt = true
	u.retry(p, err)
}

// answered acts on what the cluster says of p's first batch.
func (u *Uplink) answered(p *partition, r *kmsg.ProduceResponseTopicPartition) error {
	p.answered = time.Now()
	err := kerr.ErrorForCode(r.ErrorCode)
	switch err {
	case nil:
		if r.BaseOffset == noOffset {
			u.done(p, p.acked)
		} else {
			u.done(p, r.BaseOffset+int64(p.queue[0].plan.Count))
		}
	case kerr.DuplicateSequenceNumber:
		u.m.duplicates.Inc()
		u.done(p, p.acked)
	case kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID:
		p.ask, p.stateLost = true, true
		u.retry(p, err)
	case kerr.InvalidProducerEpoch, kerr.ProducerFenced:
		p.ask, p.fenced = true, true
		u.retry(p, err)
	case kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp:
		return u.refused(p, r, err)
	case kerr.CorruptMessage:
		if p.tries >= corruptTries {
			return u.refused(p, r, err)
		}
		u.retry(p, err)
	default: // some of them mean that it is not known whether the batch will be committed
		u.unanswered(p, err)
	}
	return nil
}

// retry puts p back for a while. Its batches stay where they are, under their sequences.
func (u *Uplink) retry(p *partition, err error) {
	p.notBefore = time.Now().Add(backoff(p.tries))
	p.tries++
	u.cluster.stale = true
	u.m.retries.Inc()
	u.setError(fmt.Sprintf("%s-%d: %v", p.Topic, p.Partition, err))
	if ke := (*kerr.Error)(nil); p.tries > 3 || errors.As(err, &ke) && !ke.Retriable {
		u.warn("produce "+err.Error(), "uplink cannot deliver, will try again", "topic", p.Topic, "partition", p.Partition, "tries", p.tries, "err", err)
	}
}

// done takes p's first batch off: it is in the core, up to offset end.
func (u *Uplink) done(p *partition, end int64) {
	b := p.queue[0]
	p.queue = slices.Delete(p.queue, 0, 1)
	b.done, b.from = true, p.acked
	p.acked, p.tries, p.notBefore = max(p.acked, end), 0, time.Time{}
	b.round.left--
	u.m.records.Add(int(b.plan.Count))
	u.m.bytes.Add(len(b.wire))
	if b.plan.Source != nil {
		u.m.deadLetters.Add(int(b.plan.Count))
	}
}

// confirm journals that the oldest rounds are complete. The buffer is told once that is on disk: else a crash could leave open rounds whose
// records were already trimmed.
func (u *Uplink) confirm() error {
	var c *confirmation
	touched := map[target]bool{}
	for len(u.rounds) > 0 && u.rounds[0].left == 0 {
		r := u.rounds[0]
		u.rounds = slices.Delete(u.rounds, 0, 1)
		c = &confirmation{Round: r.plan.ID, Offset: r.plan.To}
		for _, b := range r.batches {
			touched[b.plan.Target] = true
		}
	}
	if c == nil {
		return nil
	}
	lookFrom := u.lookFrom()
	for t := range touched {
		p := u.parts[t]
		s := partitionState{Target: t, TopicID: p.id, ProducerID: p.producerID, Epoch: p.epoch, Sequence: p.next, Acked: p.acked, Order: u.order}
		if from, ok := lookFrom[t]; ok {
			s.Acked = min(s.Acked, from)
		}
		c.Partitions = append(c.Partitions, s)
	}
	if u.unsynced.IsZero() {
		u.unsynced = time.Now()
	}
	return u.journal.note(entry{Confirmation: c})
}

// lookFrom is, by partition, where the batches of open rounds begin that are in the core already: after a crash they are looked for again.
func (u *Uplink) lookFrom() map[target]int64 {
	from := map[target]int64{}
	for _, r := range u.rounds {
		for _, b := range r.batches {
			if at, ok := from[b.plan.Target]; b.done && (!ok || b.from < at) {
				from[b.plan.Target] = b.from
			}
		}
	}
	return from
}

// hold tells the buffer which records open rounds still need. While a confirmation is not on disk its rounds would be open after a crash, so what
// is held stays.
func (u *Uplink) hold() {
	switch {
	case !u.unsynced.IsZero():
	case len(u.rounds) > 0:
		u.buffer.Hold(u.rounds[0].plan.From)
	default:
		u.buffer.Hold(-1)
	}
}

// syncConfirmed makes a confirmation durable that no round has carried to disk for a while.
func (u *Uplink) syncConfirmed(now time.Time) error {
	if u.unsynced.IsZero() || now.Sub(u.unsynced) < idleWait/2 {
		return nil
	}
	if err := u.journal.commit(); err != nil {
		return err
	}
	u.confirmSynced()
	return nil
}

// confirmSynced tells the buffer what the journal now has on disk.
func (u *Uplink) confirmSynced() {
	u.unsynced = time.Time{}
	u.hold()
	if u.journal.state.Started {
		u.buffer.Confirm(u.journal.state.Offset)
	}
}

// identify takes a producer id when the journal has none, waiting for the cluster as long as it takes.
func (u *Uplink) identify(ctx context.Context) error {
	s := &u.journal.state
	for tries := 0; s.ProducerID < 0; tries++ {
		c, cancel := context.WithTimeout(ctx, metadataTimeout)
		id, err := u.cluster.newProducerID(c)
		cancel()
		if err == nil {
			s.ProducerID = id
			break
		}
		u.failedMetadata(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff(tries)):
		}
	}
	s.MachineID = u.o.MachineID
	if err := u.journal.rewrite(); err != nil {
		return err
	}
	if s.Started {
		u.buffer.Confirm(s.Offset) // it does not remember
	}
	return nil
}
