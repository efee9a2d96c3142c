package record

import (
	"encoding/binary"
	"fmt"
)

// NoHorizon stands for a delete horizon that is not there.
const NoHorizon = -1

// DeleteHorizon returns when the tombstones of the batch may go, in ms, and whether compaction has set that (KIP-534). It then
// lies where the first timestamp does, and the records' timestamps are relative to it.
func (b Batch) DeleteHorizon() (ms int64, ok bool) {
	return b.FirstTimestamp(), b.Attributes()&attrDeleteHorizon != 0
}

// Filtered is what Filter has made.
type Filtered struct {
	Batch      []byte // in scratch's array where that has room; nil when no record is left
	Kept, Lost int
	Same       bool // every record is kept and nothing else has changed: Batch is the batch itself
}

// Filter makes the batch without the records for which keep is false. Base offset, last offset, leader epoch, codec, producer, sequence, and the offsets and
// timestamps of the records that are left stay as they are, so that a log may have it in the batch's place (Kafka's compaction does the same). A
// horizon that is not NoHorizon becomes the batch's delete horizon if there are tombstones in what is left and it has none. The records that
// keep is called with are valid during the call only. Errors are those of Each.
func (b Batch) Filter(scratch []byte, horizonMs int64, keep func(Record) bool) (Filtered, error) {
	records := buffers.get()
	defer buffers.put(records)
	s, err := b.survey(keep)
	if err != nil {
		return Filtered{}, err
	}
	f := Filtered{Kept: s.kept, Lost: int(b.Count()) - s.kept}
	_, had := b.DeleteHorizon()
	set := s.tombstones && !had && horizonMs != NoHorizon
	switch {
	case s.kept == 0:
		return f, nil
	case f.Lost == 0 && !set:
		f.Same, f.Batch = true, b
		return f, nil
	}
	first := b.FirstTimestamp()
	if set {
		first = horizonMs
	} else if !had {
		first = s.first
	}
	out, err := b.encodeKept((*records)[:0], s, first)
	if err != nil {
		return Filtered{}, err
	}
	*records = out
	f.Batch, err = b.rebuild(scratch[:0], out, s, first, set)
	return f, err
}

// filterSurvey is what one look at a batch's records says of those that are kept.
type filterSurvey struct {
	keeps      []bool
	kept       int
	tombstones bool
	first, max int64 // timestamps
}

func (b Batch) survey(keep func(Record) bool) (s filterSurvey, err error) {
	s.keeps = make([]bool, 0, b.Count())
	err = b.Each(func(r Record) error {
		ok := keep(r)
		s.keeps = append(s.keeps, ok)
		if !ok {
			return nil
		}
		ts := b.FirstTimestamp() + r.TimestampDelta
		if s.kept == 0 {
			s.first, s.max = ts, ts
		}
		s.max = max(s.max, ts)
		s.kept++
		s.tombstones = s.tombstones || r.Value == nil && !b.IsControl()
		return nil
	})
	return s, err
}

// encodeKept appends the records that are kept, their timestamps relative to first.
func (b Batch) encodeKept(dst []byte, s filterSurvey, first int64) ([]byte, error) {
	i := 0
	err := b.Each(func(r Record) error {
		if i++; s.keeps[i-1] {
			r.TimestampDelta += b.FirstTimestamp() - first
			dst = appendRecord(dst, r)
		}
		return nil
	})
	return dst, err
}

// rebuild puts the batch's header before other records.
func (b Batch) rebuild(dst, records []byte, s filterSurvey, first int64, horizon bool) ([]byte, error) {
	dst, err := compress(append(dst, b[:HeaderBytes]...), b.Codec(), DefaultLevel, records)
	if err != nil {
		return nil, fmt.Errorf("compress filtered batch: %w", err)
	}
	out := Batch(dst)
	if horizon {
		binary.BigEndian.PutUint16(out[offAttributes:], uint16(b.Attributes())|attrDeleteHorizon)
	}
	binary.BigEndian.PutUint64(out[offFirstTime:], uint64(first))
	if b.TimestampType() == CreateTime {
		binary.BigEndian.PutUint64(out[offMaxTime:], uint64(s.max))
	}
	out.seal(s.kept)
	return out, nil
}

// Emptied returns the batch without any record, in scratch's array where that has room: it takes up its offsets and says what its producer's last
// sequence was, as Kafka keeps a producer's last batch.
func (b Batch) Emptied(scratch []byte) []byte {
	out := Batch(append(scratch[:0], b[:HeaderBytes]...))
	binary.BigEndian.PutUint16(out[offAttributes:], uint16(b.Attributes())&^attrCodec)
	out.seal(0)
	return out
}

func (b Batch) seal(count int) {
	binary.BigEndian.PutUint32(b[offLength:], uint32(len(b)-LogOverheadBytes))
	binary.BigEndian.PutUint32(b[offCount:], uint32(count))
	b.Seal()
}
