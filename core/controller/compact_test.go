package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
)

// compacting makes a node look for what is to be compacted often.
func compacting(o Options) Options {
	o.CompactionInterval = 100 * time.Millisecond
	return o
}

func compactTopic(name string, replicas int16) meta.NewTopic {
	return meta.NewTopic{Name: name, Partitions: 1, ReplicationFactor: replicas, Configs: map[string]string{
		"cleanup.policy": "compact", "internal.segment.bytes": "16384", "min.cleanable.dirty.ratio": "0.01",
	}}
}

// keyedLoad writes keyed records to one partition and knows what is the last of each key.
type keyedLoad struct {
	t    *testing.T
	key  partition.Key
	n    int   // records written
	end  int64 // offset behind the last of them: some are there twice, as their fate was unknown
	last map[string]string
}

func newKeyedLoad(t *testing.T, m *member, topic string) *keyedLoad {
	return &keyedLoad{t: t, key: partition.Key{Topic: m.Image().Topic(topic).ID}, last: map[string]string{}}
}

// write appends batches of ten records of a hundred keys, wherever the leader is.
func (l *keyedLoad) write(all []*member, batches int) {
	l.t.Helper()
	for range batches {
		b := record.NewBuilder(record.BuilderOptions{Codec: record.Zstd})
		wrote := map[string]string{}
		for range 10 {
			k, v := fmt.Sprint("key", l.n%100), fmt.Sprintf("value %d of this", l.n)
			b.Add(int64(l.n), []byte(k), []byte(v), nil)
			wrote[k] = v
			l.n++
		}
		all[0].eventually("an append", func() bool { return l.try(all, b.Build(nil)) })
		maps.Copy(l.last, wrote)
	}
}

// wrong says what a reader of all of it got for a key that is not what was written last, "" when all is right.
func (l *keyedLoad) wrong(last map[string]string) string {
	for k, v := range l.last {
		if last[k] != v {
			return fmt.Sprintf("%s is %q, was written as %q", k, last[k], v)
		}
	}
	if len(last) != len(l.last) {
		return fmt.Sprintf("%d keys, %d were written", len(last), len(l.last))
	}
	return ""
}

func (l *keyedLoad) try(all []*member, batch record.Batch) bool {
	for _, m := range all {
		_, g, ok := m.Local(l.key.Topic, 0)
		if !ok {
			continue
		}
		if _, leads := g.Serving(); !leads {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		res, err := g.Propose(partition.EncodeAppend([]partition.Append{{Key: l.key, Batches: batch}})).Wait(ctx)
		cancel()
		if results, ok := res.([]partition.AppendResult); err == nil && ok && results[0].Err == nil {
			l.end = results[0].Base + int64(batch.Count())
			return true
		}
	}
	return false
}

// read reads a partition from an offset on and returns the last value of each key, and how many records there were. It begins again where
// a segment is being replaced: a client asks again then, or elsewhere.
func (l *keyedLoad) read(m *member, from int64) (last map[string]string, records int) {
	l.t.Helper()
	m.without("a whole partition", func() (wrong string) {
		last, records, wrong = l.readOnce(m, from)
		return wrong
	})
	return last, records
}

func (l *keyedLoad) readOnce(m *member, from int64) (last map[string]string, records int, wrong string) {
	l.t.Helper()
	p := m.part(l.key)
	if p == nil {
		return nil, 0, "no replica"
	}
	last = map[string]string{}
	for at := from; at < p.End(); {
		c, err := p.Read(at, 1<<20, false)
		if errors.Is(err, commitlog.ErrMissing) {
			return nil, 0, fmt.Sprintf("read at %d of %d: %v", at, p.End(), err)
		}
		if err != nil || c == nil {
			l.t.Fatalf("node %d: read at %d of %d: %v", m.Self(), at, p.End(), err)
		}
		data, err := c.Bytes()
		if err != nil {
			l.t.Fatal(err)
		}
		if c.Next() <= at {
			l.t.Fatalf("node %d: no progress at %d", m.Self(), at)
		}
		at = c.Next()
		c.Release()
		for rest := data; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				l.t.Fatal(err)
			}
			_ = b.Each(func(r record.Record) error {
				last[string(r.Key)] = string(r.Value)
				records++
				return nil
			})
		}
	}
	return last, records, ""
}

