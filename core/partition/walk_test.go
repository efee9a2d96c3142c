package partition

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sluice/core/record"
	"sluice/core/vfs"
)

// TestRandomWalk lets two replicas apply the same random log, grouped in
// different ways and with checkpoints, restarts and power cuts in between, and
// with checkpoints that one gets from the other when it is behind. Their answers,
// states and segment files must be the same, and what is stored must be what a
// plain model holds.
func TestRandomWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWalk(t)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			w.step()
		}
		w.finish()
	})
}

type walk struct {
	t        *rapid.T
	log      entries
	term     uint64
	keys     []Key
	names    []string
	next     map[string]int32 // the sequence a producer would use next, per partition
	replicas []*replica
	answers  []string // by index
	models   map[Key]*logModel
}

func newWalk(t *rapid.T) *walk {
	w := &walk{t: t, term: 1, next: make(map[string]int32), models: make(map[Key]*logModel)}
	for life := range 6 {
		for index := range int32(2) {
			w.keys = append(w.keys, Key{topicID(fmt.Sprintf("life %d", life)), index})
			w.names = append(w.names, []string{"same", "other"}[life%2])
		}
	}
	for i := range 2 {
		r := &replica{tb: t, fs: vfs.NewMem(), root: "/data"}
		r.options = func(o *Options) {
			if i == 1 {
				together(o)
			}
			o.FetchBytesPerSecond, o.ServeBytesPerSecond = 1<<40, 1<<40
			o.Peers = func() []Peer { return []Peer{(&server{replica: w.replicas[1-i]}).peer()} }
		}
		r.open()
		w.replicas = append(w.replicas, r)
	}
	return w
}

func (w *walk) step() {
	for range rapid.IntRange(0, 6).Draw(w.t, "entries") {
		w.log.add(w.term, w.entry())
	}
	i := rapid.IntRange(0, len(w.replicas)-1).Draw(w.t, "replica")
	r := w.replicas[i]
	step := rapid.SampledFrom([]string{"apply", "apply", "apply", "checkpoint", "restart", "crash", "term", "install", "fetch", "compact", "compact"}).Draw(w.t, "step")
	w.t.Logf("replica %d, applied %d: %s", i, r.applied, step)
	switch step {
	case "apply":
		w.apply(r, rapid.IntRange(r.applied, len(w.log.log)).Draw(w.t, "to"))
	case "checkpoint":
		r.checkpoint()
	case "restart":
		w.restart(r, nil)
	case "crash":
		seed := rapid.Uint64().Draw(w.t, "survivors")
		rnd := rand.New(rand.NewPCG(seed, 1))
		w.restart(r, r.fs.(*vfs.Mem).CrashClone(func() bool { return rnd.IntN(2) == 0 }))
	case "install":
		w.install(r, w.replicas[1-i])
	case "fetch":
		w.fetch(r)
	case "compact":
		w.compact(r, w.replicas[1-i])
	case "term":
		w.term += uint64(rapid.IntRange(1, 2).Draw(w.t, "terms"))
	}
}

func (w *walk) restart(r *replica, fs vfs.FS) {
	complete := r.set.Complete()
	r.restart(fs)
	if complete && !r.installed && !r.set.Complete() {
		w.t.Fatalf("incomplete after a restart from its own checkpoint: %+v", r.set.Status())
	}
}

// install gives a replica that is behind the other's checkpoint.
func (w *walk) install(r, from *replica) {
	if from.applied <= r.applied || !from.set.Complete() {
		return
	}
	from.checkpoint()
	if err := r.set.Restore(uint64(from.manifestAt), bytes.NewReader(from.manifest)); err != nil {
		w.t.Fatalf("install: %v", err)
	}
	r.manifest, r.manifestAt, r.applied, r.installed = from.manifest, from.manifestAt, from.manifestAt, true
}

// fetch runs a set until it is complete. Both replicas come to the end of the log
// first, so that the one has what the other lacks.
func (w *walk) fetch(r *replica) {
	for _, r := range w.replicas {
		w.apply(r, len(w.log.log))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.set.Run(ctx) }()
	select {
	case <-r.set.Completed():
	case <-ctx.Done():
	}
	cancel()
	if err := <-ended; err != nil || !r.set.Complete() {
		w.t.Fatalf("fetch: %v, %+v", err, r.set.Status())
	}
}

