package partition

import (
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestSequenceArithmetic(t *testing.T) {
	for _, c := range []struct {
		seq  int32
		n    int64
		want int32
	}{{0, 1, 1}, {math.MaxInt32, 1, 0}, {math.MaxInt32 - 1, 3, 1}, {5, 0, 5}} {
		if got := sequenceAdd(c.seq, c.n); got != c.want {
			t.Errorf("%d + %d = %d, want %d", c.seq, c.n, got, c.want)
		}
		if back := sequenceBack(c.want, c.seq); back != c.n {
			t.Errorf("%d lies %d before %d, want %d", c.seq, back, c.want, c.n)
		}
	}
}

// TestProducerAgainstModel sends batches of one producer and compares every
// verdict with a model that remembers all that was ever stored.
func TestProducerAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := producer{lastSeq: noSequence}
		first := rapid.SampledFrom([]int32{0, 1, 100, math.MaxInt32 - 5}).Draw(t, "first")
		m := producerModel{next: first}
		for range rapid.IntRange(1, 40).Draw(t, "batches") {
			b := m.draw(t)
			next := p
			v := next.check(&b, m.known)
			m.expect(t, &b, v)
			if v.err == nil && !v.duplicate {
				p = next
			}
		}
	})
}

// producerModel remembers all batches of the producer's epoch.
type producerModel struct {
	known  bool
	epoch  int16
	next   int32
	stored []batchRef
	offset int64
}

func (m *producerModel) draw(t *rapid.T) batchInfo {
	b := batchInfo{producer: 1, epoch: m.epoch, sequence: m.next, delta: int32(rapid.IntRange(0, 3).Draw(t, "delta")), base: m.offset}
	switch rapid.SampledFrom([]string{"next", "next", "next", "again", "near", "newer", "older"}).Draw(t, "kind") {
	case "again":
		if len(m.stored) > 0 {
			ref := rapid.SampledFrom(m.stored).Draw(t, "ref")
			b.sequence, b.delta = ref.sequence, ref.delta
		}
	case "near":
		b.sequence = sequenceAdd(m.next, sequenceSpace+int64(rapid.IntRange(-20, 5).Draw(t, "near")))
	case "newer":
		b.epoch++
		b.sequence = int32(rapid.IntRange(0, 1).Draw(t, "sequence"))
	case "older":
		b.epoch--
	}
	return b
}

func (m *producerModel) expect(t *rapid.T, b *batchInfo, v verdict) {
	switch {
	case !m.known, b.epoch > m.epoch && b.sequence == 0, b.epoch == m.epoch && b.sequence == m.next:
		if v.err != nil || v.duplicate {
			t.Fatalf("refused %+v: %+v", *b, v)
		}
		m.store(b)
	case b.epoch < m.epoch:
		wantErr(t, v, ErrInvalidProducerEpoch)
	case b.epoch > m.epoch:
		wantErr(t, v, ErrOutOfOrderSequence)
	default:
		m.expectPast(t, b, v)
	}
}

// expectPast: not what comes next, so it is a duplicate or a gap.
func (m *producerModel) expectPast(t *rapid.T, b *batchInfo, v verdict) {
	recent := m.stored[max(0, len(m.stored)-rememberedBatches):]
	for _, ref := range recent {
		if ref.sequence == b.sequence && ref.delta == b.delta {
			if !v.duplicate || v.base != ref.base || v.err != nil {
				t.Fatalf("duplicate of %+v not recognised: %+v", ref, v)
			}
			return
		}
	}
	if m.wasStored(b, len(m.stored)-len(recent)) {
		wantErr(t, v, ErrDuplicateSequence)
		return
	}
	wantErr(t, v, ErrOutOfOrderSequence)
}

// wasStored tells whether all sequences of b lie in the first n stored batches.
func (m *producerModel) wasStored(b *batchInfo, n int) bool {
	have := make(map[int32]bool)
	for _, ref := range m.stored[:n] {
		for i := range ref.delta + 1 {
			have[sequenceAdd(ref.sequence, int64(i))] = true
		}
	}
	for i := range b.delta + 1 {
		if !have[sequenceAdd(b.sequence, int64(i))] {
			return false
		}
	}
	return true
}

func (m *producerModel) store(b *batchInfo) {
	if b.epoch != m.epoch || !m.known {
		m.stored = nil
	}
	m.known, m.epoch = true, b.epoch
	m.stored = append(m.stored, batchRef{sequence: b.sequence, delta: b.delta, base: b.base})
	m.next = sequenceAdd(b.sequence, int64(b.delta)+1)
	m.offset += int64(b.delta) + 1
}

func wantErr(t *rapid.T, v verdict, want error) {
	t.Helper()
	if !errors.Is(v.err, want) {
		t.Fatalf("verdict %+v, want %v", v, want)
	}
}

func TestProducersForgetTheOldest(t *testing.T) {
	var table producers
	for id := range int64(MaxProducers) {
		if evicted := table.put(producer{id: id}); evicted != 0 {
			t.Fatalf("producer %d evicted %d", id, evicted)
		}
	}
	table.put(producer{id: 0, lastOffset: 1}) // now the newest
	if evicted := table.put(producer{id: MaxProducers}); evicted != 1 {
		t.Fatalf("evicted %d, want 1", evicted)
	}
	if _, known := table.get(0); !known {
		t.Error("producer 0 was used again and is forgotten")
	}
	if _, known := table.get(1); known || table.len() != MaxProducers {
		t.Errorf("producer 1 known: %v, %d producers", known, table.len())
	}
	if p, known := table.get(1); known || p.lastSeq != noSequence {
		t.Errorf("fresh producer %+v", p)
	}
}

func TestEpochTable(t *testing.T) {
	var e epochs
	if found, end := e.end(4, 9); found != 4 || end != 9 {
		t.Errorf("empty table: epoch %d ends at %d", found, end)
	}
	e.assign(2, 0)
	e.assign(2, 5)
	e.assign(5, 10)
	e.assign(4, 15) // never happens: terms rise
	e.assign(7, 20)
	cases := []struct {
		asked, found int32
		end          int64
	}{{1, 1, 0}, {2, 2, 10}, {4, 2, 10}, {5, 5, 20}, {6, 5, 20}, {7, 7, 30}, {8, 7, 30}}
	for _, c := range cases {
		if found, end := e.end(c.asked, 30); found != c.found || end != c.end {
			t.Errorf("epoch %d: found %d ends at %d, want %d and %d", c.asked, found, end, c.found, c.end)
		}
	}
	e.trim(12)
	if len(e.rows) != 2 || e.rows[0] != (epochStart{Epoch: 5, Start: 12}) {
		t.Errorf("after trim: %+v", e.rows)
	}
	for i := range int32(maxEpochs) {
		e.assign(8+i, int64(30+i))
	}
	if len(e.rows) != maxEpochs || e.rows[0].Epoch != 8 {
		t.Errorf("%d rows from epoch %d", len(e.rows), e.rows[0].Epoch)
	}
}
