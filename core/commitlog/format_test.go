package commitlog

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"sluice/core/record"
	"sluice/core/vfs"
)

var writeGolden = flag.Bool("write-golden", false, "write testdata of this version")

// goldenStory writes a log whose every byte is known.
func goldenStory(t *testing.T, fsys vfs.FS) Manifest {
	t.Helper()
	l, err := Open(fsys, "log", Config{SegmentBytes: 1500, IndexIntervalBytes: 200})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		b := record.NewBuilder(record.BuilderOptions{ProducerID: 77, ProducerEpoch: 1, BaseSequence: int32(2 * i)})
		b.Add(1_700_000_000_000+10*int64(i), fmt.Appendf(nil, "key-%d", i), fmt.Appendf(nil, "value-%d", i), nil)
		b.Add(1_700_000_000_005+10*int64(i), nil, nil, []record.Header{{Key: "h", Value: []byte("x")}})
		if _, err := l.Append(b.Build(nil), int32(i/7)); err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			mustSync(t, l)
		}
	}
	mustSync(t, l)
	m := l.Manifest()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestFormatV1 keeps the format: what is written today is what version 1 was,
// and what version 1 wrote is read.
func TestFormatV1(t *testing.T) {
	const dir = "testdata/v1"
	mem := vfs.NewMem()
	manifest := goldenStory(t, mem)
	names, err := mem.List("log")
	if err != nil {
		t.Fatal(err)
	}
	old := vfs.NewMem()
	if err := old.MkdirAll("log"); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		now, err := vfs.ReadFile(mem, "log/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if *writeGolden {
			if err := os.WriteFile(filepath.Join(dir, name), now, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(now, golden) {
			t.Errorf("%s is no longer written as in version 1", name)
		}
		if err := vfs.WriteFile(old, "log/"+name, golden); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(old, "log", Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := l.Manifest(); !reflect.DeepEqual(got, manifest) {
		t.Fatalf("%+v, want %+v", got, manifest)
	}
	if offset, at, ok, err := l.LookupTime(1_700_000_000_101); err != nil || !ok || offset != 21 || at != 1_700_000_000_105 {
		t.Fatal(offset, at, ok, err)
	}
}

func TestFileNames(t *testing.T) {
	for base, want := range map[int64]string{0: "00000000000000000000.log", 1234: "00000000000000001234.log", math.MaxInt64: "09223372036854775807.log"} {
		if got := fileName(base, dataSuffix); got != want {
			t.Errorf("%d: %s", base, got)
		}
		if base2, suffix, ok := parseName(want); base2 != base || suffix != dataSuffix || !ok {
			t.Errorf("%s: %d %s %v", want, base2, suffix, ok)
		}
	}
	for _, name := range []string{"", "x.log", "00000000000000000000", "-0000000000000000001.log", "+0000000000000000001.log", "99999999999999999999.log", "0000000000000000000a.log", "00000000000000000000log"} {
		if _, _, ok := parseName(name); ok {
			t.Errorf("%q is taken for a segment", name)
		}
	}
}

// FuzzOpen: whatever is in the files, Open opens, what it offers is whole and
// contiguous, and the log can be used.
func FuzzOpen(f *testing.F) {
	mem := vfs.NewMem()
	l, err := Open(mem, "log", Config{SegmentBytes: 500, IndexIntervalBytes: 100})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 12 {
		mustAppend(f, l, batch(fmt.Sprint(i), 2, int64(i)))
	}
	mustSync(f, l)
	if len(l.Segments()) < 2 {
		f.Fatal("too few segments")
	}
	second := l.Segments()[1].Base
	l.Close()
	read := func(base int64, suffix string) []byte {
		p, err := vfs.ReadFile(mem, "log/"+fileName(base, suffix))
		if err != nil {
			return nil
		}
		return p
	}
	f.Add(read(0, dataSuffix), read(0, indexSuffix), read(second, dataSuffix), read(second, indexSuffix), second)
	f.Add(read(0, dataSuffix)[:100], read(0, indexSuffix), read(second, dataSuffix), []byte{}, int64(1))
	f.Fuzz(func(t *testing.T, data0, index0, data1, index1 []byte, base int64) {
		mem := vfs.NewMem()
		if err := mem.MkdirAll("log"); err != nil {
			t.Fatal(err)
		}
		base = base&0xffff + 1
		for name, p := range map[string][]byte{
			fileName(0, dataSuffix): data0, fileName(0, indexSuffix): index0,
			fileName(base, dataSuffix): data1, fileName(base, indexSuffix): index1,
		} {
			if err := vfs.WriteFile(mem, "log/"+name, p); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(mem, "log", Config{SegmentBytes: 500, IndexIntervalBytes: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for at := l.Start(); at < l.End(); {
			c, err := l.Read(at, 1<<20, l.End())
			if err != nil || c == nil {
				return // damage behind a mark that a fuzzer could forge
			}
			at = max(c.Next(), at+1)
			c.Release()
		}
		_, _, _, _ = l.LookupTime(3)
		if base := mustAppend(t, l, batch("new", 1, 9)); base != l.End()-1 {
			t.Fatal(base)
		}
		mustSync(t, l)
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l, err := Open(vfs.OS, b.TempDir(), Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			batch := big(size, 1)
			b.SetBytes(int64(len(batch)))
			b.ReportAllocs()
			for b.Loop() {
				mustAppend(b, l, batch)
			}
		})
	}
}