// apply has a replica apply up to an index; answers must be those given before.
func (w *walk) apply(r *replica, to int) {
	from := r.applied
	for i, result := range r.apply(w.log.log, to) {
		answer := fmt.Sprintf("%s %v", describe(result), result)
		switch at := from + i; {
		case at < len(w.answers):
			if w.answers[at] != answer {
				w.t.Fatalf("entry %d was answered %q and now %q", at, w.answers[at], answer)
			}
		default:
			w.answers = append(w.answers, answer)
			w.t.Logf("entry %d, kind %d: %s", at, w.log.log[at].Data[0], answer)
			w.model(at, result)
		}
	}
}

func (w *walk) finish() {
	for _, r := range w.replicas {
		w.fetch(r)
		if err := r.set.Err(); err != nil {
			w.t.Fatalf("set stopped: %v", err)
		}
	}
	a, b := w.replicas[0], w.replicas[1]
	if diff := cmp.Diff(a.segments(), b.segments()); diff != "" {
		w.t.Fatalf("segments differ: %s", diff)
	}
	if diff := cmp.Diff(a.sections(), b.sections()); diff != "" {
		w.t.Fatalf("states differ: %s", diff)
	}
	for _, r := range w.replicas {
		w.compare(r)
		r.checkpoint()
		if err := r.set.Close(); err != nil {
			w.t.Fatalf("close: %v", err)
		}
	}
}

func (w *walk) entry() []byte {
	i := rapid.IntRange(0, len(w.keys)-1).Draw(w.t, "key")
	config := LogConfig{SegmentBytes: int64(rapid.IntRange(1, 8).Draw(w.t, "segment") * 100)}
	switch rapid.SampledFrom([]string{"append", "append", "append", "append", "create", "create", "delete", "configure", "start"}).Draw(w.t, "entry") {
	case "create":
		return EncodeCreate(Create{Key: w.keys[i], Name: w.names[i], EpochBase: int32(i), Config: config})
	case "delete":
		return EncodeDelete(w.keys[i])
	case "configure":
		return EncodeConfigure(w.keys[i], config)
	case "start":
		return EncodeStart([]Start{{w.keys[i], int64(rapid.IntRange(-1, 20).Draw(w.t, "start"))}})
	}
	items := make([]Append, rapid.IntRange(1, 3).Draw(w.t, "items"))
	for j := range items {
		items[j].Key = w.keys[rapid.IntRange(0, len(w.keys)-1).Draw(w.t, "key")]
		for range rapid.IntRange(1, 2).Draw(w.t, "batches") {
			items[j].Batches = append(items[j].Batches, w.batch(items[j].Key)...)
		}
	}
	return EncodeAppend(items)
}

func (w *walk) batch(k Key) []byte {
	b := testBatch{
		producer: int64(rapid.IntRange(-1, 3).Draw(w.t, "producer")),
		count:    rapid.IntRange(1, 3).Draw(w.t, "count"),
		keys:     rapid.IntRange(0, 4).Draw(w.t, "keys"),
		deletes:  rapid.IntRange(0, 3).Draw(w.t, "deletes") == 0,
		time:     int64(rapid.IntRange(0, 1000).Draw(w.t, "time")),
		value:    fmt.Sprintf("%d.%d.", len(w.log.log), rapid.IntRange(0, 9).Draw(w.t, "value")),
	}
	if b.producer < 0 {
		return b.build()
	}
	b.txn = b.producer == 3
	if b.txn && rapid.IntRange(0, 2).Draw(w.t, "marker") == 0 {
		b.marker = rapid.SampledFrom([]string{"commit", "abort"}).Draw(w.t, "type")
		return b.build()
	}
	id := fmt.Sprint(k, b.producer)
	if off := rapid.IntRange(-3, 6).Draw(w.t, "off"); off < 0 {
		b.sequence = max(0, w.next[id]+int32(off))
	} else {
		b.sequence = w.next[id]
		w.next[id] += int32(b.count)
	}
	return b.build()
}

// logModel is what a partition must hold: whole batches by base offset.
type logModel struct {
	start, end int64
	batches    map[int64][]byte
}

