package controller

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

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
	n    int
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

func (l *keyedLoad) try(all []*member, batch []byte) bool {
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
			return true
		}
	}
	return false
}

// read reads a partition from an offset on and returns the last value of each key, and how many records there were.
func (l *keyedLoad) read(m *member, from int64) (last map[string]string, records int) {
	l.t.Helper()
	p := m.part(l.key)
	last = map[string]string{}
	for at := from; at < p.End(); {
		c, err := p.Read(at, 1<<20, false)
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
	return last, records
}

// settled waits until everything that can be compacted is, on all nodes and on their disks.
func (l *keyedLoad) settled(all []*member, topic string) {
	l.t.Helper()
	for _, m := range all {
		m.eventually("a compacted partition", func() bool {
			p := m.part(l.key)
			if p == nil || p.Dirty() == 0 || p.Bytes() > 3*16384 || len(m.segmentFiles(topic)) > 3 {
				return false
			}
			for _, s := range m.Sets() {
				if !s.Complete() || s.Unsettled() > 0 {
					return false
				}
			}
			return true
		})
	}
	for _, m := range all {
		m.eventually("all that was written", func() bool { return m.part(l.key).End() == int64(l.n) })
		last, records := l.read(m, 0)
		if !maps.Equal(last, l.last) || records > l.n/2 {
			l.t.Errorf("node %d: %d records of %d are left, of %d keys; written %d", m.Self(), records, l.n, len(last), len(l.last))
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

func compactingTrio(t *testing.T) []*member {
	t.Helper()
	a := start(t, compacting(options(1)))
	b := start(t, compacting(options(2, a.Addr())))
	c := start(t, compacting(options(3, a.Addr())))
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
