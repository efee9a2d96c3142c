package record

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// shown is a record as a reader sees it.
type shown struct {
	offset, time int64
	key, value   string
	tombstone    bool
	headers      string
}

func show(t tbLike, b Batch) (list []shown) {
	err := b.Each(func(r Record) error {
		list = append(list, shown{
			b.BaseOffset() + int64(r.OffsetDelta), b.Timestamp(r), string(r.Key), string(r.Value), r.Value == nil, fmt.Sprintf("%q", r.Headers),
		})
		return nil
	})
	if err != nil {
		t.Fatalf("read batch: %v", err)
	}
	return list
}

type tbLike interface{ Fatalf(string, ...any) }

// TestFilter drops records at random, twice, and what is left must look as it did.
func TestFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		builder := NewBuilder(BuilderOptions{Codec: Codec(rapid.IntRange(0, 4).Draw(t, "codec")), LogAppend: rapid.Bool().Draw(t, "log append"), LeaderEpoch: 9})
		builder.SetProducer(77, 3, 1000)
		for i := range rapid.IntRange(1, 20).Draw(t, "records") {
			var value []byte
			if rapid.IntRange(0, 3).Draw(t, "tombstone") > 0 {
				value = []byte(fmt.Sprint("value ", i))
			}
			builder.Add(rapid.Int64Range(0, 1<<40).Draw(t, "time"), []byte(fmt.Sprint("key", i)), value, []Header{{Key: "h", Value: []byte{byte(i)}}})
		}
		b := builder.Build(nil)
		b.SetBaseOffset(1234)
		for range 2 {
			horizon := rapid.SampledFrom([]int64{NoHorizon, 5, 1 << 41}).Draw(t, "horizon")
			b = filterOnce(t, b, horizon)
			if b == nil {
				return
			}
		}
	})
}

func filterOnce(t *rapid.T, b Batch, horizon int64) Batch {
	before := bytes.Clone(b)
	var want []shown
	all := show(t, b)
	drop := rapid.SliceOfN(rapid.IntRange(0, 2), len(all), len(all)).Draw(t, "drop")
	i, tombstones := 0, false
	f, err := b.Filter(nil, horizon, func(Record) bool {
		keep := drop[i] > 0
		if keep {
			want = append(want, all[i])
			tombstones = tombstones || all[i].tombstone
		}
		i++
		return keep
	})
	switch {
	case err != nil:
		t.Fatalf("filter: %v", err)
	case !bytes.Equal(before, b):
		t.Fatalf("the batch was changed")
	case f.Kept != len(want) || f.Lost != len(all)-len(want) || (f.Batch == nil) != (len(want) == 0):
		t.Fatalf("%d kept, %d lost of %d; %d are right", f.Kept, f.Lost, len(all), len(want))
	case f.Batch == nil:
		checkEmptied(t, b)
		return nil
	}
	out := Batch(f.Batch)
	if got := show(t, out); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("left\n%v\nnot\n%v", got, want)
	}
	_, had := b.DeleteHorizon()
	ms, has := out.DeleteHorizon()
	if wantHorizon := had || tombstones && horizon != NoHorizon; has != wantHorizon || has && !had && ms != horizon {
		t.Fatalf("horizon %d, %t; had one: %t", ms, has, had)
	}
	checkSame(t, b, out)
	return out
}

// checkSame compares what a filtered batch keeps of its header.
func checkSame(t tbLike, b, out Batch) {
	if err := out.CheckCRC(); err != nil {
		t.Fatalf("%v", err)
	}
	if n, err := Size(out); err != nil || n != int64(len(out)) {
		t.Fatalf("size %d of %d: %v", n, len(out), err)
	}
	if out.BaseOffset() != b.BaseOffset() || out.LastOffset() != b.LastOffset() || out.LeaderEpoch() != b.LeaderEpoch() || out.ProducerID() != b.ProducerID() ||
		out.ProducerEpoch() != b.ProducerEpoch() || out.BaseSequence() != b.BaseSequence() || out.LastSequence() != b.LastSequence() || out.TimestampType() != b.TimestampType() {
		t.Fatalf("header is %x, was %x", out[:HeaderBytes], b[:HeaderBytes])
	}
}

func checkEmptied(t tbLike, b Batch) {
	out := Batch(b.Emptied(nil))
	checkSame(t, b, out)
	if got := show(t, out); len(got) != 0 || out.Count() != 0 {
		t.Fatalf("an emptied batch holds %v", got)
	}
}
