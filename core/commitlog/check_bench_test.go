package commitlog

import (
	"io"
	"testing"

	"sluice/core/vfs"
)

// BenchmarkServe sends a closed segment to a connection by sendfile, 1 MiB at a time, with and without the check that
// comes before: what a consumer that is behind costs.
func BenchmarkServe(b *testing.B) {
	for name, checked := range map[string]bool{"checked": true, "unchecked": false} {
		b.Run(name, func(b *testing.B) { benchmarkServe(b, checked) })
	}
}

func benchmarkServe(b *testing.B, checked bool) {
	l, err := Open(vfs.OS, b.TempDir(), Config{SegmentBytes: 15 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for i := range 16 << 20 / 16000 {
		mustAppend(b, l, big(16000, int64(i)))
	}
	if !checked {
		l.mu.segments = l.mu.segments[:1] // the last one is trusted
		l.mu.segments[0].own, l.mu.end = 0, l.mu.segments[0].next
	}
	client, server := pipe(b)
	go func() { _, _ = io.Copy(io.Discard, client) }()
	b.SetBytes(1 << 20)
	b.ResetTimer()
	offset := int64(0)
	for range b.N {
		c, err := l.Read(offset, 1<<20, l.End())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.WriteTo(server); err != nil {
			b.Fatal(err)
		}
		if offset = c.Next(); offset > 800 {
			offset = 0
		}
		c.Release()
	}
}
