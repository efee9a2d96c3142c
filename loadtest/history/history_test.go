package history

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// rig is a history made by hand: a topic of two partitions, a group, and a clock that stands still unless it is moved.
type rig struct {
	h     *History
	t     *Topic
	g     *Group
	clock time.Time
}

func newRig() *rig {
	r := &rig{clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	r.h = New(func() time.Time { return r.clock })
	r.t = r.h.Topic("t", TopicOptions{Partitions: 2, Contiguous: true})
	r.g = r.h.Group("g", r.t)
	return r
}

// sum is what the writers' values sum up to in these tests.
func sum(writer string, n int64) uint32 { return Sum([]byte(writer), []byte{byte(n)}) }

func (r *rig) send(writer string, p int32) int64 {
	w := r.h.Writer(writer, r.t)
	return w.Send(p, sum(writer, w.Next()))
}

func (r *rig) ack(writer string, n int64, p int32, offset int64) {
	r.h.Writer(writer, r.t).Acked(n, p, offset)
}

// write sends and acknowledges records of one writer at the offsets from one on.
func (r *rig) write(writer string, p int32, offset int64, count int) {
	for i := range count {
		r.ack(writer, r.send(writer, p), p, offset+int64(i))
	}
}

func rec(offset int64, writer string, n int64) Record {
	return Record{Offset: offset, Writer: writer, Number: n, Sum: sum(writer, n)}
}

// read reads records of one writer in one partition, offsets and numbers rising from the first.
func (s *Session) readRun(t *Topic, p int32, first Record, count int) {
	for i := range int64(count) {
		s.Read(t, p, rec(first.Offset+i, first.Writer, first.Number+i))
	}
}

// deliver lets a member have records as readRun.
func (m *Member) deliver(p int32, first Record, count int) {
	for i := range int64(count) {
		m.Delivered(p, rec(first.Offset+i, first.Writer, first.Number+i))
	}
}

// all reads and delivers ten records of writer a in partition 0, so that only what a case adds is wrong.
func (r *rig) all() {
	r.h.Session("last").readRun(r.t, 0, rec(0, "a", 0), 10)
	m := r.g.Member("last")
	m.Assigned(0)
	m.deliver(0, rec(0, "a", 0), 10)
}

// bad are hand-made histories of every kind that is wrong, each with what has to be found. In each, writer a has written ten records to partition 0.
var bad = []struct {
	name string
	make func(r *rig)
	want map[Kind]int64
}{
	{"an acknowledged record is not there", func(r *rig) {
		r.all()
		r.write("a", 0, 10, 1)
	}, map[Kind]int64{Lost: 1}},
	{"acknowledged without a place, and not there", func(r *rig) {
		r.all()
		w := r.h.Writer("device", r.t)
		w.Stored(w.Send(Anywhere, 1))
	}, map[Kind]int64{Lost: 1}},
	{"a record in the middle is left out by all readers", func(r *rig) {
		r.write("a", 0, 10, 2)
		s := r.h.Session("s")
		s.readRun(r.t, 0, rec(0, "a", 0), 10)
		s.Seek(r.t, 0, -1)
		s.Read(r.t, 0, rec(11, "a", 11))
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(0, "a", 0), 10)
		m.Assigned(0)
		r.g.Commit(0, 11).Done(false)
		m.deliver(0, rec(11, "a", 11), 1)
	}, map[Kind]int64{Lost: 1, Gap: 1}},
	{"a record is there twice", func(r *rig) {
		r.all()
		r.h.Session("s").Read(r.t, 0, rec(10, "a", 9))
		r.g.Member("m").Delivered(0, rec(10, "a", 9))
	}, map[Kind]int64{Doubled: 1}},
	{"an unacknowledged record is there twice", func(r *rig) {
		r.all()
		n := r.send("a", 0)
		r.h.Writer("a", r.t).Failed(n)
		r.h.Session("s").readRun(r.t, 0, rec(10, "a", n), 1)
		r.h.Session("s").Read(r.t, 0, rec(11, "a", n))
	}, map[Kind]int64{Doubled: 1}},
	{"two unacknowledged records are in the wrong order", func(r *rig) {
		r.all()
		r.send("a", 0)
		r.send("a", 0)
		s := r.h.Session("s")
		s.Read(r.t, 0, rec(10, "a", 11))
		s.Read(r.t, 0, rec(11, "a", 10))
	}, map[Kind]int64{Reordered: 1}},
	{"acknowledged at an offset where something else lies", func(r *rig) {
		r.all()
		n, m := r.send("a", 0), r.send("b", 0)
		r.ack("a", n, 0, 10)
		r.ack("b", m, 0, 11)
		s := r.h.Session("s")
		s.Read(r.t, 0, rec(10, "b", m))
		s.Read(r.t, 0, rec(11, "a", n))
		k := r.g.Member("m")
		k.Delivered(0, rec(10, "b", m))
		k.Delivered(0, rec(11, "a", n))
	}, map[Kind]int64{Moved: 2}},
	{"sent to one partition, read in another", func(r *rig) {
		r.all()
		n := r.send("a", 0)
		r.h.Session("s").Read(r.t, 1, rec(0, "a", n))
	}, map[Kind]int64{Moved: 1}},
	{"sent to one partition, acknowledged in another", func(r *rig) {
		r.all()
		n := r.send("a", 0)
		r.ack("a", n, 1, 0)
		r.h.Session("s").Read(r.t, 1, rec(0, "a", n))
		r.g.Member("m").Delivered(1, rec(0, "a", n))
	}, map[Kind]int64{Moved: 1}},
	{"a record of a writer nobody knows", func(r *rig) {
		r.all()
		r.h.Session("s").Read(r.t, 0, rec(10, "stranger", 0))
	}, map[Kind]int64{Invented: 1}},
	{"a number that was never sent", func(r *rig) {
		r.all()
		r.h.Session("s").Read(r.t, 0, rec(10, "a", 10))
	}, map[Kind]int64{Invented: 1}},
	{"an offset that cannot be", func(r *rig) {
		r.all()
		n := r.send("a", 0)
		r.h.Session("s").Read(r.t, 0, rec(1<<60, "a", n))
	}, map[Kind]int64{Invented: 1}},
	{"a reader is given an offset twice", func(r *rig) {
		r.all()
		s := r.h.Session("s")
		s.readRun(r.t, 0, rec(0, "a", 0), 5)
		s.readRun(r.t, 0, rec(4, "a", 4), 3)
	}, map[Kind]int64{Gap: 1}},
	{"a reader is not given an offset that others have", func(r *rig) {
		r.all()
		s := r.h.Session("s")
		s.readRun(r.t, 0, rec(0, "a", 0), 5)
		s.readRun(r.t, 0, rec(6, "a", 6), 3)
	}, map[Kind]int64{Gap: 1}},
	{"nobody is given the first record, which was not acknowledged", func(r *rig) {
		r.all()
		r.send("b", 1)
		r.send("b", 1)
		r.h.Session("s").Read(r.t, 1, rec(1, "b", 1))
	}, map[Kind]int64{Gap: 1}},
	{"other bytes than were sent", func(r *rig) {
		r.all()
		n := r.send("a", 0)
		r.h.Session("s").Read(r.t, 0, Record{Offset: 10, Writer: "a", Number: n, Sum: 1})
	}, map[Kind]int64{Corrupt: 1}},
	{"two readers are given different records at an offset", func(r *rig) {
		r.all()
		n, m := r.send("a", 0), r.send("b", 0)
		r.h.Session("s").Read(r.t, 0, rec(10, "a", n))
		r.h.Session("u").Read(r.t, 0, rec(10, "b", m))
	}, map[Kind]int64{Diverged: 1}},
	{"a later read of an offset gives other bytes", func(r *rig) {
		r.all()
		r.h.Session("s").Read(r.t, 0, Record{Offset: 3, Writer: "a", Number: 3, Sum: 1})
	}, map[Kind]int64{Diverged: 1}},
	{"a member of a group is given another record than a reader", func(r *rig) {
		r.all()
		n := r.send("b", 0)
		r.g.Member("m").Delivered(0, rec(3, "b", n))
	}, map[Kind]int64{Diverged: 1}},
	{"a foreign record of a shared topic is not the same for all", func(r *rig) {
		r.all()
		shared := r.h.Topic("shared", TopicOptions{Partitions: 1, Contiguous: true, Shared: true})
		r.h.Session("s").Read(shared, 0, Record{Offset: 0, Sum: 1})
		r.h.Session("u").Read(shared, 0, Record{Offset: 0, Sum: 2})
	}, map[Kind]int64{Diverged: 1}},
	{"acknowledged behind what was acknowledged before it was sent", func(r *rig) {
		n := r.send("b", 0)
		r.ack("b", n, 0, 4)
		r.all()
	}, map[Kind]int64{Backdated: 1, Lost: 1}},
	{"acknowledged behind an end that was seen before it was sent", func(r *rig) {
		r.all()
		r.t.Begin("watcher", 1).End(3)
		n := r.send("b", 1)
		r.ack("b", n, 1, 0)
		r.h.Session("s").Read(r.t, 1, rec(0, "b", n))
		r.g.Member("m").Delivered(1, rec(0, "b", n))
	}, map[Kind]int64{Backdated: 1}},
	{"the start rises and nobody asked for it", func(r *rig) {
		r.all()
		r.h.Session("s").Ends(r.t, 0, 10, 2)
	}, map[Kind]int64{Trimmed: 1}},
	{"the start rises further than was asked for", func(r *rig) {
		r.all()
		r.t.AllowStart(0, 2)
		r.t.Begin("watcher", 0).Start(3)
	}, map[Kind]int64{Trimmed: 1}},
	{"an end that does not show what was acknowledged", func(r *rig) {
		r.all()
		r.t.Begin("watcher", 0).End(9)
	}, map[Kind]int64{Stale: 1}},
	{"a fetch of an acknowledged record brings nothing", func(r *rig) {
		r.all()
		r.t.Begin("watcher", 0).Fetched(9, 0, 10)
	}, map[Kind]int64{Stale: 1}},
	{"a fetch of an acknowledged record is out of range", func(r *rig) {
		r.all()
		r.t.Begin("watcher", 0).OutOfRange(9)
	}, map[Kind]int64{Stale: 1}},
	{"a reader is told that where it stands is out of range", func(r *rig) {
		r.all()
		s := r.h.Session("s")
		s.readRun(r.t, 0, rec(0, "a", 0), 5)
		s.OutOfRange(r.t, 0)
	}, map[Kind]int64{Stale: 1}},
	{"the end goes back between two that ask one after the other", func(r *rig) {
		r.all()
		r.t.Begin("one", 0).End(12)
		r.t.Begin("two", 0).End(11)
	}, map[Kind]int64{EndBack: 1}},
	{"the end goes back after a reader saw it in a fetch", func(r *rig) {
		r.all()
		r.h.Session("s").Ends(r.t, 0, 12, 0)
		r.t.Begin("two", 0).End(11)
	}, map[Kind]int64{EndBack: 1}},
	{"the end goes back within a session", func(r *rig) {
		r.all()
		s := r.h.Session("s")
		s.Ends(r.t, 0, 10, 0)
		s.Ends(r.t, 0, 9, 0)
	}, map[Kind]int64{EndBack: 1}},
	{"the start goes back between two that ask one after the other", func(r *rig) {
		r.all()
		r.t.AllowStart(0, 5)
		r.t.Begin("one", 0).Start(5)
		r.t.Begin("two", 0).Start(0)
	}, map[Kind]int64{StartBack: 1}},
	{"the start goes back within a session", func(r *rig) {
		r.all()
		r.t.AllowStart(0, 5)
		s := r.h.Session("s")
		s.Ends(r.t, 0, 10, 5)
		s.Ends(r.t, 0, 10, 4)
	}, map[Kind]int64{StartBack: 1}},
	{"a committed offset goes back", func(r *rig) {
		r.all()
		r.g.Commit(0, 5).Done(false)
		r.g.Commit(0, 8).Done(false)
		r.g.BeginFetch("watcher", 0).End(5)
	}, map[Kind]int64{CommitBack: 1}},
	{"a committed offset is forgotten", func(r *rig) {
		r.all()
		r.g.Commit(0, 5).Done(false)
		r.g.BeginFetch("watcher", 0).End(NoCommit)
	}, map[Kind]int64{CommitBack: 1}},
	{"a committed offset that was read goes back", func(r *rig) {
		r.all()
		c := r.g.Commit(0, 5)
		r.g.BeginFetch("watcher", 0).End(5)
		r.g.BeginFetch("watcher", 0).End(NoCommit)
		c.Failed()
	}, map[Kind]int64{CommitBack: 1}},
	{"a member begins before what was committed", func(r *rig) {
		r.all()
		r.g.Commit(0, 5).Done(false)
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(3, "a", 3), 1)
	}, map[Kind]int64{CommitBack: 1}},
	{"a committed offset that nobody committed", func(r *rig) {
		r.all()
		r.g.Commit(0, 5).Done(false)
		r.g.BeginFetch("watcher", 0).End(7)
	}, map[Kind]int64{Invented: 1}},
	{"a member begins behind what was committed", func(r *rig) {
		r.all()
		r.g.Commit(0, 5).Done(false)
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(6, "a", 6), 1)
	}, map[Kind]int64{Skipped: 1}},
	{"a member is not given a record in between", func(r *rig) {
		r.all()
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(0, "a", 0), 3)
		m.deliver(0, rec(4, "a", 4), 1)
	}, map[Kind]int64{Skipped: 1}},
	{"a record is read and never delivered to the group", func(r *rig) {
		r.all()
		r.write("a", 0, 10, 1)
		r.h.Session("s").Read(r.t, 0, rec(10, "a", 10))
	}, map[Kind]int64{Undelivered: 1}},
	{"a topic that was created is missing", func(r *rig) {
		r.all()
		m := r.h.Metadata()
		m.Call(0, MetaCall{Operation: CreateTopic, Topic: "x", Partitions: 1}).Return(MetaAnswer{Outcome: Done})
		m.Call(0, MetaCall{Operation: DescribeTopic, Topic: "x"}).Return(MetaAnswer{Outcome: Missing})
	}, map[Kind]int64{NotLinearized: 1}},
}

