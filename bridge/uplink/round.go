package uplink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"sluice/core/commitlog"
	"sluice/core/record"
)

// HeaderTo is the first header of every record in the buffer that is to be forwarded; its value names the core topic. It is not sent.
// Records without it are the gateway's own and are skipped.
const HeaderTo = "sluice.to"

// deadLetterValueMax cuts the value of a dead letter, so that what was refused for its size is not refused again.
const deadLetterValueMax = 256 << 10

// noTimestamp is what a record has that has no time (Kafka's NO_TIMESTAMP): no rule of a topic about timestamps refuses it.
const noTimestamp = -1

// partition is the loop's view of one partition of the cluster.
type partition struct {
	target
	id         [16]byte // of the topic
	leader     int32    // -1 = not known
	producerID int64
	epoch      int16
	next       int32  // sequence for the next record that is cut
	order      uint64 // of the journal's state, while the open rounds are made again: batches up to it count in next
	acked      int64  // core offset after the last batch answered
	queue      []*batch
	inFlight   bool
	tries      int
	notBefore  time.Time
	answered   time.Time
	ask        bool      // look into the log for what is there already, before anything is sent
	stateLost  bool      // the broker does not know our sequences: begin a new epoch after asking
	fenced     bool      // somebody else writes under our producer id: take a new one after asking
	gone       time.Time // since when the cluster shows fewer partitions
}

// batch is one produce batch of an open round.
type batch struct {
	plan  batchPlan
	round *round
	wire  record.Batch
	done  bool
	from  int64 // done: what the partition's acked was before
	doubt bool  // it was sent and may have arrived: the answer was lost, or the process ended
}

func (b *batch) lastSequence() int32 { return addSequence(b.plan.Sequence, b.plan.Count-1) }

type round struct {
	plan    roundPlan
	batches []*batch
	left    int
}

// addSequence adds n to a sequence; after 2^31-1 comes 0.
func addSequence(s, n int32) int32 { return int32((int64(s) + int64(n)) & 0x7fffffff) }

// span is a range of the buffer in memory.
type span struct {
	from, to int64
	batches  []record.Batch
}

// readSpan reads the batches that hold [from, end), until bytesMax is reached. Its `to` is where it ended.
func readSpan(log *commitlog.Log, from, end, bytesMax int64) (span, error) {
	s := span{from: from, to: from}
	for s.to < end && bytesMax > 0 {
		data, next, err := readChunk(log, s.to, bytesMax, end)
		if err != nil {
			return span{}, fmt.Errorf("read buffer at offset %d: %w", s.to, err)
		}
		bytesMax -= int64(len(data))
		for len(data) > 0 {
			b, rest, err := record.Next(data)
			if err != nil {
				return span{}, fmt.Errorf("read buffer at offset %d: %w", s.to, err)
			}
			s.batches = append(s.batches, b)
			data = rest
		}
		s.to = min(next, end)
	}
	return s, nil
}

func readChunk(log *commitlog.Log, from, bytesMax, end int64) ([]byte, int64, error) {
	chunk, err := log.Read(from, bytesMax, end)
	if err != nil {
		return nil, 0, err
	}
	if chunk == nil || chunk.Len() == 0 {
		return nil, 0, errors.New("nothing there, though the buffer says it is synced")
	}
	defer chunk.Release()
	data, err := chunk.Bytes()
	return data, chunk.Next(), err
}

// errStop ends a walk over a span early.
var errStop = errors.New("stop")

// each calls fn for every record that is to be forwarded, in order. The record aliases memory that is valid during fn only.
func (s span) each(fn func(offset int64, topic string, timestamp int64, r record.Record) error) error {
	for _, b := range s.batches {
		err := b.Each(func(r record.Record) error {
			offset := b.BaseOffset() + int64(r.OffsetDelta)
			if offset < s.from || offset >= s.to || len(r.Headers) == 0 || r.Headers[0].Key != HeaderTo {
				return nil
			}
			topic := string(r.Headers[0].Value)
			r.Headers = r.Headers[1:]
			return fn(offset, topic, b.FirstTimestamp()+r.TimestampDelta, r)
		})
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("decode buffer batch at offset %d: %w", b.BaseOffset(), err)
		}
	}
	return nil
}

// source is the partition a record is meant for. Of a topic that cannot exist it is partition -1.
func (p *roundPlan) source(topic string, key []byte) target {
	n := p.Partitions[topic]
	if n < 0 {
		return target{topic, -1}
	}
	return target{topic, partitionOf(key, p.From, n)}
}

