package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// full is a record with its absolute values, detached from its batch.
type full struct {
	Offset, Timestamp int64
	Key, Value        []byte
	Headers           []Header
}

func collect(t testing.TB, b Batch) (out []full) {
	t.Helper()
	err := b.Each(func(r Record) error {
		f := full{Offset: b.BaseOffset() + int64(r.OffsetDelta), Timestamp: b.Timestamp(r), Key: clone(r.Key), Value: clone(r.Value)}
		for _, h := range r.Headers {
			f.Headers = append(f.Headers, Header{Key: h.Key, Value: clone(h.Value)})
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func clone(p []byte) []byte {
	if p == nil {
		return nil
	}
	return append([]byte{}, p...)
}

// TestGoldenBatch spells out the bytes of a batch, field by field as the
// protocol guide has them.
func TestGoldenBatch(t *testing.T) {
	b := NewBuilder(BuilderOptions{ProducerID: 0x1122, ProducerEpoch: 3, BaseSequence: 9, LeaderEpoch: 5})
	b.Add(1000, []byte("k"), []byte("v"), []Header{{Key: "h", Value: []byte("x")}})
	b.Add(1005, nil, []byte{}, []Header{{Key: "", Value: nil}})
	batch := b.Build(nil)
	batch.SetBaseOffset(0x0102)
	golden := strings.Join([]string{
		"0000000000000102", // base offset
		"00000047",         // length: 49 + 13 + 9
		"00000005",         // leader epoch
		"02",               // magic
		"bf8ed430",         // CRC32C of what follows
		"0000",             // attributes
		"00000001",         // last offset delta
		"00000000000003e8", // first timestamp
		"00000000000003ed", // max timestamp
		"0000000000001122", // producer id
		"0003",             // producer epoch
		"00000009",         // base sequence
		"00000002",         // count
		"18",               // record of 12 bytes
		"00", "00", "00",   // attributes, timestamp delta, offset delta
		"02" + "6b", "02" + "76", // key, value
		"02", "02" + "68", "02" + "78", // one header
		"10",             // record of 8 bytes
		"00", "0a", "02", // attributes, timestamp delta 5, offset delta 1
		"01", "00", // null key, empty value
		"02", "00", "01", // one header: empty key, null value
	}, "")
	if got := hex.EncodeToString(batch); got != golden {
		t.Fatalf("batch\n%s\nwant\n%s", got, golden)
	}
	if err := batch.Validate(); err != nil {
		t.Fatal(err)
	}
}

// TestHeaderAsOthersRead compares every getter with franz-go's reading.
func TestHeaderAsOthersRead(t *testing.T) {
	b := NewBuilder(BuilderOptions{Codec: Zstd, ProducerID: math.MaxInt64, ProducerEpoch: math.MaxInt16, BaseSequence: math.MaxInt32, Transactional: true, LeaderEpoch: math.MaxInt32})
	b.Add(math.MaxInt32, []byte("a"), nil, nil)
	b.Add(5, nil, []byte("b"), nil)
	batch := b.Build([]byte("prefix"))
	batch.SetBaseOffset(math.MaxInt64 - 7)
	var r kmsg.RecordBatch
	if err := r.ReadFrom(batch); err != nil {
		t.Fatal(err)
	}
	got := []any{batch.BaseOffset(), batch.LeaderEpoch(), batch.Magic(), batch.CRC(), batch.Attributes(), batch.LastOffsetDelta(), batch.FirstTimestamp(), batch.MaxTimestamp(), batch.ProducerID(), batch.ProducerEpoch(), batch.BaseSequence(), batch.Count(), len(batch)}
	want := []any{r.FirstOffset, r.PartitionLeaderEpoch, r.Magic, uint32(r.CRC), r.Attributes, r.LastOffsetDelta, r.FirstTimestamp, r.MaxTimestamp, r.ProducerID, r.ProducerEpoch, r.FirstSequence, r.NumRecords, int(r.Length) + LogOverheadBytes}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if batch.Codec() != Zstd || !batch.IsTransactional() || batch.IsControl() || batch.TimestampType() != CreateTime {
		t.Fatalf("attributes %04x", batch.Attributes())
	}
	if got := batch.LastSequence(); got != 0 { // the sequence wraps after 2^31-1
		t.Fatalf("last sequence %d, want 0", got)
	}
}

func TestZeroProducerIDIsNone(t *testing.T) {
	b := NewBuilder(BuilderOptions{})
	b.Add(1, nil, nil, nil)
	batch := b.Build(nil)
	if batch.ProducerID() != NoProducer || batch.ProducerEpoch() != -1 || batch.BaseSequence() != NoSequence || batch.LastSequence() != NoSequence {
		t.Fatal(batch.ProducerID(), batch.ProducerEpoch(), batch.BaseSequence())
	}
	b.SetProducer(0, 0, 0)
	if batch = b.Build(nil); batch.ProducerID() != 0 || batch.ProducerEpoch() != 0 || batch.BaseSequence() != 0 {
		t.Fatal("producer id 0 was not taken literally")
	}
}

func genBytes(t *rapid.T, name string) []byte {
	if rapid.IntRange(0, 9).Draw(t, name+" null") == 0 {
		return nil
	}
	p := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, name)
	if rapid.Bool().Draw(t, name+" long") {
		p = bytes.Repeat(p, rapid.IntRange(1, 200).Draw(t, name+" times"))
	}
	return append([]byte{}, p...)
}

// TestRoundTrip: what Builder is given, Each returns, through every codec and
// from every codec to every other.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		codec := Codec(rapid.IntRange(0, 4).Draw(t, "codec"))
		level := rapid.IntRange(0, 12).Draw(t, "level")
		logAppend := rapid.Bool().Draw(t, "log append")
		b := NewBuilder(BuilderOptions{Codec: codec, Level: level, LogAppend: logAppend})
		var want []full
		for i := range rapid.IntRange(1, 20).Draw(t, "count") {
			f := full{Offset: int64(i), Timestamp: rapid.Int64Range(0, 1<<45).Draw(t, "ts"), Key: genBytes(t, "key"), Value: genBytes(t, "value")}
			for range rapid.IntRange(0, 3).Draw(t, "headers") {
				f.Headers = append(f.Headers, Header{Key: rapid.String().Draw(t, "header"), Value: genBytes(t, "header value")})
			}
			b.Add(f.Timestamp, f.Key, f.Value, f.Headers)
			want = append(want, f)
		}
		batch := b.Build(nil)
		if logAppend {
			for i := range want {
				want[i].Timestamp = batch.MaxTimestamp()
			}
		}
		if err := batch.Validate(); err != nil {
			t.Fatal(err)
		}
		if codec == None && len(batch) != b.Bytes() {
			t.Fatalf("%d bytes, Bytes said %d", len(batch), b.Bytes())
		}
		check := func(batch Batch) {
			var got []full
			err := batch.Each(func(r Record) error {
				f := full{Offset: int64(r.OffsetDelta), Timestamp: batch.Timestamp(r), Key: clone(r.Key), Value: clone(r.Value)}
				for _, h := range r.Headers {
					f.Headers = append(f.Headers, Header{Key: h.Key, Value: clone(h.Value)})
				}
				got = append(got, f)
				return nil
			})
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Fatal(err, diff)
			}
		}
		check(batch)
		again, err := Recompress(batch, Codec(rapid.IntRange(0, 4).Draw(t, "again")), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Validate(); err != nil {
			t.Fatal(err)
		}
		check(again)
		back, err := Recompress(again, None, 0)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := Recompress(batch, None, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back, plain) {
			t.Fatal("recompressing there and back changed the batch")
		}
	})
}

