package partition

import (
	"fmt"
	"math"
)

const (
	// rememberedBatches is how many batches of a producer are recognised when
	// they come again: as many as Kafka remembers, and clients keep no more
	// than five unanswered requests because of it.
	rememberedBatches = 5

	// MaxProducers bounds the producers that one partition remembers; beyond it
	// the one whose last batch is oldest is forgotten. A gateway uses one
	// producer id per lane, so this is room for a city; at about 200 bytes each
	// it bounds a partition's state to 4 MB.
	MaxProducers = 20_000

	noProducer = -1
	noSequence = -1

	// sequenceSpace is the number of sequences before they wrap to 0.
	sequenceSpace = int64(math.MaxInt32) + 1
)

// batchInfo is what deciding on a batch needs to know of it.
type batchInfo struct {
	producer      int64
	epoch         int16
	sequence      int32 // of the first record; -1 in control batches
	delta         int32 // last offset delta: one less than the offsets it takes
	base          int64 // offset it gets when it is accepted
	timestamp     int64 // max timestamp, ms
	transactional bool
	control       bool
	abort         bool // of a control batch: it ends its transaction by abort
	marker        bool // a control batch that ends a transaction
}

// batchRef is one remembered batch.
type batchRef struct {
	sequence int32
	delta    int32
	base     int64
}

// producer is what a partition remembers of one producer id. It is changed by
// copy and put, so that a refused item leaves no trace.
type producer struct {
	id         int64
	epoch      int16
	count      int8                        // how many of batches are used
	batches    [rememberedBatches]batchRef // oldest first
	lastSeq    int32                       // noSequence: none in this epoch yet
	run        int64                       // records stored in sequence up to lastSeq in this epoch
	lastOffset int64                       // of the last batch or marker: its age
	timestamp  int64                       // ms, of the last batch

	older, newer *producer // in the table's order of age
}

// sequenceAdd adds as Kafka does: 2^31-1 is followed by 0.
func sequenceAdd(seq int32, n int64) int32 { return int32((int64(seq) + n) % sequenceSpace) }

// sequenceBack is how far before seq another sequence lies, in 0..2^31-1.
func sequenceBack(seq, other int32) int64 {
	return (int64(seq) - int64(other) + sequenceSpace) % sequenceSpace
}

// verdict is the outcome of checking one batch.
type verdict struct {
	duplicate bool
	base      int64 // of the stored batch, for a duplicate; -1 when forgotten
	err       error
}

// check decides on a batch with a producer id, as Kafka's ProducerAppendInfo
// does (KIP-98, KIP-360), and takes it into account when it is accepted.
// known tells whether p was remembered or is fresh.
func (p *producer) check(b *batchInfo, known bool) verdict {
	if known && b.epoch < p.epoch {
		return verdict{err: fmt.Errorf("%w: producer %d uses epoch %d, the partition has seen %d",
			ErrInvalidProducerEpoch, b.producer, b.epoch, p.epoch)}
	}
	if b.control {
		p.acceptMarker(b)
		return verdict{}
	}
	if b.sequence < 0 {
		return verdict{err: fmt.Errorf("%w: producer %d without a sequence", ErrInvalidBatch, b.producer)}
	}
	if known {
		if v, done := p.checkSequence(b); done {
			return v
		}
	}
	p.accept(b)
	return verdict{}
}

// checkSequence returns done when the batch is not to be appended.
func (p *producer) checkSequence(b *batchInfo) (v verdict, done bool) {
	if b.epoch != p.epoch {
		if b.sequence != 0 {
			return verdict{err: p.outOfOrder(b, 0)}, true
		}
		return verdict{}, false
	}
	want := int32(0)
	if p.lastSeq != noSequence {
		want = sequenceAdd(p.lastSeq, 1)
	}
	if ref, ok := p.remembered(b); ok {
		return verdict{duplicate: true, base: ref.base}, true
	}
	if b.sequence == want {
		return verdict{}, false
	}
	if p.forgotten(b) {
		return verdict{duplicate: true, base: -1, err: fmt.Errorf(
			"%w: producer %d sent sequence %d again, the last is %d",
			ErrDuplicateSequence, b.producer, b.sequence, p.lastSeq)}, true
	}
	return verdict{err: p.outOfOrder(b, want)}, true
}

