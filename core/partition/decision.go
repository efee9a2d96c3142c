package partition

import (
	"fmt"
	"slices"

	"sluice/core/record"
)

// decision is the check of one item's batches against its partition. Producers
// are changed in copies, so that a refused item leaves no trace; transactions
// are changed in place and put back by undo. It belongs to apply, which holds
// the partition's state lock, and is used again for the next item.
type decision struct {
	p          *Partition
	base       int64 // of the item's first record, -1 while unknown
	next       int64
	accepted   []acceptedRun
	producers  []producer
	duplicates int

	openBefore    []openTxn // set when transactions were changed
	abortedBefore int
	txnsChanged   bool
}

// acceptedRun is a part of the item's bytes whose batches are all accepted.
type acceptedRun struct {
	batches []byte // aliases the entry
	base    int64
}

func (d *decision) begin(p *Partition) {
	clear(d.accepted)
	*d = decision{p: p, base: -1, next: p.next, accepted: d.accepted[:0], producers: d.producers[:0]}
}

// decide checks all batches in order. Batches recognised as duplicates are
// passed over; the item's base is that of its first batch, stored now or then.
func (d *decision) decide(batches []byte) error {
	if len(batches) == 0 {
		return fmt.Errorf("%w: no batches", ErrInvalidBatch)
	}
	first := true
	for rest := batches; len(rest) > 0; first = false {
		batch, after, err := record.Next(rest)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalidBatch, err)
		}
		base, err := d.decideBatch(batch, rest[:len(rest)-len(after)])
		if err != nil {
			return err
		}
		if first {
			d.base = base
		}
		rest = after
	}
	return nil
}

func (d *decision) decideBatch(batch record.Batch, bytes []byte) (base int64, err error) {
	info, err := readInfo(batch, d.next)
	if err != nil {
		return -1, err
	}
	if info.producer >= 0 {
		v := d.checkProducer(&info)
		if v.err != nil {
			return -1, v.err
		}
		if v.duplicate {
			d.duplicates++
			return v.base, nil
		}
	}
	d.accept(&info, bytes)
	return info.base, nil
}

func (d *decision) checkProducer(info *batchInfo) verdict {
	pr, known := d.producer(info.producer)
	v := pr.check(info, known)
	if v.err != nil || v.duplicate {
		return v
	}
	if err := d.p.state.txns.check(info); err != nil {
		return verdict{err: err}
	}
	d.stage(pr)
	return verdict{}
}

// producer returns a copy of what is known of a producer, including what
// earlier batches of the same item changed.
func (d *decision) producer(id int64) (producer, bool) {
	for i := range d.producers {
		if d.producers[i].id == id {
			return d.producers[i], true
		}
	}
	return d.p.state.producers.get(id)
}

func (d *decision) stage(pr producer) {
	for i := range d.producers {
		if d.producers[i].id == pr.id {
			d.producers[i] = pr
			return
		}
	}
	d.producers = append(d.producers, pr)
}

func (d *decision) accept(info *batchInfo, bytes []byte) {
	if info.transactional || info.marker {
		d.saveTxns()
		d.p.state.txns.accept(info)
	}
	d.next += int64(info.delta) + 1
	if n := len(d.accepted); n > 0 && adjacent(d.accepted[n-1].batches, bytes) {
		run := &d.accepted[n-1]
		run.batches = run.batches[:len(run.batches)+len(bytes)]
		return
	}
	d.accepted = append(d.accepted, acceptedRun{batches: bytes, base: info.base})
}

// adjacent tells whether b begins where a ends in the same item.
func adjacent(a, b []byte) bool {
	return cap(a) >= len(a)+len(b) && &a[:len(a)+1][len(a)] == &b[0]
}

func (d *decision) saveTxns() {
	if d.txnsChanged {
		return
	}
	t := &d.p.state.txns
	d.txnsChanged, d.openBefore, d.abortedBefore = true, slices.Clone(t.open), len(t.aborted)
}

// undo puts the transactions back.
func (d *decision) undo() {
	if d.txnsChanged {
		t := &d.p.state.txns
		t.open, t.aborted = d.openBefore, t.aborted[:d.abortedBefore]
	}
}

// commit makes the accepted batches part of the partition's state and returns
// how many producers had to be forgotten for new ones.
func (d *decision) commit(epoch int32) (evicted int) {
	p := d.p
	p.state.epochs.assign(epoch, d.accepted[0].base)
	for i := range d.producers {
		evicted += p.state.producers.put(d.producers[i])
	}
	p.next = d.next
	return evicted
}
