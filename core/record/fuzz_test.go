package record

import (
	"errors"
	"testing"
)

func fuzzSeeds(f *testing.F) {
	for _, c := range codecs {
		f.Add([]byte(sample(c, "a", "bcd", "")))
	}
	f.Add(oldSet(0, 5, 2))
	f.Add(oldSet(1, 5, 2))
	for _, c := range codecs[1:4] {
		inner, err := compress(nil, c, 0, oldSet(1, 5, 3))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(oldMessage(1, int8(c), 2, 9, nil, inner))
	}
	f.Add(make([]byte, 100))
}

// FuzzBatch: whatever the bytes, the functions return one of the package's
// errors, and what Validate passes, Each reads completely, or says why not.
func FuzzBatch(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		b, rest, err := Next(p)
		if err != nil {
			if !errors.Is(err, ErrShort) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrInvalid) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if len(b)+len(rest) != len(p) || len(b) < HeaderBytes {
			t.Fatalf("%d and %d of %d bytes", len(b), len(rest), len(p))
		}
		b.Seal() // so that the fuzzer gets past the CRC
		valid := b.Validate()
		n := int32(0)
		err = b.Each(func(r Record) error {
			n++
			_ = b.Timestamp(r)
			return nil
		})
		if valid == nil && b.Codec() == None && err != nil {
			t.Fatalf("valid, but: %v", err)
		}
		if err == nil && n != max(b.Count(), 0) {
			t.Fatalf("%d records of %d", n, b.Count())
		}
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error of no kind: %v", err)
		}
	})
}

// FuzzMessageSet: a set is refused with one of the package's errors, or makes
// a valid batch.
func FuzzMessageSet(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= messageBytesMin {
			sealOld(p) // so that the fuzzer gets past the CRC
		}
		b, err := FromMessageSet(p)
		if err == nil {
			err = b.Validate()
			if err != nil {
				t.Fatalf("made an invalid batch: %v", err)
			}
			return
		}
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrInvalid) {
			t.Fatalf("error of no kind: %v", err)
		}
	})
}