func sample(codec Codec, values ...string) Batch {
	b := NewBuilder(BuilderOptions{Codec: codec, ProducerID: 7, ProducerEpoch: 1, BaseSequence: 3})
	for i, v := range values {
		b.Add(int64(100+i), []byte{byte(i)}, []byte(v), []Header{{Key: "h", Value: []byte(v)}})
	}
	return b.Build(nil)
}

func TestNextAtEveryCut(t *testing.T) {
	one, two := sample(None, "a", "b"), sample(Gzip, "c")
	set := append(append([]byte{}, one...), two...)
	for cut := range set {
		b, rest, err := Next(set[:cut])
		switch {
		case cut < len(one):
			if !errors.Is(err, ErrShort) {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		case err != nil || !bytes.Equal(b, one) || len(rest) != cut-len(one):
			t.Fatalf("cut at %d: %v, %d left", cut, err, len(rest))
		}
	}
	if cap(Batch(set[:len(one):len(one)])) != len(one) {
		t.Fatal("test is wrong")
	}
	b, _, _ := Next(set)
	if cap(b) != len(one) {
		t.Fatal("appending to a batch would overwrite the next")
	}
}

// TestEveryByteIsCovered: a flipped bit anywhere behind the leader epoch is
// found, and the fields before it may change without harm.
func TestEveryByteIsCovered(t *testing.T) {
	batch := sample(None, "value", "other")
	for i := range batch {
		for bit := range 8 {
			damaged := Batch(bytes.Clone(batch))
			damaged[i] ^= 1 << bit
			err := damaged.Validate()
			outside := i < offLength || i >= offEpoch && i < offMagic
			if outside != (err == nil) {
				t.Fatalf("byte %d bit %d: %v", i, bit, err)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrShort) {
				t.Fatalf("byte %d bit %d: error of no kind: %v", i, bit, err)
			}
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	edit := func(fn func(b Batch)) Batch {
		b := Batch(bytes.Clone(sample(None, "a", "b")))
		fn(b)
		b.Seal()
		return b
	}
	for name, tc := range map[string]struct {
		b    Batch
		want error
	}{
		"codec":             {edit(func(b Batch) { b[offAttributes+1] |= 5 }), ErrCodec},
		"count zero":        {edit(func(b Batch) { b[offCount+3] = 0 }), ErrInvalid},
		"count negative":    {edit(func(b Batch) { b[offCount] = 0x80 }), ErrInvalid},
		"count too high":    {edit(func(b Batch) { b[offCount+3], b[offLastDelta+3] = 3, 2 }), ErrInvalid},
		"count too low":     {edit(func(b Batch) { b[offCount+3], b[offLastDelta+3] = 1, 0 }), ErrInvalid},
		"delta":             {edit(func(b Batch) { b[offLastDelta+3] = 9 }), ErrInvalid},
		"sequence":          {edit(func(b Batch) { b.SetProducer(5, 0, -1) }), ErrInvalid},
		"magic":             {edit(func(b Batch) { b[offMagic] = 1 }), ErrMagic},
		"record length":     {edit(func(b Batch) { b[HeaderBytes] = 0x7f }), ErrInvalid},
		"record offset":     {edit(func(b Batch) { b[HeaderBytes+3] = 4 }), ErrInvalid},
		"key length":        {edit(func(b Batch) { b[HeaderBytes+4] = 0x7f }), ErrInvalid},
		"key length -2":     {edit(func(b Batch) { b[HeaderBytes+4] = 0x03 }), ErrInvalid},
		"header count":      {edit(func(b Batch) { b[HeaderBytes+8] = 0x7e }), ErrInvalid},
		"negative headers":  {edit(func(b Batch) { b[HeaderBytes+8] = 0x01 }), ErrInvalid},
		"null header key":   {edit(func(b Batch) { b[HeaderBytes+9] = 0x01 }), ErrInvalid},
		"length in header":  {append(bytes.Clone(sample(None, "a")), 0), ErrCorrupt},
		"unfinished varint": {edit(func(b Batch) { copy(b[len(b)-12:], bytes.Repeat([]byte{0xff}, 12)) }), ErrInvalid},
	} {
		if err := tc.b.Validate(); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

func TestViewDoesNotAllocate(t *testing.T) {
	batch := sample(None, "a", "b", "c")
	n := testing.AllocsPerRun(100, func() {
		b, _, err := Next(batch)
		if err != nil || b.Validate() != nil || b.NextOffset() != 3 {
			t.Error("not valid")
		}
		b.SetBaseOffset(0)
		b.SetLeaderEpoch(1)
	})
	if n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestBuilderDoesNotAllocateInSteadyState(t *testing.T) {
	b := NewBuilder(BuilderOptions{})
	dst := make([]byte, 0, 4096)
	key, value, headers := []byte("key"), make([]byte, 100), []Header{{Key: "h", Value: []byte("v")}}
	n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for i := range 10 {
			b.Add(int64(i), key, value, headers)
		}
		b.Build(dst)
	})
	if n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestSetLogAppendTime(t *testing.T) {
	batch := sample(LZ4, "a", "b")
	batch.SetLogAppendTime(777)
	if err := batch.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, r := range collect(t, batch) {
		if r.Timestamp != 777 {
			t.Fatalf("timestamp %d", r.Timestamp)
		}
	}
}

func TestEachStopsAtTheCallersError(t *testing.T) {
	stop := errors.New("stop")
	calls := 0
	err := sample(Zstd, "a", "b").Each(func(Record) error { calls++; return stop })
	if err != stop || calls != 1 { //nolint:errorlint // it must be the same, not wrapped
		t.Fatal(err, calls)
	}
}
