package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/record"
	"sluice/core/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testShard = meta.ShardID(7)

// tb is what the harness needs of *testing.T and *rapid.T.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

// replica is one replica as its group would drive it: a set, the entries that
// are committed, and the last durable checkpoint.
type replica struct {
	tb         tb
	fs         vfs.FS
	root       string
	set        *Set
	applied    int // entries of the group's log
	manifest   []byte
	manifestAt int
	installed  bool // the manifest is another replica's, or names what was missing
	options    func(*Options)
}

// together has a replica close its files unsynced, two of which may be open, and
// sync the whole file system for a checkpoint.
func together(o *Options) {
	whole, err := vfs.OpenWhole(o.FS, "/data")
	if err != nil {
		panic(err)
	}
	o.Files, o.together = commitlog.NewFiles(2), 1
	o.Files.UseWhole(whole)
}

func newReplica(t tb, fs vfs.FS, root string) *replica {
	r := &replica{tb: t, fs: fs, root: root}
	r.open()
	return r
}

// open starts the replica from its last checkpoint.
func (r *replica) open() {
	r.tb.Helper()
	if err := r.tryOpen(); err != nil {
		r.tb.Fatalf("open replica: %v", err)
	}
}

func (r *replica) tryOpen() error {
	dirs, err := NewDirs(r.fs, r.root)
	if err != nil {
		return err
	}
	o := Options{FS: r.fs, Dirs: dirs, Shard: testShard}
	if r.options != nil {
		r.options(&o)
	}
	set, err := Open(o)
	if err != nil {
		return err
	}
	r.set, r.applied = set, 0
	if r.manifest == nil {
		return nil
	}
	r.applied = r.manifestAt
	return set.Restore(uint64(r.manifestAt), bytes.NewReader(r.manifest))
}

// apply applies the group's entries from where the replica is up to index `to`,
// in one call, and returns the results.
func (r *replica) apply(log []*raft.Log, to int) []any {
	r.tb.Helper()
	results := r.set.ApplyBatch(log[r.applied:to])
	if len(results) != to-r.applied {
		r.tb.Fatalf("%d results for %d entries", len(results), to-r.applied)
	}
	r.applied = to
	return results
}

// checkpoint takes a checkpoint and makes it the durable one.
func (r *replica) checkpoint() {
	r.tb.Helper()
	if err := r.tryCheckpoint(); err != nil {
		r.tb.Fatalf("checkpoint: %v", err)
	}
}

func (r *replica) tryCheckpoint() error {
	complete := r.set.Complete()
	c, err := r.set.Capture()
	if err != nil {
		return err
	}
	defer c.Release()
	var buf bytes.Buffer
	if err := c.Persist(&buf); err != nil {
		return err
	}
	r.manifest, r.manifestAt, r.installed = buf.Bytes(), r.applied, !complete
	c.(interface{ Durable() }).Durable()
	return nil
}

// restart closes the set and opens it again, on fs when that is given.
func (r *replica) restart(fs vfs.FS) {
	r.tb.Helper()
	if err := r.set.Close(); err != nil {
		r.tb.Fatalf("close: %v", err)
	}
	if fs != nil {
		r.fs = fs
	}
	r.open()
}

// segments returns the bytes of every live partition's segments, cut to what the
// log holds, by `<name>-<index>/<file>`.
func (r *replica) segments() map[string]string {
	r.tb.Helper()
	found := make(map[string]string)
	for p := range r.set.All() {
		for _, seg := range p.log.Segments() {
			data, err := vfs.ReadFile(r.set.o.Dirs.at(p.dir), p.segmentPath(seg.Base))
			if err != nil {
				r.tb.Fatalf("read segment: %v", err)
			}
			if int64(len(data)) != seg.Bytes {
				r.tb.Fatalf("%s: segment %d has %d bytes on disk, %d in the log", p.dir, seg.Base, len(data), seg.Bytes)
			}
			found[fmt.Sprintf("%s-%d/%d", p.Name(), p.Key().Index, seg.Base)] = string(data)
		}
	}
	return found
}

