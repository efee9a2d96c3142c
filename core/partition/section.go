package partition

import (
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/commitlog"
	"sluice/core/meta"
)

// section is one partition in a checkpoint's manifest.
type section struct {
	_         struct{} `cbor:",toarray"`
	Topic     meta.TopicID
	Index     int32
	Name      string
	EpochBase int32
	Config    LogConfig
	Log       commitlog.Manifest
	Epochs    []epochStart
	Producers []savedProducer // the oldest first
	Open      []openTxn
	Aborted   []AbortedTxn

	dirty           int64  // the 11th element, where it is above 0
	arrived, frozen uint64 // moves; they lie in the manifest's header

	captured []producer // becomes Producers when it is encoded
	encoded  []byte     // what it was decoded from, if it was
}

// savedProducer is producer as it lies in a manifest.
type savedProducer struct {
	_          struct{} `cbor:",toarray"`
	ID         int64
	Epoch      int16
	LastSeq    int32
	Run        int64
	LastOffset int64
	Timestamp  int64
	Batches    []savedBatch // the oldest first
}

type savedBatch struct {
	_        struct{} `cbor:",toarray"`
	Sequence int32
	Delta    int32
	Base     int64
}

// savedSection is an encoded section with the version of the partition that it
// shows, kept so that an unchanged partition costs the next checkpoint nothing.
type savedSection struct {
	version uint64
	bytes   []byte
}

// savedSectionMax is the largest encoded section that is kept in memory; larger
// ones are those of many producers or segments and are encoded again.
const savedSectionMax = 4 << 10

func (sec *section) key() Key { return Key{Topic: sec.Topic, Index: sec.Index} }

// capture copies a partition's state; it runs in apply's goroutine, so it
// allocates a few slices and no more. The records stay where they are.
func capture(p *Partition) *section {
	sec := &section{
		Topic: p.key.Topic, Index: p.key.Index, Name: p.name,
		EpochBase: p.epochBase.Load(), Config: p.state.config, Log: p.log.Manifest(),
		Epochs:  append([]epochStart(nil), p.state.epochs.rows...),
		Open:    append([]openTxn(nil), p.state.txns.open...),
		Aborted: append([]AbortedTxn(nil), p.state.txns.aborted...),
		dirty:   p.dirty.Load(), arrived: p.arrived, frozen: p.frozen.Load(),
		captured: make([]producer, 0, p.state.producers.len()),
	}
	for pr := p.state.producers.oldest; pr != nil; pr = pr.newer {
		sec.captured = append(sec.captured, *pr)
	}
	return sec
}

// into makes the section the state of p; the caller holds the state lock.
func (sec *section) into(p *Partition) {
	p.state.config = sec.Config
	p.state.epochs = epochs{rows: sec.Epochs}
	p.state.txns = txns{open: sec.Open, aborted: sec.Aborted}
	p.state.producers = producers{}
	for i := range sec.Producers {
		p.state.producers.put(sec.Producers[i].load())
	}
}

func (p *producer) save() savedProducer {
	s := savedProducer{
		ID: p.id, Epoch: p.epoch, LastSeq: p.lastSeq, Run: p.run,
		LastOffset: p.lastOffset, Timestamp: p.timestamp,
		Batches: make([]savedBatch, p.count),
	}
	for i := range s.Batches {
		b := p.batches[i]
		s.Batches[i] = savedBatch{Sequence: b.sequence, Delta: b.delta, Base: b.base}
	}
	return s
}

func (s *savedProducer) load() producer {
	p := producer{
		id: s.ID, epoch: s.Epoch, lastSeq: s.LastSeq, run: s.Run,
		lastOffset: s.LastOffset, timestamp: s.Timestamp, count: int8(len(s.Batches)),
	}
	for i, b := range s.Batches {
		p.batches[i] = batchRef{sequence: b.Sequence, delta: b.Delta, base: b.Base}
	}
	return p
}

func (sec *section) encode() []byte {
	sec.Producers = make([]savedProducer, len(sec.captured))
	for i := range sec.captured {
		sec.Producers[i] = sec.captured[i].save()
	}
	b, err := cbor.Marshal(sec)
	if err != nil {
		panic(fmt.Sprintf("BUG: encode section of %s-%d: %v", sec.Name, sec.Index, err))
	}
	return appendDirty(b, sec.dirty)
}

// A section is a CBOR array of 10 elements, or of 11: the last is the first dirty offset of a partition that was compacted. Others are written as they
// always were, so that older releases read them.
const (
	sectionArray   = 0x80 | 10
	compactedArray = 0x80 | 11
)

func appendDirty(b []byte, dirty int64) []byte {
	if b[0] != sectionArray {
		panic("BUG: a section has another number of elements")
	}
	if dirty == 0 {
		return b
	}
	tail, err := cbor.Marshal(dirty)
	if err != nil {
		panic(fmt.Sprintf("BUG: encode an offset: %v", err))
	}
	b[0] = compactedArray
	return append(b, tail...)
}

func (sec *section) decode(b []byte) error {
	if len(b) == 0 || b[0] != compactedArray {
		return sectionDecoding.Unmarshal(b, sec)
	}
	b = slices.Clone(b)
	b[0] = sectionArray
	rest, err := sectionDecoding.UnmarshalFirst(b, sec)
	if err != nil {
		return err
	}
	return cbor.Unmarshal(rest, &sec.dirty)
}

func decodeSection(b []byte) (*section, error) {
	sec := &section{encoded: b}
	if err := sec.decode(b); err != nil {
		return nil, fmt.Errorf("%w: decode partition: %w", ErrCorruptManifest, err)
	}
	if !ValidName(sec.Name) || sec.Index < 0 || sec.dirty < 0 {
		return nil, fmt.Errorf("%w: partition %q-%d", ErrCorruptManifest, sec.Name, sec.Index)
	}
	for i := range sec.Producers {
		if n := len(sec.Producers[i].Batches); n > rememberedBatches {
			return nil, fmt.Errorf("%w: producer with %d batches", ErrCorruptManifest, n)
		}
	}
	return sec, nil
}

// sectionDecoding allows for the segments and aborted transactions of years;
// the library's own bound is 131,072 elements.
var sectionDecoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{MaxArrayElements: 1 << 24}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("BUG: cbor options: %v", err))
	}
	return mode
}()