func TestBadHistories(t *testing.T) {
	for _, c := range bad {
		r := newRig()
		r.write("a", 0, 0, 10)
		c.make(r)
		v := r.h.Check()
		if !maps.Equal(v.Counts, c.want) {
			t.Errorf("%s: found %v, want %v: %v", c.name, v.Counts, c.want, v.Violations)
		}
		if again := r.h.Check(); !maps.Equal(again.Counts, v.Counts) {
			t.Errorf("%s: another look finds %v", c.name, again.Counts)
		}
	}
}

// A kind that no bad history shows might never be found.
func TestEveryKindHasABadHistory(t *testing.T) {
	shown := map[Kind]bool{}
	for _, c := range bad {
		for k := range c.want {
			shown[k] = true
		}
	}
	for _, k := range []Kind{Lost, Doubled, Reordered, Moved, Invented, Gap, Corrupt, Diverged, Backdated, Trimmed, Stale, EndBack, StartBack, CommitBack, Skipped, Undelivered, NotLinearized} {
		if !shown[k] {
			t.Errorf("no history shows %s", k)
		}
	}
}

// goodOnes are histories that look odd and are right.
var goodOnes = []struct {
	name string
	make func(r *rig)
}{
	{"nothing more", func(*rig) {}},
	{"an unacknowledged record is there", func(r *rig) {
		n := r.send("a", 0)
		r.h.Writer("a", r.t).Failed(n)
		r.h.Session("s").Read(r.t, 0, rec(10, "a", n))
	}},
	{"an unacknowledged record is not there, and the next one is", func(r *rig) {
		r.h.Writer("a", r.t).Failed(r.send("a", 0))
		n := r.send("a", 0)
		r.ack("a", n, 0, 10)
		r.h.Session("s").Read(r.t, 0, rec(10, "a", n))
		r.g.Member("m").Delivered(0, rec(10, "a", n))
	}},
	{"read before its acknowledgement comes", func(r *rig) {
		n := r.send("a", 0)
		r.h.Session("s").Read(r.t, 0, rec(10, "a", n))
		r.g.Member("m").Delivered(0, rec(10, "a", n))
		r.ack("a", n, 0, 10)
	}},
	{"acknowledged in another order than sent, by two writers", func(r *rig) {
		n, m := r.send("a", 1), r.send("b", 1)
		r.ack("b", m, 1, 0)
		r.ack("a", n, 1, 1)
		s, k := r.h.Session("s"), r.g.Member("m")
		for _, x := range []Record{rec(0, "b", m), rec(1, "a", n)} {
			s.Read(r.t, 1, x)
			k.Delivered(1, x)
		}
	}},
	{"acknowledged below what was seen after it was sent", func(r *rig) {
		n := r.send("a", 0)
		r.write("b", 0, 11, 1)
		r.ack("a", n, 0, 10)
		s, k := r.h.Session("s"), r.g.Member("m")
		for _, x := range []Record{rec(10, "a", n), rec(11, "b", 0)} {
			s.Read(r.t, 0, x)
			k.Delivered(0, x)
		}
	}},
	{"a device sent a message again, and it is there twice", func(r *rig) {
		w := r.h.Writer("device", r.t)
		n := w.Send(Anywhere, sum("device", 0))
		w.Resent(n)
		w.Stored(n)
		s, k := r.h.Session("s"), r.g.Member("m")
		for _, x := range []Record{rec(10, "device", n), rec(11, "device", n)} {
			s.Read(r.t, 0, x)
			k.Delivered(0, x)
		}
	}},
	{"a question that was on its way does not show what was acknowledged meanwhile", func(r *rig) {
		c := r.t.Begin("watcher", 0)
		r.write("a", 0, 10, 1)
		c.Fetched(10, 0, 10)
		x := rec(10, "a", 10)
		r.h.Session("s").Read(r.t, 0, x)
		r.g.Member("m").Delivered(0, x)
	}},
	{"two questions at once are answered differently", func(r *rig) {
		one, two := r.t.Begin("one", 0), r.t.Begin("two", 0)
		one.End(12)
		two.End(11)
	}},
	{"a fetch behind the end is out of range", func(r *rig) { r.t.Begin("watcher", 0).OutOfRange(11) }},
	{"records are removed because somebody asked for it", func(r *rig) {
		r.t.AllowStart(0, 5)
		r.t.Begin("watcher", 0).Start(5)
		r.t.Begin("watcher", 0).OutOfRange(3)
		r.h.Session("s").Ends(r.t, 0, 10, 5)
	}},
	{"records were removed before anybody could read them", func(r *rig) {
		r.write("b", 1, 0, 3)
		r.t.AllowStart(1, 3)
	}},
	{"a new session begins at the start again", func(r *rig) {
		r.h.Session("s").readRun(r.t, 0, rec(0, "a", 0), 10)
		s := r.h.Session("s")
		s.readRun(r.t, 0, rec(0, "a", 0), 10)
		s.Seek(r.t, 0, 3)
		s.readRun(r.t, 0, rec(3, "a", 3), 2)
	}},
	{"records of others in a shared topic", func(r *rig) {
		shared := r.h.Topic("shared", TopicOptions{Partitions: 1, Contiguous: true, Shared: true})
		for range 2 {
			r.h.Session("s").Read(shared, 0, Record{Offset: 0, Writer: "whoever", Number: 7, Sum: 1})
		}
	}},
	{"a commit that failed took effect", func(r *rig) {
		r.g.Commit(0, 5).Failed()
		r.g.BeginFetch("watcher", 0).End(5)
		r.g.BeginFetch("watcher", 0).End(5)
	}},
	{"a commit that failed took effect after a later one", func(r *rig) {
		r.g.Commit(0, 5).Failed()
		r.g.Commit(0, 8).Done(false)
		r.g.BeginFetch("watcher", 0).End(5)
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(5, "a", 5), 2)
	}},
	{"a commit that was sent twice took effect again later", func(r *rig) {
		r.g.Commit(0, 5).Done(true)
		r.g.Commit(0, 8).Done(false)
		r.g.BeginFetch("watcher", 0).End(5)
	}},
	{"a question for the commit was on its way when it was committed", func(r *rig) {
		f := r.g.BeginFetch("watcher", 0)
		r.g.Commit(0, 5).Done(false)
		f.End(NoCommit)
	}},
	{"a member begins where the one before it had committed, and what came after that is delivered twice", func(r *rig) {
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(0, "a", 0), 6)
		r.g.Commit(0, 4).Done(false)
		m.Revoked(0)
		n := r.g.Member("n")
		n.Assigned(0)
		n.deliver(0, rec(4, "a", 4), 6)
	}},
	{"a partition is given back and assigned again", func(r *rig) {
		m := r.g.Member("m")
		m.Assigned(0)
		m.deliver(0, rec(0, "a", 0), 2)
		m.Revoked(0)
		m.Assigned(0)
		m.deliver(0, rec(0, "a", 0), 2)
	}},
}

