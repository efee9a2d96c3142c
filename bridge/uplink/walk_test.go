package uplink

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"sluice/core/commitlog"
	"sluice/core/record"
	"sluice/core/vfs"
)

// remote is a partition of a cluster that remembers of a producer the epoch and the last batch; a broker remembers five.
type remote struct {
	batches []record.Batch
	end     int64
	epoch   int16
	last    *[2]int32 // first and last sequence; nil: nothing in this epoch
}

// produce does what a broker does with an idempotent batch.
func (r *remote) produce(b record.Batch) (base int64, err *kerr.Error) {
	seq := [2]int32{b.BaseSequence(), addSequence(b.BaseSequence(), b.LastOffsetDelta())}
	switch known := r.last != nil; {
	case known && b.ProducerEpoch() < r.epoch:
		return -1, kerr.InvalidProducerEpoch
	case known && b.ProducerEpoch() > r.epoch:
		if seq[0] != 0 {
			return -1, kerr.OutOfOrderSequenceNumber
		}
	case known && *r.last == seq:
		return r.end - int64(b.LastOffsetDelta()) - 1, nil
	case known && seq[0] != addSequence(r.last[1], 1):
		return -1, kerr.OutOfOrderSequenceNumber
	}
	r.epoch, r.last = b.ProducerEpoch(), &seq
	mine := append(record.Batch(nil), b...)
	mine.SetBaseOffset(r.end)
	r.batches, r.end = append(r.batches, mine), mine.NextOffset()
	return mine.BaseOffset(), nil
}

// walk drives an uplink's steps by hand, against remotes, with a disk that crashes.
type walk struct {
	t       rapid.TB
	fs      *vfs.Mem
	buffer  *buffer
	u       *Uplink
	remotes map[target]*remote
	next    int
	bad     map[string]bool
}

func (w *walk) open(t *testing.T) {
	log, err := commitlog.Open(w.fs, "/buffer", commitlog.Config{SegmentBytes: 600})
	if err != nil {
		w.t.Fatal(err)
	}
	w.buffer = &buffer{t: t, log: log, appended: make(chan struct{}), held: -1, wake: make(chan struct{}, 1)}
	u, err := Open(w.buffer, Options{FS: w.fs, Dir: "/uplink", Brokers: []string{"none"}, Linger: 1})
	if err != nil {
		w.t.Fatal(err)
	}
	if u.journal.state.ProducerID < 0 {
		u.journal.state.ProducerID = 7
	}
	if err := u.journal.rewrite(); err != nil {
		w.t.Fatal(err)
	}
	u.cluster = &cluster{topics: map[string]*topicInfo{}}
	w.u = u
	if err := u.rebuild(); err != nil {
		w.t.Fatal(err)
	}
	for name, n := range map[string]int{"mqtt": 2, "sluice.dead-letter": 1} {
		u.learn(&kmsg.MetadataResponseTopic{Topic: &name, Partitions: make([]kmsg.MetadataResponseTopicPartition, n)})
		for i := range u.cluster.topics[name].leaders {
			u.cluster.topics[name].leaders[i] = 1
		}
	}
}

func (w *walk) must(err error) {
	if err != nil {
		w.t.Fatal(err)
	}
}

// step carries one request of p out; lost: the answer does not come back.
func (w *walk) step(p *partition, lost bool) {
	r := w.remotes[p.target]
	if r == nil {
		r = &remote{}
		w.remotes[p.target] = r
	}
	if p.ask {
		a := asked{p: p, id: p.id, next: r.end}
		for _, b := range r.batches {
			if b.BaseOffset() >= p.acked {
				a.found, a.producer, a.epoch, a.end = true, b.ProducerID(), b.ProducerEpoch(), b.NextOffset()
				a.sequence = addSequence(b.BaseSequence(), b.LastOffsetDelta())
			}
		}
		w.must(a.apply(w.u))
		return
	}
	e := produced{parts: []*partition{p}, batches: []*batch{p.queue[0]}, ids: [][16]byte{p.id}}
	answer := kmsg.NewProduceResponseTopicPartition()
	answer.Partition = p.Partition
	var refused *kerr.Error
	w.must(p.queue[0].wire.Each(func(r record.Record) error {
		if w.bad[string(r.Value)] && p.Topic == "mqtt" {
			refused = kerr.InvalidRecord
		}
		return nil
	}))
	if refused == nil {
		answer.BaseOffset, refused = r.produce(p.queue[0].wire)
	}
	if refused != nil {
		answer.ErrorCode = refused.Code
	}
	e.resp = &kmsg.ProduceResponse{Topics: []kmsg.ProduceResponseTopic{{Topic: p.Topic, Partitions: []kmsg.ProduceResponseTopicPartition{answer}}}}
	if lost {
		e.resp, e.err = nil, fmt.Errorf("lost")
	}
	w.must(e.apply(w.u))
}

