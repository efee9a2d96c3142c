package controller

import (
	"bytes"
	"context"
	"fmt"

	"strings"
	"sync"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/vfs"
)

// segmentsTopic is cut into many small files.
func segmentsTopic(name string) meta.NewTopic {
	return meta.NewTopic{Name: name, Partitions: 1, ReplicationFactor: 3, Configs: map[string]string{"segment.bytes": fmt.Sprint(1 << 20)}}
}

// scrubbing makes a node look at its segments all the time.
func scrubbing(o Options) Options {
	o.ScrubInterval, o.ScrubBytesPerSecond = 50*time.Millisecond, 1<<40
	return o
}

func scrubbingTrio(t *testing.T) []*member {
	t.Helper()
	a := start(t, scrubbing(options(1)))
	b := start(t, scrubbing(options(2, a.Addr())))
	c := start(t, scrubbing(options(3, a.Addr())))
	all := []*member{a, b, c}
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	return all
}

// writeUntil appends to a partition until stop is closed, wherever its leader is, and counts what was acknowledged.
func writeUntil(stop <-chan struct{}, all func() []*member, key partition.Key, value int) (acked int) {
	for {
		select {
		case <-stop:
			return acked
		default:
		}
		for _, m := range all() {
			_, g, ok := m.Local(key.Topic, key.Index)
			if !ok {
				continue
			}
			if _, leads := g.Serving(); !leads {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			res, err := g.Propose(partition.EncodeAppend([]partition.Append{{Key: key, Batches: valueBatch(value)}})).Wait(ctx)
			cancel()
			if results, ok := res.([]partition.AppendResult); err == nil && ok && results[0].Err == nil {
				acked++
			}
		}
	}
}

func (m *member) part(key partition.Key) *partition.Partition {
	p, _, _ := m.Local(key.Topic, key.Index)
	return p
}

// segmentFiles returns the names of a partition's segments on a node.
func (m *member) segmentFiles(topic string) []string {
	dir := "/data/" + topic + "-0"
	names, err := m.o.FS.List(dir)
	if err != nil {
		m.t.Fatal(err)
	}
	var out []string
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			out = append(out, dir+"/"+name)
		}
	}
	return out
}

func flipByte(t *testing.T, fsys vfs.FS, name string, at int64) {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (at % 8)
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// sameFiles waits until the files of a topic are equal byte for byte everywhere.
func sameFiles(t *testing.T, all []*member, topic string) {
	t.Helper()
	content := func(m *member) map[string][]byte {
		files := map[string][]byte{}
		for _, name := range m.segmentFiles(topic) {
			data, err := vfs.ReadFile(m.o.FS, name)
			if err != nil {
				return nil
			}
			files[name] = data
		}
		return files
	}
	all[0].eventually("equal files", func() bool {
		want := content(all[0])
		for _, m := range all[1:] {
			have := content(m)
			if len(have) != len(want) || len(want) == 0 {
				return false
			}
			for name := range want {
				if !bytes.Equal(want[name], have[name]) {
					return false
				}
			}
		}
		return true
	})
}

// TestFlippedBitIsHealed flips a bit in a closed segment of each running replica in turn, under load. It is found and
// mended without anybody's help, leadership moves away from it, and nothing damaged is read.
func TestFlippedBitIsHealed(t *testing.T) {
	all := scrubbingTrio(t)
	all[0].create(segmentsTopic("t"))
	key := partition.Key{Topic: all[0].Image().Topic("t").ID}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { writeUntil(stop, func() []*member { return all }, key, 50<<10) })
	all[0].eventually("closed segments", func() bool { return len(all[0].segmentFiles("t")) > 3 })
	for _, m := range all {
		repaired := m.repaired()
		flipByte(t, m.o.FS, m.segmentFiles("t")[1], 5000)
		m.eventually("the repair", func() bool {
			readsGood(t, m, key)
			return m.repaired() > repaired
		})
	}
	close(stop)
	wg.Wait()
	all[0].eventually("everything in sync", func() bool { return underReplicated(all[0].Image()) == 0 })
	sameFiles(t, all, "t")
}

func (m *member) repaired() int {
	var out bytes.Buffer
	m.WritePrometheus(&out)
	sum := 0
	for line := range strings.Lines(out.String()) {
		var n int
		if strings.HasPrefix(line, "sluice_repair_repaired_segments_total") {
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err == nil {
				sum += n
			}
		}
	}
	return sum
}

// readsGood reads the beginning of a partition on a node, and fails when it gets something that was not written.
func readsGood(t *testing.T, m *member, key partition.Key) {
	t.Helper()
	p := m.part(key)
	for offset := int64(0); offset < min(p.End(), 60); {
		chunk, err := p.Read(offset, 200<<10, false)
		if err != nil || chunk == nil {
			return // refused: the client asks again, here or elsewhere
		}
		data, err := chunk.Bytes()
		next := chunk.Next()
		chunk.Release()
		if err != nil {
			return
		}
		checkBatches(t, data, offset)
		offset = next
	}
}

// valueBatch is one record with a value of that size.
func valueBatch(size int) []byte {
	b := record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer, BaseSequence: -1})
	b.Add(time.Now().UnixMilli(), nil, bytes.Repeat([]byte("v"), size), nil)
	return b.Build(nil)
}

// checkBatches fails for bytes that are not whole, good batches from an offset on.
func checkBatches(t *testing.T, data []byte, offset int64) {
	t.Helper()
	for rest := data; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.CheckCRC(); err != nil || b.BaseOffset() != offset {
			t.Fatalf("batch %d read at %d: %v", b.BaseOffset(), offset, err)
		}
		offset, rest = b.NextOffset(), after
	}
}
