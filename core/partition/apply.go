package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"

	"sluice/core/record"
)

const (
	// pendingBytesMax is gathered for one partition before it is written within
	// one ApplyBatch: beyond it another write costs nothing in comparison.
	pendingBytesMax = 4 << 20
	// spareBuffersMax gather buffers are kept for the next ApplyBatch, each of
	// spareBytesMax at most, so that an idle set gives its memory back.
	spareBuffersMax = 32
	spareBytesMax   = 1 << 20
)

// AppendResult is the outcome of one item of an append entry.
type AppendResult struct {
	Base     int64 // offset of the first record; -1 with an error
	LogStart int64 // start of the partition's log; -1 when there is none
	Err      error // nil also for a recognised duplicate, whose Base is the old one
}

// StartResult is the outcome of one item of a start entry.
type StartResult struct {
	Start int64 // where the log starts now; -1 when there is none
	Err   error
}

// pending gathers accepted batches of one partition until they are written.
type pending struct {
	batches []byte // aliases the entry while there is one part, then a buffer of ours
	owned   bool
	epoch   int32
	base    int64 // offset that its first record was promised
}

// ApplyBatch applies committed entries in order. Results, one per entry: for an
// append entry []AppendResult, for a start entry []StartResult, for the others
// nil or an error; nil for what is not a command. Entries are not modified and
// not kept.
//
// The batches that one call accepts for a partition are written by one write,
// then shown to readers.
func (s *Set) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogCommand && s.Err() == nil {
			results[i] = s.applyEntry(l)
		}
	}
	s.flush()
	if err := s.Err(); err != nil {
		stopped := fmt.Errorf("%w: %w", ErrStopped, err)
		for i := range results {
			results[i] = stopped
		}
	}
	return results
}

func (s *Set) applyEntry(l *raft.Log) any {
	s.metrics.entries.Inc()
	kind, body, err := splitEntry(l.Data)
	if err != nil {
		return s.refuseEntry(err)
	}
	switch kind {
	case kindAppend:
		return s.applyAppend(body, l.Term)
	case kindCreate:
		return s.applyCreate(body)
	case kindDelete:
		return s.applyDelete(body)
	case kindConfigure:
		return s.applyConfigure(body)
	case kindStart:
		return s.applyStart(body)
	case kindSwap:
		return s.applySwap(body)
	default:
		return s.applyMove(kind, body)
	}
}

func (s *Set) refuseEntry(err error) any {
	s.metrics.entriesRefused.Inc()
	return err
}

func (s *Set) applyAppend(body []byte, term uint64) any {
	items, err := decodeAppend(body)
	if err != nil {
		return s.refuseEntry(err)
	}
	results := make([]AppendResult, items.count)
	for i := range results {
		item, err := items.next()
		if err != nil {
			panic("BUG: append entry changed while applied")
		}
		results[i] = s.appendItem(item, term)
	}
	return results
}

func (s *Set) appendItem(item Append, term uint64) AppendResult {
	p := s.partitions[item.Key]
	if p == nil {
		s.metrics.refused(ErrUnknownPartition)
		return AppendResult{Base: -1, LogStart: -1, Err: ErrUnknownPartition}
	}
	if p.frozen.Load() != 0 {
		s.metrics.refused(ErrFrozen)
		return AppendResult{Base: -1, LogStart: p.log.Start(), Err: ErrFrozen}
	}
	base, err := s.admit(p, item.Batches, leaderEpoch(p.epochBase.Load(), term))
	if err != nil {
		s.metrics.refused(err)
		base = -1
	}
	return AppendResult{Base: base, LogStart: p.log.Start(), Err: err}
}

