package commitlog

import (
	"fmt"
	"testing"

	"sluice/core/record"
	"sluice/core/vfs"
)

// batch returns n records whose values name tag and their place.
func batch(tag string, n int, timestampMs int64) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{})
	for i := range n {
		b.Add(timestampMs+int64(i), []byte(tag), fmt.Appendf(nil, "%s-%d", tag, i), nil)
	}
	return b.Build(nil)
}

// values reads all values from offset on.
func values(t testing.TB, l *Log, offset, maxBytes int64) (out []string) {
	t.Helper()
	next := offset
	for {
		c, err := l.Read(next, maxBytes, l.End())
		if err != nil {
			t.Fatalf("read %d: %v", next, err)
		}
		if c == nil {
			return out
		}
		data, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for rest := data; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				t.Fatal(err)
			}
			if err := b.CheckCRC(); err != nil {
				t.Fatal(err)
			}
			err := b.Each(func(r record.Record) error {
				if at := b.BaseOffset() + int64(r.OffsetDelta); at >= next {
					if at != next {
						t.Fatalf("offset %d after %d", at, next-1)
					}
					out = append(out, string(r.Value))
					next++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if next != c.Next() {
			t.Fatalf("chunk's next is %d, last record before %d", c.Next(), next)
		}
		c.Release()
	}
}

func TestAppendReadReopen(t *testing.T) {
	for _, fsys := range []struct {
		name string
		fs   vfs.FS
		dir  string
	}{{"os", vfs.OS, t.TempDir() + "/p"}, {"mem", vfs.NewMem(), "p"}} {
		t.Run(fsys.name, func(t *testing.T) {
			c := Config{SegmentBytes: 2000, IndexIntervalBytes: 200}
			l, err := Open(fsys.fs, fsys.dir, c)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for i := range 100 {
				tag := fmt.Sprint(i)
				base, err := l.Append(batch(tag, 3, int64(1000*i)), 7)
				if err != nil {
					t.Fatal(err)
				}
				if base != int64(3*i) {
					t.Fatalf("base %d, want %d", base, 3*i)
				}
				want = append(want, tag+"-0", tag+"-1", tag+"-2")
			}
			check := func(l *Log) {
				t.Helper()
				for offset := range want {
					for _, size := range []int64{1, 300, 100000} {
						if offset%7 != 0 && size == 1 {
							continue
						}
						if got := values(t, l, int64(offset), size); fmt.Sprint(got) != fmt.Sprint(want[offset:]) {
							t.Fatalf("from %d: %v", offset, got)
						}
					}
				}
				for i := range 100 {
					offset, ts, ok, err := l.LookupTime(int64(1000*i + 1))
					if err != nil || !ok || offset != int64(3*i+1) || ts != int64(1000*i+1) {
						t.Fatalf("lookup %d: %d %d %v %v", 1000*i+1, offset, ts, ok, err)
					}
				}
			}
			check(l)
			if end, err := l.Sync(); err != nil || end != 300 {
				t.Fatal(end, err)
			}
			m := l.Manifest()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l, err = Open(fsys.fs, fsys.dir, c)
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Manifest(); fmt.Sprint(got) != fmt.Sprint(m) {
				t.Fatalf("manifest after reopening\n%v\nwant\n%v", got, m)
			}
			check(l)
			l.Close()
			l, missing, err := OpenAt(fsys.fs, fsys.dir, c, m)
			if err != nil || len(missing) != 0 {
				t.Fatal(err, missing)
			}
			check(l)
			l.Close()
		})
	}
}