// plan decides where a round that begins at s.from ends, and which batches it has. partitions tells how many a topic has: 0 = not known
// yet, which ends the round before that record; -1 = it cannot exist. The sequences are not given out here. An empty plan has To == From.
func plan(s span, id uint64, deadLetter string, partitions func(topic string) int32) (roundPlan, error) {
	p := roundPlan{ID: id, From: s.from, To: s.to, Partitions: map[string]int32{}}
	sizes, counts, order := map[target]int{}, map[target]int32{}, []target(nil)
	err := s.each(func(offset int64, topic string, _ int64, r record.Record) error {
		if _, ok := p.Partitions[topic]; !ok {
			n := partitions(topic)
			if n < 0 && partitions(deadLetter) < 1 {
				n = 0
			}
			if n == 0 {
				p.To = offset
				return errStop
			}
			p.Partitions[topic] = n
		}
		t := p.source(topic, r.Key)
		size := len(r.Key) + len(r.Value) + 64*(1+len(r.Headers))
		if counts[t] > 0 && sizes[t]+size > batchBytesMax {
			p.To = offset
			return errStop
		}
		if counts[t] == 0 {
			order = append(order, t)
		}
		sizes[t] += size
		counts[t]++
		return nil
	})
	for _, t := range order {
		b := batchPlan{Target: t, Count: counts[t]}
		if t.Partition < 0 {
			b = batchPlan{Source: &t, Count: counts[t], Reason: "the topic cannot be created"}
			b.Target = deadLetterOf(deadLetter, partitions(deadLetter), t)
		}
		p.Batches = append(p.Batches, b)
	}
	return p, err
}

// deadLetterOf is the partition of the dead-letter topic, which has count of them, for what was meant for source.
func deadLetterOf(topic string, count int32, source target) target {
	return target{topic, partitionOf([]byte(source.Topic), 0, count)}
}

// build makes the batches of a plan from its span: a pure function of both. The checksums in the plan are not looked at; they are
// returned beside the batches.
func build(s span, p *roundPlan, codec record.Codec) ([]record.Batch, []uint32, error) {
	builders := make([]*record.Builder, len(p.Batches))
	sums := make([]uint32, len(p.Batches))
	bySource := map[target][]int{}
	for i, b := range p.Batches {
		builders[i] = record.NewBuilder(record.BuilderOptions{Codec: codec})
		builders[i].SetProducer(b.ProducerID, b.Epoch, b.Sequence)
		source := b.Target
		if b.Source != nil {
			source = *b.Source
		}
		bySource[source] = append(bySource[source], i)
	}
	seen := map[target]int32{}
	var scratch []byte
	err := s.each(func(offset int64, topic string, timestamp int64, r record.Record) error {
		if offset >= p.To {
			return errStop
		}
		t := p.source(topic, r.Key)
		index := seen[t]
		seen[t]++
		for _, i := range bySource[t] {
			b := &p.Batches[i]
			if index < b.First || index >= b.First+b.Count {
				continue
			}
			out, at := r, timestamp
			if b.Source != nil {
				out, at = asDeadLetter(r, timestamp, b)
			}
			builders[i].Add(at, out.Key, out.Value, out.Headers)
			sums[i], scratch = checksum(sums[i], scratch, at, out)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	batches := make([]record.Batch, len(builders))
	for i, b := range builders {
		if b.Len() != int(p.Batches[i].Count) {
			return nil, nil, fmt.Errorf("%w: round %d has %d records for %s-%d, planned were %d", ErrRebuiltDiffers, p.ID, b.Len(),
				p.Batches[i].Target.Topic, p.Batches[i].Target.Partition, p.Batches[i].Count)
		}
		batches[i] = b.Build(nil)
	}
	return batches, sums, nil
}

// asDeadLetter adds where r was meant to go and why it did not, and returns the timestamp it goes with.
func asDeadLetter(r record.Record, timestamp int64, b *batchPlan) (record.Record, int64) {
	headers := append([]record.Header(nil), r.Headers...)
	headers = append(headers,
		record.Header{Key: "sluice.error", Value: []byte(b.Reason)},
		record.Header{Key: "sluice.topic", Value: []byte(b.Source.Topic)},
		record.Header{Key: "sluice.partition", Value: strconv.AppendInt(nil, int64(b.Source.Partition), 10)})
	if len(r.Value) > deadLetterValueMax {
		headers = append(headers, record.Header{Key: "sluice.value.bytes", Value: strconv.AppendInt(nil, int64(len(r.Value)), 10)})
		r.Value = r.Value[:deadLetterValueMax]
	}
	if b.NoTime {
		headers = append(headers, record.Header{Key: "sluice.timestamp", Value: strconv.AppendInt(nil, timestamp, 10)})
		timestamp = noTimestamp
	}
	r.Headers = headers
	return r, timestamp
}

// checksum extends crc by one record, fields with their lengths; scratch is reused.
func checksum(crc uint32, scratch []byte, timestamp int64, r record.Record) (uint32, []byte) {
	s := binary.AppendVarint(scratch[:0], timestamp)
	field := func(b []byte) {
		if b == nil {
			s = binary.AppendVarint(s, -1)
			return
		}
		s = binary.AppendVarint(s, int64(len(b)))
		s = append(s, b...)
	}
	field(r.Key)
	field(r.Value)
	for _, h := range r.Headers {
		s = binary.AppendVarint(s, int64(len(h.Key)))
		s = append(s, h.Key...)
		field(h.Value)
	}
	return crc32.Update(crc, castagnoli, s), s
}