// admit decides on the batches of one item and gathers those that are to be
// written. It returns the offset of the first record, also where it was stored
// before. With an error nothing has changed.
func (s *Set) admit(p *Partition, batches []byte, epoch int32) (base int64, err error) {
	p.state.Lock()
	defer p.state.Unlock()
	d := &s.decision
	d.begin(p)
	if err := d.decide(batches); err != nil {
		d.undo()
		return -1, err
	}
	s.metrics.duplicates.Add(d.duplicates)
	for _, run := range d.accepted {
		s.gather(p, run, epoch)
	}
	if len(d.accepted) > 0 {
		s.metrics.producersEvicted.Add(d.commit(epoch))
	}
	return d.base, nil
}

// gather adds a run of accepted batches to what will be written.
func (s *Set) gather(p *Partition, run acceptedRun, epoch int32) {
	w := &p.pending
	if len(w.batches) > 0 && (w.epoch != epoch || len(w.batches)+len(run.batches) > pendingBytesMax) {
		s.write(p)
	}
	switch {
	case len(w.batches) == 0:
		*w = pending{batches: run.batches, epoch: epoch, base: run.base}
	case !w.owned:
		w.batches = append(append(s.buffer(), w.batches...), run.batches...)
		w.owned = true
	default:
		w.batches = append(w.batches, run.batches...)
	}
	s.touch(p)
}

// buffer returns a spare gather buffer.
func (s *Set) buffer() []byte {
	n := len(s.spare)
	if n == 0 {
		return nil
	}
	buf := s.spare[n-1]
	s.spare = s.spare[:n-1]
	return buf[:0]
}

// write appends what was gathered for one partition to its log.
func (s *Set) write(p *Partition) {
	w := p.pending
	p.pending = pending{}
	if len(w.batches) == 0 || s.Err() != nil {
		return
	}
	add := p.log.Append // the batches are Raft's
	if w.owned {
		add = p.log.AppendInPlace
	}
	base, err := add(w.batches, w.epoch)
	if err != nil {
		s.fail(fmt.Errorf("append to %s-%d: %w", p.name, p.key.Index, err))
		return
	}
	if base != w.base {
		panic(fmt.Sprintf("BUG: %s-%d: batches were promised offset %d and got %d", p.name, p.key.Index, w.base, base))
	}
	p.version++
	s.metrics.writes.Inc()
	s.metrics.bytes.Add(len(w.batches))
	if w.owned && cap(w.batches) <= spareBytesMax && len(s.spare) < spareBuffersMax {
		s.spare = append(s.spare, w.batches)
	}
}

// flush writes what was gathered and shows it to readers.
func (s *Set) flush() {
	for _, p := range s.touched {
		s.write(p)
	}
	for _, p := range s.touched {
		p.touched = false
		if s.Err() == nil && !p.Removed() {
			p.publish()
		}
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

// readInfo takes from a batch what deciding on it needs.
func readInfo(b record.Batch, base int64) (batchInfo, error) {
	if b.Magic() != 2 || b.LastOffsetDelta() < 0 {
		return batchInfo{}, fmt.Errorf("%w: magic %d, last offset delta %d", ErrInvalidBatch, b.Magic(), b.LastOffsetDelta())
	}
	info := batchInfo{
		producer: b.ProducerID(), epoch: b.ProducerEpoch(), sequence: b.BaseSequence(),
		delta: b.LastOffsetDelta(), base: base, timestamp: b.MaxTimestamp(),
		transactional: b.IsTransactional(), control: b.IsControl(),
	}
	if info.transactional && info.producer < 0 {
		return batchInfo{}, fmt.Errorf("%w: transactional without a producer", ErrInvalidBatch)
	}
	if info.control && info.producer >= 0 {
		info.marker, info.abort = readMarker(b)
	}
	return info, nil
}

// readMarker reads the type of a control record: version int16, type int16 with
// 0 for abort and 1 for commit (KIP-98).
func readMarker(b record.Batch) (marker, abort bool) {
	_ = b.Each(func(r record.Record) error {
		if len(r.Key) >= 4 && !marker {
			kind := binary.BigEndian.Uint16(r.Key[2:])
			marker, abort = kind <= 1, kind == 0
		}
		return nil
	})
	return marker, abort
}