// settled waits until all that was written is on all nodes, and compacted as far as it can be, also on their disks. A node that has just come back lacks the end: what it has may be compacted, and is not all.
func (l *keyedLoad) settled(all []*member, topic string) {
	l.t.Helper()
	l.t.Logf("of %d records, %d are there twice", l.n, l.end-int64(l.n))
	for _, m := range all {
		m.without("everything, compacted", func() string {
			p := m.part(l.key)
			if p == nil {
				return "no replica"
			}
			if files := len(m.segmentFiles(topic)); p.End() < l.end || p.Dirty() == 0 || p.Bytes() > 3*16384 || files > 3 {
				return fmt.Sprintf("end %d of %d, clean to %d, %d bytes, %d segment files", p.End(), l.end, p.Dirty(), p.Bytes(), files)
			}
			for _, s := range m.Sets() {
				if !s.Complete() || s.Unsettled() > 0 {
					return "segments are missing or unsettled"
				}
			}
			return ""
		})
	}
	for _, m := range all {
		last, records := l.read(m, 0)
		if wrong := l.wrong(last); wrong != "" || records > l.n/2 {
			l.t.Errorf("node %d: %d records of %d are left, the log ends at %d of %d; %s", m.Self(), records, l.n, m.end(l.key), l.end, wrong)
		}
	}
}

func TestCompactionOnOneNode(t *testing.T) {
	a := start(t, compacting(options(1)))
	a.create(compactTopic("keyed", 1))
	served(t, []*member{a}, "keyed")
	l := newKeyedLoad(t, a, "keyed")
	l.write([]*member{a}, 1000)
	l.settled([]*member{a}, "keyed")
	a.stop()
	a = a.restart()
	l.settled([]*member{a}, "keyed")
}

func compactingTrio(t *testing.T, more ...func(*Options)) []*member {
	t.Helper()
	launch := func(o Options) *member {
		o = compacting(o)
		for _, f := range more {
			f(&o)
		}
		return start(t, o)
	}
	a := launch(options(1))
	b := launch(options(2, a.Addr()))
	c := launch(options(3, a.Addr()))
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	return []*member{a, b, c}
}

func TestCompactionOnThreeNodes(t *testing.T) {
	all := compactingTrio(t)
	all[0].create(compactTopic("keyed", 3))
	served(t, all, "keyed")
	fullISR(t, all, "keyed")
	l := newKeyedLoad(t, all[0], "keyed")
	l.write(all, 1000)
	l.settled(all, "keyed")
	sameFiles(t, all, "keyed")
	for from := range int64(l.n) {
		if from%97 == 0 {
			l.read(all[int(from)%3], from)
		}
	}
}

// leads returns the member that leads the partition.
func (l *keyedLoad) leads(all []*member) *member {
	l.t.Helper()
	var found *member
	all[0].eventually("a leader", func() bool {
		for _, m := range all {
			if _, g, ok := m.Local(l.key.Topic, 0); ok {
				if _, leads := g.Serving(); leads {
					found = m
					return true
				}
			}
		}
		return false
	})
	return found
}

// TestCompactionWhileAReplicaIsAway: it comes back to a log with the swap, or to a checkpoint that has it behind it, and fetches what it lacks.
func TestCompactionWhileAReplicaIsAway(t *testing.T) {
	for _, by := range []string{"log", "checkpoint"} {
		t.Run(by, func(t *testing.T) {
			all := compactingTrio(t, func(o *Options) {
				if by == "checkpoint" {
					o.CheckpointBytes = 16 << 10 // the log from before the swap goes soon
				}
			})
			all[0].create(compactTopic("keyed", 3))
			served(t, all, "keyed")
			fullISR(t, all, "keyed")
			l := newKeyedLoad(t, all[0], "keyed")
			l.settledEnough(all)
			away := (slices.Index(all, l.leads(all)) + 1) % 3
			all[away].crash()
			rest := []*member{all[(away+1)%3], all[(away+2)%3]}
			l.write(rest, 800)
			l.settled(rest, "keyed")
			all[away] = all[away].restart()
			l.settled(all, "keyed")
			sameFiles(t, all, "keyed")
		})
	}
}