// sections returns the state of every partition as a checkpoint would hold it.
func (r *replica) sections() map[Key]string {
	found := make(map[Key]string)
	for p := range r.set.All() {
		found[p.Key()] = string(capture(p).encode())
	}
	return found
}

// entries builds a group's log.
type entries struct{ log []*raft.Log }

func (e *entries) add(term uint64, data []byte) int {
	e.log = append(e.log, &raft.Log{Index: uint64(len(e.log) + 1), Term: term, Type: raft.LogCommand, Data: data})
	return len(e.log)
}

func topicID(name string) (id meta.TopicID) {
	copy(id[:], name)
	return id
}

// testBatch describes a batch of the tests.
type testBatch struct {
	producer int64 // -1: none
	epoch    int16
	sequence int32
	count    int
	time     int64
	value    string
	txn      bool
	marker   string // "commit" or "abort"
	keys     int    // above 0: records have keys, from this one on
	deletes  bool   // the last record is a tombstone
}

func (b testBatch) build() []byte {
	o := record.BuilderOptions{ProducerID: record.NoProducer, Transactional: b.txn, Control: b.marker != ""}
	builder := record.NewBuilder(o)
	if b.producer >= 0 {
		builder.SetProducer(b.producer, b.epoch, b.sequence)
	}
	if b.marker != "" {
		kind := uint16(0)
		if b.marker == "commit" {
			kind = 1
		}
		key := binary.BigEndian.AppendUint16([]byte{0, 0}, kind)
		builder.SetProducer(b.producer, b.epoch, -1)
		builder.Add(b.time, key, []byte{0, 0, 0, 0, 0, 0}, nil)
		return builder.Build(nil)
	}
	for i := range b.count {
		var key []byte
		if b.keys > 0 {
			key = []byte(fmt.Sprintf("k%d", (b.keys+i)%4))
		}
		value := []byte(fmt.Sprintf("%s%d", b.value, i))
		if b.deletes && i == b.count-1 {
			value = nil
		}
		builder.Add(b.time+int64(i), key, value, nil)
	}
	return builder.Build(nil)
}

// readAll reads a partition from its start and returns "base+count" of every
// batch after checking that they follow one another.
func readAll(t tb, p *Partition, readCommitted bool) (batches []string) {
	t.Helper()
	for offset := p.Start(); ; {
		chunk, err := p.Read(offset, 1<<20, readCommitted)
		if err != nil {
			t.Fatalf("read %s at %d: %v", p.Name(), offset, err)
		}
		if chunk == nil || chunk.Len() == 0 {
			return batches
		}
		data, err := chunk.Bytes()
		if err != nil {
			t.Fatalf("chunk at %d: %v", offset, err)
		}
		for rest := data; len(rest) > 0; {
			b, after, err := record.Next(rest)
			if err != nil {
				t.Fatalf("batch after %d: %v", offset, err)
			}
			if b.NextOffset() <= offset || (len(batches) > 0 && b.BaseOffset() != offset && (p.Dirty() == 0 || b.BaseOffset() < offset)) {
				t.Fatalf("batch %d to %d read at %d", b.BaseOffset(), b.LastOffset(), offset)
			}
			batches = append(batches, fmt.Sprintf("%d+%d", b.BaseOffset(), b.Count()))
			offset, rest = b.NextOffset(), after
		}
		if chunk.Next() != offset {
			t.Fatalf("chunk says it ends at %d, its batches at %d", chunk.Next(), offset)
		}
		chunk.Release()
	}
}

func appendResults(t testing.TB, result any) []AppendResult {
	t.Helper()
	list, ok := result.([]AppendResult)
	if !ok {
		t.Fatalf("result is %T (%v)", result, result)
	}
	return list
}

// names lists the directories of the data directory.
func (r *replica) names() string {
	list, err := r.fs.List(r.root)
	if err != nil {
		r.tb.Fatalf("list: %v", err)
	}
	return strings.Join(list, "\n") + "\n"
}

func (r *replica) path(parts ...string) string {
	return filepath.Join(append([]string{r.root}, parts...)...)
}
