package history

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// good is a log of two partitions with two writers, as it should be: number 7 of "b" was sent and not acknowledged.
func good() ([]Write, []Read) {
	var writes []Write
	var reads []Read
	offsets := map[int32]int64{0: 5, 1: 0}
	for n := range int64(8) {
		for _, writer := range []string{"a", "b"} {
			p := int32(n % 2)
			place := Place{p, offsets[p]}
			offsets[p]++
			w := Write{Writer: writer, Number: n, Acked: true, Place: &place}
			if writer == "b" && n == 7 {
				w.Acked, w.Place = false, nil
			}
			writes = append(writes, w)
			reads = append(reads, Read{place, writer, n})
		}
	}
	return writes, reads
}

func check(t *testing.T, name string, writes []Write, reads []Read, want map[Kind]int64) {
	t.Helper()
	v := Check(writes, reads, Options{Contiguous: true})
	if len(v.Counts) != len(want) {
		t.Errorf("%s: found %v, want %v (%v)", name, v.Counts, want, v.Violations)
	}
	for k, n := range want {
		if v.Counts[k] != n {
			t.Errorf("%s: %d times %s, want %d (%v)", name, v.Counts[k], k, n, v.Violations)
		}
	}
}

func TestGoodLogs(t *testing.T) {
	w, r := good()
	check(t, "as it should be", w, r, nil)
	check(t, "the unacknowledged one is missing", w, r[:len(r)-1], nil)
	check(t, "nothing written, nothing read", nil, nil, nil)
	if v := Check(w, r, Options{Contiguous: true}); v.Sent != 16 || v.Acked != 15 || v.Found != 16 || v.Unknown != 1 {
		t.Errorf("verdict = %+v", v)
	}
}

func TestRemoved(t *testing.T) {
	w, r := good()
	check(t, "removed, offsets show it", w, slices.Delete(slices.Clone(r), 6, 7), map[Kind]int64{Lost: 1, Gap: 1})
	r = slices.Delete(slices.Clone(r), 14, 15) // the last acknowledged one of partition 1, the unknown follows
	check(t, "removed before the last", w, r, map[Kind]int64{Lost: 1, Gap: 1})
	_, r = good()
	check(t, "all removed", w, r[:0], map[Kind]int64{Lost: 15})
}

func TestDoubled(t *testing.T) {
	w, r := good()
	last := r[12] // partition 0, writer a, number 6
	again := last
	again.Offset = 13
	r = append(r, again)
	check(t, "doubled at the end", w, r, map[Kind]int64{Doubled: 1})
	w, r = good()
	check(t, "the same offset read twice", w, append(slices.Clone(r), r[15]), map[Kind]int64{Gap: 1, Doubled: 1})
	for i := range w {
		if w[i].Writer == "a" && w[i].Number == 6 {
			w[i].Resent = true
		}
	}
	_, r = good()
	check(t, "doubled by its writer", w, append(r, again), nil)
}

func TestSwapped(t *testing.T) {
	w, r := good()
	r[0].Number, r[4].Number = r[4].Number, r[0].Number // numbers 0 and 2 of writer a in partition 0
	check(t, "swapped", w, r, map[Kind]int64{Reordered: 1, Moved: 2})
	w, r = good()
	for i := range w {
		w[i].Place = nil
	}
	r[0].Number, r[4].Number = r[4].Number, r[0].Number
	check(t, "swapped, acknowledgements without offsets", w, r, map[Kind]int64{Reordered: 1})
}

func TestInvented(t *testing.T) {
	w, r := good()
	r = append(r, Read{Place{1, 8}, "c", 1})
	check(t, "an unknown writer", w, r, map[Kind]int64{Invented: 1})
}

// Any single removal, doubling or swap of acknowledged records of one writer must be noticed, wherever it is.
func TestEveryTamperingIsNoticed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, r := good()
		i := rapid.IntRange(0, len(r)-2).Draw(t, "record") // not the unacknowledged one
		switch rapid.SampledFrom([]string{"remove", "double", "swap"}).Draw(t, "tamper") {
		case "remove":
			r = slices.Delete(r, i, i+1)
		case "double":
			again := r[i]
			again.Offset = 100
			r = append(r, again)
		case "swap":
			j := rapid.SampledFrom(others(r, i)).Draw(t, "with")
			r[i].Number, r[j].Number = r[j].Number, r[i].Number
		}
		if Check(w, r, Options{}).OK() {
			t.Fatalf("not noticed")
		}
	})
}

// others are the records of the same writer and partition as r[i].
func others(r []Read, i int) (out []int) {
	for j := range r {
		if j != i && r[j].Writer == r[i].Writer && r[j].Partition == r[i].Partition {
			out = append(out, j)
		}
	}
	return out
}