// settledEnough waits until the first swap has come, so that all nodes are known to know it.
func (l *keyedLoad) settledEnough(all []*member) {
	l.t.Helper()
	l.write(all, 100)
	for _, m := range all {
		m.eventually("a first compaction", func() bool { p := m.part(l.key); return p != nil && p.Dirty() > 0 })
	}
}

// TestLeaderGoesWhileItCompacts ends the leader at each step of a round. What it has rewritten is forgotten, and the next leader begins anew.
func TestLeaderGoesWhileItCompacts(t *testing.T) {
	for _, step := range []string{"rewrite", "stage", "swap"} {
		t.Run(step, func(t *testing.T) {
			all := compactingTrio(t)
			all[0].create(compactTopic("keyed", 3))
			served(t, all, "keyed")
			fullISR(t, all, "keyed")
			l := newKeyedLoad(t, all[0], "keyed")
			l.settledEnough(all)
			reached, gone := make(chan *member, 100), make(chan struct{})
			goOn := sync.OnceFunc(func() { close(gone) })
			defer goOn()            // of a test that fails as well
			for _, m := range all { // whoever leads by then
				hook := func(at string) {
					if at == step {
						select {
						case reached <- m:
						default:
						}
						<-gone
					}
				}
				m.compact.step.Store(&hook)
			}
			l.write(all, 300)
			var leader *member
			select {
			case leader = <-reached:
			case <-time.After(patience):
				t.Fatalf("no compaction comes to %s", step)
			}
			_ = leader.node.Close()
			goOn()
			leader.crash()
			i := slices.Index(all, leader)
			rest := []*member{all[(i+1)%3], all[(i+2)%3]}
			l.write(rest, 300)
			all[i] = leader.restart()
			l.settled(all, "keyed")
			sameFiles(t, all, "keyed")
		})
	}
}

// TestCompactedPartitionMoves: it is what it was, with its gaps, in the other shard.
func TestCompactedPartitionMoves(t *testing.T) {
	all := compactingTrio(t)
	all[0].create(compactTopic("keyed", 1))
	served(t, all, "keyed")
	l := newKeyedLoad(t, all[0], "keyed")
	l.write(all, 500)
	from := l.leads(all)
	l.settled([]*member{from}, "keyed")
	to := all[(slices.Index(all, from)+1)%3]
	dirty := from.part(l.key).Dirty()
	reassign(t, all, "keyed", 0, to.Self())
	moved(t, all, "keyed", 0, to.Self())
	to.eventually("the partition", func() bool { return to.part(l.key) != nil })
	if got := to.part(l.key).Dirty(); got < dirty {
		t.Errorf("dirty from %d before the move and from %d after it", dirty, got)
	}
	if last, _ := l.read(to, 0); l.wrong(last) != "" {
		t.Errorf("after the move: %s", l.wrong(last))
	}
	l.write(all, 500)
	to.without("what was written, compacted further", func() string {
		p := to.part(l.key)
		if p == nil {
			return "no replica"
		}
		if p.End() < l.end || p.Dirty() <= dirty || p.Bytes() >= 4*16384 {
			return fmt.Sprintf("end %d of %d, clean to %d, before it was to %d, %d bytes", p.End(), l.end, p.Dirty(), dirty, p.Bytes())
		}
		return ""
	})
	if last, _ := l.read(to, 0); l.wrong(last) != "" {
		t.Errorf("after it was compacted again: %s", l.wrong(last))
	}
}
