package commitlog

import (
	"path/filepath"
	"testing"

	"sluice/core/vfs"
)

// TestIndexOfACopySparesTheScan: a segment that was indexed while it was copied is not read from its start when the log
// is opened there, and is found in as usual.
func TestIndexOfACopySparesTheScan(t *testing.T) {
	mem := vfs.NewMem()
	l, err := Open(mem, "from", Config{})
	if err != nil {
		t.Fatal(err)
	}
	for l.Bytes() < 4*markBytes {
		mustAppend(t, l, big(1000, 1))
	}
	m := l.Manifest()
	data, err := vfs.ReadFile(mem, filepath.Join("from", fileName(0, dataSuffix)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	copied := vfs.NewFault(mem)
	if err := copied.MkdirAll("to"); err != nil {
		t.Fatal(err)
	}
	size := int64(len(big(1000, 1)))
	for _, n := range []int64{100 * size, 100 * size, 900 * size} {
		if err := vfs.WriteFile(copied, filepath.Join("to", fileName(0, partSuffix)), data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := IndexPart(copied, "to", fileName(0, partSuffix), 0, n, Config{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := copied.Remove(filepath.Join("to", fileName(0, partSuffix))); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(copied, filepath.Join("to", fileName(0, dataSuffix)), data); err != nil {
		t.Fatal(err)
	}
	copied.ResetCounts()
	to, missing, err := OpenAt(copied, "to", Config{}, m)
	if err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	defer to.Close()
	if read := copied.Bytes(vfs.OpRead); read > int64(len(data))/4 {
		t.Fatalf("read %d of %d bytes", read, len(data))
	}
	for offset := int64(0); offset < m.End; offset += 7 {
		readOne(t, to, offset)
	}
}