func (w *walk) busy() (all []*partition) {
	for _, t := range slices.SortedFunc(maps.Keys(w.u.parts), func(a, b target) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }) {
		if p := w.u.parts[t]; len(p.queue) > 0 {
			all = append(all, p)
		}
	}
	return all
}

func (w *walk) add(rt *rapid.T) {
	var messages []message
	for range rapid.IntRange(1, 5).Draw(rt, "records") {
		v := fmt.Sprint(w.next)
		w.next++
		w.bad[v] = rapid.IntRange(0, 9).Draw(rt, "bad") < 2
		messages = append(messages, message{"mqtt", rapid.SampledFrom([]string{"a", "b", "c", "e"}).Draw(rt, "key"), v})
	}
	w.buffer.add(messages...)
	w.cut()
}

func (w *walk) cut() {
	w.u.lingering = time.Unix(1, 0)
	w.must(w.u.cut())
}

// trim drops what the uplink says may go.
func (w *walk) trim() {
	log := w.buffer.log
	start := log.Start()
	for _, s := range log.Segments() {
		if s.Next <= w.buffer.confirmed && s.Next < log.End() {
			start = s.Next
		}
	}
	w.must(log.Unlink(log.SetStart(start)))
}

// finish delivers all that is left and looks at what arrived.
func (w *walk) finish() {
	for {
		w.must(w.u.confirm())
		w.cut()
		busy := w.busy()
		if len(busy) == 0 {
			break
		}
		for _, p := range busy {
			w.step(p, false)
		}
	}
	if a := w.u.Status().Alarm; a != "" {
		w.t.Errorf("alarm: %s", a)
	}
	seen := map[string]int{}
	for at, r := range w.remotes {
		last := map[string]int{}
		for _, b := range r.batches {
			w.must(b.Each(func(rec record.Record) error {
				v, key := string(rec.Value), string(rec.Key)
				seen[v]++
				if w.bad[v] != (at.Topic == "sluice.dead-letter") {
					w.t.Errorf("%s is in %s", v, at.Topic)
				}
				n, err := strconv.Atoi(v)
				if err != nil || at.Topic == "mqtt" && n < last[key] {
					w.t.Errorf("%v: %s of key %s after %d", at, v, key, last[key])
				}
				last[key] = n
				return nil
			}))
		}
	}
	for i := range w.next {
		if n := seen[fmt.Sprint(i)]; n != 1 {
			w.t.Errorf("record %d arrived %d times", i, n)
		}
	}
}

// Whatever the order of rounds, lost answers, refused records, power cuts and trims: every record arrives once, in its partition's order.
func TestWalk(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &walk{t: rt, fs: vfs.NewMem(), remotes: map[target]*remote{}, bad: map[string]bool{}}
		w.must(w.fs.MkdirAll("/buffer"))
		w.open(t)
		for range rapid.IntRange(1, 150).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0, 1, 2:
				w.add(rt)
			case 3, 4, 5, 6:
				if busy := w.busy(); len(busy) > 0 {
					w.step(rapid.SampledFrom(busy).Draw(rt, "partition"), rapid.IntRange(0, 3).Draw(rt, "lost") == 0)
				}
			case 7:
				w.must(w.u.confirm())
			case 8:
				w.must(w.u.syncConfirmed(time.Now().Add(time.Hour)))
				w.trim()
			case 9:
				w.fs = w.fs.CrashClone(func() bool { return rapid.Bool().Draw(rt, "kept") })
				w.open(t)
			}
		}
		w.finish()
	})
}

// A dead letter that comes into an old round has a higher sequence than the dead letters of later rounds. When it is confirmed and they are not, a
// restart must neither give its sequence out again nor take it for somebody else's.
func TestLateDeadLetterIsConfirmedBeforeOlderSequences(t *testing.T) {
	w := &walk{t: t, fs: vfs.NewMem(), remotes: map[target]*remote{}, bad: map[string]bool{"0": true, "1": true}}
	w.must(w.fs.MkdirAll("/buffer"))
	w.open(t)
	here, there := "a", "a"
	for i := 'b'; partitionOf([]byte(there), 0, 2) == partitionOf([]byte(here), 0, 2); i++ {
		there = string(i)
	}
	w.buffer.add(message{"mqtt", here, "0"})
	w.cut()
	w.buffer.add(message{"mqtt", there, "1"}, message{"mqtt", here, "2"})
	w.cut()
	w.next = 3
	main := func(key string) *partition { return w.u.parts[target{"mqtt", partitionOf([]byte(key), 0, 2)}] }
	dead := target{"sluice.dead-letter", 0}
	w.step(main(there), false) // the second round's is refused first
	w.step(main(here), false)
	w.step(w.u.parts[dead], false)
	w.step(w.u.parts[dead], false)
	w.must(w.u.confirm())
	w.must(w.u.syncConfirmed(time.Now().Add(time.Hour)))
	if n := len(w.u.rounds); n != 1 {
		w.t.Fatalf("%d rounds are open, want the second alone", n)
	}
	w.fs = w.fs.CrashClone(nil)
	w.open(t)
	w.bad["3"] = true
	w.buffer.add(message{"mqtt", there, "3"})
	w.next = 4
	w.finish()
}