// model takes the answer to an entry as what the model must hold from now on,
// after checking that it is possible.
func (w *walk) model(at int, result any) {
	kind, body, err := splitEntry(w.log.log[at].Data)
	if err != nil {
		w.t.Fatal(err)
	}
	switch kind {
	case kindCreate:
		var c createBody
		_ = decodeBody(body, &c)
		if k := (Key{c.Topic, c.Index}); result == nil && w.models[k] == nil {
			w.models[k] = &logModel{batches: make(map[int64][]byte)}
		}
	case kindDelete:
		var d deleteBody
		_ = decodeBody(body, &d)
		delete(w.models, Key{d.Topic, d.Index})
	case kindStart:
		var s startBody
		_ = decodeBody(body, &s)
		m, r := w.models[Key{s.Items[0].Topic, s.Items[0].Index}], result.([]StartResult)[0]
		if (m == nil) != (r.Start == -1) || (m != nil && r.Start < m.start) {
			w.t.Fatalf("start moved to %+v in %+v", r, m)
		}
		if m != nil {
			m.start = r.Start
		}
	case kindAppend:
		items, _ := decodeAppend(body)
		for _, r := range result.([]AppendResult) {
			item, _ := items.next()
			w.modelAppend(item, r)
		}
	}
}

func (w *walk) modelAppend(item Append, r AppendResult) {
	m := w.models[item.Key]
	if m == nil {
		if r.Err != ErrUnknownPartition {
			w.t.Fatalf("append to no partition: %+v", r)
		}
		return
	}
	if r.Err != nil {
		return
	}
	first := true
	for rest := item.Batches; len(rest) > 0; first = false {
		b, after, err := record.Next(rest)
		if err != nil {
			w.t.Fatal(err)
		}
		base := m.find(b)
		if base < 0 {
			base = m.end
			m.batches[base] = b
			m.end += int64(b.Count())
		}
		if first && base != r.Base {
			w.t.Fatalf("batch belongs at %d, answered %d", base, r.Base)
		}
		rest = after
	}
}

// find returns where a batch sent again is stored, -1 for a new one.
func (m *logModel) find(b record.Batch) int64 {
	for base, stored := range m.batches {
		if sameBatch(stored, b) {
			return base
		}
	}
	return -1
}

// sameBatch compares a stored batch with one sent again: the producer's fields
// say that they are the same.
func sameBatch(a, b record.Batch) bool {
	return b.ProducerID() >= 0 && !b.IsControl() && a.ProducerID() == b.ProducerID() && a.ProducerEpoch() == b.ProducerEpoch() &&
		a.BaseSequence() == b.BaseSequence() && a.LastOffsetDelta() == b.LastOffsetDelta()
}

// compare reads a replica's partitions and compares them with the models.
func (w *walk) compare(r *replica) {
	if r.set.Len() != len(w.models) {
		w.t.Fatalf("%d partitions, the model has %d", r.set.Len(), len(w.models))
	}
	for p := range r.set.All() {
		m := w.models[p.Key()]
		if p.Start() != m.start || p.End() != m.end || p.LastStable() > p.End() || p.LastStable() < p.Start() {
			w.t.Fatalf("%s: %d to %d, stable %d; the model has %d to %d", p.dir, p.Start(), p.End(), p.LastStable(), m.start, m.end)
		}
		readAll(w.t, p, false)
		readAll(w.t, p, true)
		got := make(map[int64]string)
		for _, seg := range p.log.Segments() {
			data, err := vfs.ReadFile(r.fs, p.segmentPath(seg.Base))
			if err != nil {
				w.t.Fatal(err)
			}
			w.compareSegment(m, p.Dirty(), data, got)
		}
		w.compareKeys(m, p, got)
	}
}

func (w *walk) compareSegment(m *logModel, dirty int64, data []byte, got map[int64]string) {
	for rest := data; len(rest) > 0; {
		b, after, err := record.Next(rest)
		if err != nil {
			w.t.Fatalf("stored batch: %v", err)
		}
		want := m.batches[b.BaseOffset()]
		collect(w.t, b, b.BaseOffset(), got)
		if want != nil && b.BaseOffset() < dirty { // some of its records may be gone
			if record.Batch(want).LastOffsetDelta() != b.LastOffsetDelta() || record.Batch(want).BaseSequence() != b.BaseSequence() {
				w.t.Fatalf("batch at %d has lost more than records", b.BaseOffset())
			}
			rest = after
			continue
		}
		if len(want) != len(b) || !bytes.Equal(want[16:], b[16:]) { // behind base offset, length, leader epoch
			w.t.Fatalf("batch at %d is not what was accepted there", b.BaseOffset())
		}
		rest = after
	}
}
