package commitlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"sluice/core/record"
	"sluice/core/vfs"
)

// gapped writes a segment as compaction leaves it: offsets are missing within
// and between batches.
func gapped(t *testing.T, fsys vfs.FS) Manifest {
	t.Helper()
	var file []byte
	sums := newTally(10)
	for _, base := range []int64{10, 15, 22} {
		b := batch("v", 3, base*100)
		b.SetBaseOffset(base)
		sums.add(b, int64(len(b)))
		file = append(file, b...)
	}
	if err := fsys.MkdirAll("log"); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, "log/"+fileName(10, dataSuffix), file); err != nil {
		t.Fatal(err)
	}
	return Manifest{Start: 10, End: 30, Segments: []SegmentInfo{sums.info(10)}}
}

// TestReadOverGaps: a compacted log is read from offsets that are gone.
func TestReadOverGaps(t *testing.T) {
	mem := vfs.NewMem()
	l, _, err := OpenAt(mem, "log", Config{IndexIntervalBytes: 1, Gaps: true}, gapped(t, mem))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for offset, want := range map[int64]int64{10: 10, 12: 10, 13: 15, 14: 15, 17: 15, 18: 22, 24: 22} {
		c, err := l.Read(offset, 1, 30)
		if err != nil {
			t.Fatal(offset, err)
		}
		data, err := c.Bytes()
		if err != nil || record.Batch(data).BaseOffset() != want {
			t.Fatalf("offset %d: batch %d, want %d: %v", offset, record.Batch(data).BaseOffset(), want, err)
		}
		c.Release()
	}
	for _, offset := range []int64{25, 29, 30} {
		if c, err := l.Read(offset, 1, 30); c != nil || err != nil {
			t.Fatal(offset, c, err)
		}
	}
	if base := mustAppend(t, l, batch("new", 1, 9999)); base != 30 {
		t.Fatal(base)
	}
	c, err := l.Read(25, 1, 31)
	if err != nil || c.Next() != 31 {
		t.Fatal(err)
	}
	c.Release()
}

func TestDump(t *testing.T) {
	mem := vfs.NewMem()
	l, err := Open(mem, "log", Config{})
	if err != nil {
		t.Fatal(err)
	}
	b := record.NewBuilder(record.BuilderOptions{Codec: record.Zstd, ProducerID: 5, ProducerEpoch: 2, BaseSequence: 9})
	b.Add(1000, []byte("k"), []byte("v\x1b"), []record.Header{{Key: "h", Value: []byte("x")}})
	b.Add(1001, nil, nil, nil)
	mustAppend(t, l, append(append([]byte{}, b.Build(nil)...), batch("plain", 1, 7)...))
	l.Close()
	path := "log/" + fileName(0, dataSuffix)
	var out bytes.Buffer
	if err := Dump(&out, mem, path, DumpOptions{Records: true}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"baseOffset: 0 lastOffset: 1 count: 2 baseSequence: 9 lastSequence: 10 producerId: 5 producerEpoch: 2 partitionLeaderEpoch: 1 ",
		"position: 0 CreateTime: 1001 size: ", "compresscodec: zstd", "isvalid: true\n",
		`| offset: 0 CreateTime: 1000 key: "k" value: "v\x1b" headers: ["h=\"x\""]` + "\n",
		"| offset: 1 CreateTime: 1001 key: null value: null headers: []\n",
		"baseOffset: 2 lastOffset: 2 count: 1 baseSequence: -1",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	out.Reset()
	if err := Dump(&out, mem, path, DumpOptions{Records: true, JSON: true}); err != nil {
		t.Fatal(err)
	}
	var first DumpBatch
	if err := json.NewDecoder(&out).Decode(&first); err != nil {
		t.Fatal(err)
	}
	if first.ProducerID != 5 || len(first.Records) != 2 || *first.Records[0].Key != "k" || first.Records[1].Value != nil || !first.Valid {
		t.Fatalf("%+v", first)
	}
}

// TestDumpOfDamage: a wrong CRC is shown and walked over, garbage ends it.
func TestDumpOfDamage(t *testing.T) {
	mem := vfs.NewMem()
	file := append(append([]byte{}, batch("a", 2, 1)...), batch("b", 2, 1)...)
	size := len(file)
	file[size/2-1] ^= 1
	if err := vfs.WriteFile(mem, "x.log", file); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := Dump(&out, mem, "x.log", DumpOptions{Records: true})
	if !errors.Is(err, ErrDamaged) || strings.Count(out.String(), "isvalid: true") != 1 || strings.Count(out.String(), "isvalid: false") != 1 {
		t.Fatalf("%v\n%s", err, &out)
	}
	if err := vfs.WriteFile(mem, "x.log", append(file, make([]byte, 70)...)); err != nil {
		t.Fatal(err)
	}
	if err := Dump(&out, mem, "x.log", DumpOptions{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "x.log at byte") {
		t.Fatal(err)
	}
}
