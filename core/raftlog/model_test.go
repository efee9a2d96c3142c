package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"sluice/core/vfs"
)

// small files, so that every test crosses several of them.
var small = Options{FirstSegmentBytes: 2 << 10, SegmentBytes: 8 << 10, CacheBytes: 1 << 10}

// model is what a log must hold: everything whose call returned, and perhaps the call that did not.
type model struct {
	first, last    uint64
	entries        map[uint64]raft.Log
	term, voteTerm uint64
	candidate      string
}

func newModel() *model { return &model{entries: map[uint64]raft.Log{}} }

func (m *model) clone() *model {
	c := *m
	c.entries = map[uint64]raft.Log{}
	for k, v := range m.entries {
		c.entries[k] = v
	}
	return &c
}

func (m *model) store(logs []*raft.Log) {
	for _, l := range logs {
		if m.last == 0 {
			m.first = l.Index
		}
		m.last = l.Index
		m.entries[l.Index] = *l
	}
}

func (m *model) deleteRange(lo, hi uint64) {
	for i := lo; i <= hi; i++ {
		delete(m.entries, i)
	}
	switch {
	case lo <= m.first && hi >= m.last:
		m.first, m.last = 0, 0
	case lo <= m.first:
		m.first = hi + 1
	default:
		m.last = lo - 1
	}
}

// diff says how a log differs from the model, "" if it does not.
func (m *model) diff(s *Store) string {
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	if first != m.first || last != m.last {
		return fmt.Sprintf("log holds %d to %d, want %d to %d", first, last, m.first, m.last)
	}
	term, _ := s.GetUint64([]byte(keyCurrentTerm))
	voteTerm, _ := s.GetUint64([]byte(keyVoteTerm))
	cand, _ := s.Get([]byte(keyVoteCand))
	if term != m.term || voteTerm != m.voteTerm || string(cand) != m.candidate {
		return fmt.Sprintf("term %d vote %d %q, want %d %d %q", term, voteTerm, cand, m.term, m.voteTerm, m.candidate)
	}
	if m.last == 0 {
		return ""
	}
	for i := m.first; i <= m.last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return fmt.Sprintf("get %d: %v", i, err)
		}
		want := m.entries[i]
		if l.Index != i || l.Term != want.Term || l.Type != want.Type || !bytes.Equal(l.Data, want.Data) || !bytes.Equal(l.Extensions, want.Extensions) {
			return fmt.Sprintf("entry %d differs", i)
		}
	}
	var l raft.Log
	for _, i := range []uint64{m.first - 1, m.last + 1} {
		if err := s.GetLog(i, &l); err != raft.ErrLogNotFound {
			return fmt.Sprintf("get %d outside of the log: %v", i, err)
		}
	}
	return ""
}

func entries(first uint64, term uint64, sizes ...int) []*raft.Log {
	var logs []*raft.Log
	for i, n := range sizes {
		data := make([]byte, n)
		for j := range data {
			data[j] = byte(first + uint64(i) + uint64(j)*term)
		}
		logs = append(logs, &raft.Log{Index: first + uint64(i), Term: term, Type: raft.LogType(i % 2), Data: data})
	}
	return logs
}

// step does one random thing to log and model. The model changes only if the log reported success;
// it returns the model as it would be if the failed call had its effect.
func step(t *rapid.T, s *Store, m *model) (maybe *model) {
	next := m.clone()
	var err error
	switch kind := rapid.IntRange(0, 11).Draw(t, "kind"); {
	case kind < 6:
		first := m.last + 1
		if m.last == 0 {
			first = rapid.Uint64Range(1, 50).Draw(t, "first")
		}
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 200), rapid.IntRange(0, 5000)), 1, 5).Draw(t, "sizes")
		logs := entries(first, max(m.term, 1), sizes...)
		next.store(logs)
		err = s.StoreLogs(logs)
	case kind == 6 && m.last > 0:
		hi := rapid.Uint64Range(m.first, m.last).Draw(t, "hi")
		next.deleteRange(m.first, hi)
		err = s.DeleteRange(m.first, hi)
	case kind == 7 && m.last > 0:
		lo := rapid.Uint64Range(m.first, m.last).Draw(t, "lo")
		next.deleteRange(lo, m.last)
		err = s.DeleteRange(lo, m.last)
	case kind == 8:
		next.term += rapid.Uint64Range(0, 2).Draw(t, "term")
		err = s.SetUint64([]byte(keyCurrentTerm), next.term)
	case kind == 9:
		cand := fmt.Sprintf("%d.abc", rapid.IntRange(1, 3).Draw(t, "candidate"))
		if m.term == 0 {
			return m
		}
		if err = s.SetUint64([]byte(keyVoteTerm), m.term); err == nil {
			next.voteTerm, next.candidate = m.term, cand
			err = s.Set([]byte(keyVoteCand), []byte(cand))
		}
	case kind == 10:
		err = s.prepare()
	default:
		return m
	}
	if err == nil {
		*m = *next
		return m
	}
	return next
}

func TestModelWithReopenAndCrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := vfs.NewMem()
		s, err := Open(disk, "log", small)
		if err != nil {
			t.Fatal(err)
		}
		m := newModel()
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			step(t, s, m)
			if d := m.diff(s); d != "" {
				t.Fatal(d)
			}
			switch rapid.IntRange(0, 5).Draw(t, "then") {
			case 0:
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = reopen(t, disk, m)
			case 1:
				seed := rapid.Uint64().Draw(t, "seed")
				rng := rand.New(rand.NewPCG(seed, 1))
				disk = disk.CrashClone(func() bool { return rng.IntN(2) == 0 })
				s.Close()
				s = reopen(t, disk, m)
			}
		}
		s.Close()
	})
}

func reopen(t *rapid.T, disk vfs.FS, m *model) *Store {
	s, err := Open(disk, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	if d := m.diff(s); d != "" {
		t.Fatalf("after reopening: %s", d)
	}
	return s
}

// TestCrashAtEveryCall stops the disk before each call in turn, as a power cut does, keeps any part
// of what was not synced, and expects the log before or after the call that did not return.
func TestCrashAtEveryCall(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := vfs.NewMem()
		fault := vfs.NewFault(disk)
		left := rapid.IntRange(0, 60).Draw(t, "calls until the cut")
		cut := errors.New("power cut")
		torn := rapid.IntRange(0, 300).Draw(t, "torn")
		fault.SetHook(func(op vfs.Op, _ string) error {
			if !op.Changes() {
				return nil
			}
			if left--; left == 0 && op == vfs.OpWrite {
				return &vfs.TornError{N: torn, Err: cut}
			}
			if left <= 0 {
				return cut
			}
			return nil
		})
		m, maybe := newModel(), newModel()
		s, err := Open(fault, "log", small)
		for err == nil && s.Err() == nil && left > 0 {
			maybe = step(t, s, m)
		}
		if s != nil {
			s.Close()
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		after := disk.CrashClone(func() bool { return rng.IntN(2) == 0 })
		s, err = Open(after, "log", small)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		checkBetween(t, s, m, maybe)
	})
}

// checkBetween accepts the log before or after a call, or with a prefix of the entries that it was
// to store.
func checkBetween(t *rapid.T, s *Store, before, after *model) {
	d := before.diff(s)
	if d == "" || after.diff(s) == "" {
		return
	}
	last, _ := s.LastIndex()
	if last > before.last && last < after.last {
		part := after.clone()
		part.deleteRange(last+1, after.last)
		if part.diff(s) == "" {
			return
		}
	}
	t.Fatalf("neither before nor after: %s; %s", d, after.diff(s))
}