// New in a box that never saw the cluster: rounds of the gateway's own records alone must not stand in the way of what follows.
func TestOwnRecordsAloneAreConfirmed(t *testing.T) {
	w := &walk{t: t, fs: vfs.NewMem(), remotes: map[target]*remote{}}
	w.must(w.fs.MkdirAll("/buffer"))
	w.open(t)
	for range 2 * openRoundsMax {
		w.buffer.add(message{"", "own", "session"})
		w.cut()
	}
	w.must(w.u.syncConfirmed(time.Now().Add(time.Hour)))
	if len(w.u.rounds) != 0 || w.buffer.confirmed != w.buffer.log.End() {
		t.Errorf("%d rounds are open, confirmed up to %d of %d", len(w.u.rounds), w.buffer.confirmed, w.buffer.log.End())
	}
}

// While the cluster cannot be asked about a topic, the loop sleeps and does not read the same records again and again.
func TestUnknownTopicDoesNotSpin(t *testing.T) {
	w := &walk{t: t, fs: vfs.NewMem(), remotes: map[target]*remote{}}
	w.must(w.fs.MkdirAll("/buffer"))
	w.open(t)
	w.buffer.add(message{"fresh", "a", "0"})
	w.cut()
	w.u.metaBusy = true // the question is under way
	if wait, err := w.u.dispatch(); err != nil || wait < idleWait/2 {
		t.Errorf("dispatch sleeps %v, %v", wait, err)
	}
	w.must(refreshed{resp: &kmsg.MetadataResponse{}}.apply(w.u))
	w.u.cluster.topics["fresh"] = &topicInfo{leaders: []int32{1}}
	if w.cut(); len(w.u.rounds) != 1 {
		t.Errorf("%d rounds after the topic became known", len(w.u.rounds))
	}
}

// A confirmation that is not on disk leaves its rounds open after a crash, so the buffer has to hold their records until it is.
func TestHoldsUntilTheConfirmationIsSynced(t *testing.T) {
	w := &walk{t: t, fs: vfs.NewMem(), remotes: map[target]*remote{}, bad: map[string]bool{}}
	w.must(w.fs.MkdirAll("/buffer"))
	w.open(t)
	w.buffer.add(message{"mqtt", "a", "0"})
	w.cut()
	w.step(w.busy()[0], false)
	w.must(w.u.confirm())
	w.cut()
	if w.buffer.held != 0 {
		t.Errorf("held from %d on, want 0", w.buffer.held)
	}
	w.must(w.u.syncConfirmed(time.Now().Add(time.Hour)))
	if w.buffer.held != -1 || w.buffer.confirmed != 1 {
		t.Errorf("held from %d on, confirmed %d", w.buffer.held, w.buffer.confirmed)
	}
}

// A clone takes new producer ids also for partitions that have nothing to send before its second start.
func TestCloneIsRememberedByEveryPartition(t *testing.T) {
	fs := vfs.NewMem()
	b := newBuffer(t, fs)
	j, err := openJournal(fs, "/uplink")
	if err != nil {
		t.Fatal(err)
	}
	j.state.MachineID, j.state.ProducerID = "box-1", 7
	j.state.Partitions = []partitionState{{Target: target{"mqtt", 0}, ProducerID: 7, Sequence: 5}}
	if err := j.rewrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		u, err := Open(b, Options{FS: fs, Dir: "/uplink", Brokers: []string{"none"}, MachineID: "box-2"})
		if err != nil {
			t.Fatal(err)
		}
		if p := u.parts[target{"mqtt", 0}]; !p.fenced || p.producerID >= 0 {
			t.Errorf("partition %+v", p)
		}
		u.journal.state.MachineID = "box-2"
		if err := u.journal.rewrite(); err != nil {
			t.Fatal(err)
		}
	}
}

// A record refused for its timestamp must not be refused by the dead-letter topic for the same reason.
func TestDeadLetterWithoutTime(t *testing.T) {
	plan := batchPlan{Source: &target{"mqtt", 1}, NoTime: true}
	r, at := asDeadLetter(record.Record{}, 1234, &plan)
	if last := r.Headers[len(r.Headers)-1]; at != -1 || last.Key != "sluice.timestamp" || string(last.Value) != "1234" {
		t.Errorf("timestamp %d, headers %v", at, r.Headers)
	}
}