func TestGoodHistories(t *testing.T) {
	for _, c := range goodOnes {
		r := newRig()
		r.write("a", 0, 0, 10)
		r.all()
		c.make(r)
		if v := r.h.Check(); !v.OK() {
			t.Errorf("%s: found %v: %v", c.name, v.Counts, v.Violations)
		}
	}
}

func TestVerdictCounts(t *testing.T) {
	r := newRig()
	r.write("a", 0, 0, 10)
	if n := r.h.Unread(); n != 10 {
		t.Errorf("%d unread, want 10", n)
	}
	if n := r.g.Left(); n != 0 {
		t.Errorf("%d left to deliver before anything was read", n)
	}
	r.h.Session("s").readRun(r.t, 0, rec(0, "a", 0), 10)
	if n := r.g.Left(); n != 10 {
		t.Errorf("%d left to deliver, want 10", n)
	}
	r.all()
	n := r.send("a", 0)
	r.send("a", 0)
	r.h.Session("s").Read(r.t, 0, rec(10, "a", n))
	v := r.h.Check()
	if v.Sent != 12 || v.Acked != 10 || v.Found != 11 || v.Unknown != 1 || r.h.Unread() != 0 || r.g.Left() != 0 || r.h.Found() != 0 {
		t.Errorf("verdict %+v", v)
	}
}

