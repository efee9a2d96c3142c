package partition

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scenario is a fixed history with all that a partition can go through. Acts are
// indexes to apply up to, or -1 for a checkpoint.
type scenario struct {
	entries
	acts []int
}

func newScenario() *scenario {
	s := &scenario{}
	a, b, again := Key{topicID("a"), 0}, Key{topicID("b"), 1}, Key{topicID("a again"), 0}
	small := LogConfig{SegmentBytes: 400}
	s.add(1, EncodeCreate(Create{Key: a, Name: "a", Config: small}))
	s.add(1, EncodeCreate(Create{Key: b, Name: "b", EpochBase: 5, Config: small}))
	s.appends(1, 0, 6, a, b)
	s.applyAll()
	s.checkpoint()
	s.appends(2, 6, 12, a, b)
	s.applyAll()
	s.add(2, EncodeStart([]Start{{a, 9}, {b, 4}}))
	s.appends(3, 12, 15, a, b)
	s.applyAll()
	s.checkpoint()
	s.add(3, EncodeDelete(a))
	s.add(3, EncodeCreate(Create{Key: again, Name: "a", Config: small}))
	s.appends(3, 0, 4, again)
	s.applyAll()
	s.appends(4, 15, 20, b)
	s.add(4, EncodeStart([]Start{{b, -1}}))
	s.applyAll()
	s.checkpoint()
	s.appends(4, 20, 24, b)
	s.appends(4, 4, 8, again)
	s.applyAll()
	s.checkpoint()
	s.appends(5, 24, 26, b)
	s.applyAll()
	return s
}

// appends adds entries with idempotent batches from one sequence to another,
// each twice, to some partitions at once.
func (s *scenario) appends(term uint64, from, to int32, keys ...Key) {
	for seq := from; seq < to; seq++ {
		var items []Append
		for _, k := range keys {
			b := testBatch{producer: 1, sequence: seq, count: 1, time: int64(1000 + seq), value: fmt.Sprintf("value %d of ", seq)}
			items = append(items, Append{Key: k, Batches: b.build()}, Append{Key: k, Batches: b.build()})
		}
		s.add(term, EncodeAppend(items))
	}
}

func (s *scenario) applyAll()   { s.acts = append(s.acts, len(s.log)) }
func (s *scenario) checkpoint() { s.acts = append(s.acts, -1) }

// play lets a replica go through the acts. It stops at the first sign of a
// failure, which it returns, and compares every answer with those given before.
func (s *scenario) play(t testing.TB, r *replica, answers *[]string) error {
	t.Helper()
	for _, act := range s.acts {
		if act < 0 {
			if err := r.tryCheckpoint(); err != nil {
				return err
			}
			continue
		}
		from := r.applied
		for i, result := range r.apply(s.log, act) {
			answer := describe(result)
			if answer == ErrStopped.Error() {
				return r.set.Err()
			}
			if at := from + i; at == len(*answers) {
				*answers = append(*answers, answer)
			} else if (*answers)[at] != answer {
				t.Fatalf("entry %d was answered %q and now %q", at, (*answers)[at], answer)
			}
		}
	}
	return r.set.Err()
}

// outcome is what a replica must look like at the end.
type outcome struct {
	segments map[string]string
	sections map[Key]string
}

func (r *replica) outcome() outcome { return outcome{r.segments(), r.sections()} }

func (o outcome) compare(t testing.TB, what string, r *replica) {
	t.Helper()
	got := r.outcome()
	if diff := cmp.Diff(o.segments, got.segments); diff != "" {
		t.Fatalf("%s: segments differ: %s", what, diff)
	}
	if diff := cmp.Diff(o.sections, got.sections); diff != "" {
		t.Fatalf("%s: states differ: %s", what, diff)
	}
}

// checkDirs fails when something is left in the data directory that should have
// gone with the last checkpoint.
func checkDirs(t testing.TB, r *replica) {
	t.Helper()
	for _, name := range strings.Fields(r.names()) {
		if strings.HasSuffix(name, deletedSuffix) {
			t.Errorf("%s is still there", name)
		}
	}
}