func (p *producer) outOfOrder(b *batchInfo, want int32) error {
	return fmt.Errorf("%w: producer %d epoch %d sent sequence %d, expected %d",
		ErrOutOfOrderSequence, b.producer, b.epoch, b.sequence, want)
}

// remembered finds the very same batch among the last ones.
func (p *producer) remembered(b *batchInfo) (batchRef, bool) {
	for _, ref := range p.batches[:p.count] {
		if ref.sequence == b.sequence && ref.delta == b.delta {
			return ref, true
		}
	}
	return batchRef{}, false
}

// forgotten tells whether all of the batch was stored in this epoch before the
// oldest remembered batch. It must be certain: clients take the answer for a
// success. So the run of records stored in sequence decides, not the distance
// alone: what came before the first batch ever seen was never stored.
func (p *producer) forgotten(b *batchInfo) bool {
	if p.count == 0 || p.lastSeq == noSequence {
		return false
	}
	oldest := p.batches[0].sequence
	last := sequenceAdd(b.sequence, int64(b.delta))
	first := sequenceBack(p.lastSeq, b.sequence)
	return first < p.run && sequenceBack(p.lastSeq, last) <= first &&
		sequenceBack(p.lastSeq, last) > sequenceBack(p.lastSeq, oldest)
}

func (p *producer) accept(b *batchInfo) {
	if p.epoch != b.epoch {
		p.newEpoch(b.epoch)
	}
	if int(p.count) == rememberedBatches {
		copy(p.batches[:], p.batches[1:])
		p.count--
	}
	p.batches[p.count] = batchRef{sequence: b.sequence, delta: b.delta, base: b.base}
	p.count++
	p.lastSeq = sequenceAdd(b.sequence, int64(b.delta))
	p.run = min(p.run+int64(b.delta)+1, sequenceSpace)
	p.lastOffset, p.timestamp = b.base+int64(b.delta), b.timestamp
}

// acceptMarker takes the end of a transaction: it may raise the epoch (KIP-890),
// after which the producer begins with sequence 0.
func (p *producer) acceptMarker(b *batchInfo) {
	if p.epoch != b.epoch {
		p.newEpoch(b.epoch)
	}
	p.lastOffset, p.timestamp = b.base+int64(b.delta), b.timestamp
}

func (p *producer) newEpoch(epoch int16) {
	p.epoch, p.count, p.lastSeq, p.run = epoch, 0, noSequence, 0
	p.batches = [rememberedBatches]batchRef{}
}

// producers is a bounded table ordered by the age of each producer's last batch.
type producers struct {
	byID           map[int64]*producer
	oldest, newest *producer
}

func (t *producers) len() int { return len(t.byID) }

// get returns a copy, or a fresh producer.
func (t *producers) get(id int64) (producer, bool) {
	if p := t.byID[id]; p != nil {
		return *p, true
	}
	return producer{id: id, lastSeq: noSequence, lastOffset: -1}, false
}

// put stores p as the newest and returns how many were forgotten for it.
func (t *producers) put(p producer) (evicted int) {
	if t.byID == nil {
		t.byID = make(map[int64]*producer)
	}
	slot := t.byID[p.id]
	if slot == nil {
		slot = new(producer)
		t.byID[p.id] = slot
	} else {
		t.unlink(slot)
	}
	*slot = p
	t.linkNewest(slot)
	for len(t.byID) > MaxProducers {
		old := t.oldest
		t.unlink(old)
		delete(t.byID, old.id)
		evicted++
	}
	return evicted
}

func (t *producers) unlink(p *producer) {
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		t.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		t.newest = p.older
	}
	p.older, p.newer = nil, nil
}

func (t *producers) linkNewest(p *producer) {
	p.older, p.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = p
	} else {
		t.oldest = p
	}
	t.newest = p
}