// The list of violations is bounded for each kind, so that many of one do not hide another.
func TestManyViolations(t *testing.T) {
	r := newRig()
	r.write("a", 0, 0, 1000)
	r.h.Session("s").Read(r.t, 1, rec(0, "x", 0))
	r.g.Commit(0, 5).Done(false)
	for range 100 {
		r.g.BeginFetch("watcher", 0).End(NoCommit)
	}
	v := r.h.Check()
	if v.Counts[Lost] != 1000 || v.Counts[CommitBack] != 100 || v.Counts[Invented] != 1 || len(v.Violations) != 2*violationsMax+1 || r.h.Found() != 101 {
		t.Errorf("%v, %d kept", v.Counts, len(v.Violations))
	}
}

// Any single tampering with what one of two readers is given must be noticed, wherever it is.
func TestEveryTamperingOfAReaderIsNoticed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRig()
		var log []Record
		for range rapid.IntRange(2, 30).Draw(t, "records") {
			w := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "writer")
			n := r.send(w, 0)
			r.ack(w, n, 0, int64(len(log)))
			log = append(log, rec(int64(len(log)), w, n))
		}
		honest := slices.Clone(log)
		i := rapid.IntRange(0, len(log)-1).Draw(t, "at")
		switch rapid.SampledFrom([]string{"drop", "double", "swap", "flip", "cut", "shift"}).Draw(t, "tamper") {
		case "drop":
			log = slices.Delete(log, i, i+1)
			if i == len(log) {
				honest = nil // only what nobody reads shows that the last one is missing
			}
		case "double":
			log = slices.Insert(log, i, log[i])
		case "swap":
			j := (i + 1) % len(log)
			log[i].Writer, log[i].Number, log[i].Sum, log[j].Writer, log[j].Number, log[j].Sum = log[j].Writer, log[j].Number, log[j].Sum, log[i].Writer, log[i].Number, log[i].Sum
		case "flip":
			log[i].Sum ^= 1 << rapid.IntRange(0, 31).Draw(t, "bit")
		case "cut":
			log, honest = log[:i], nil
		case "shift":
			for j := i; j < len(log); j++ {
				log[j].Offset++
			}
		}
		if i == 0 {
			honest = nil // a reader that begins later is no wrong reader, unless nobody begins earlier
		}
		for _, given := range [][]Record{log, honest} {
			s := r.h.Session("s")
			for _, x := range given {
				s.Read(r.t, 0, x)
			}
		}
		r.g.parts = nil // nothing is delivered here
		if r.h.Check().OK() {
			t.Fatalf("not noticed")
		}
	})
}
