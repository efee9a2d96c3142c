package broker

import (
	"context"
	"fmt"
	"time"

	"sluice/core/group"
	"sluice/core/partition"
)

const (
	// restateInterval is how often a coordinator looks whether its log has grown too long.
	restateInterval = time.Minute
	// restateMin records are read in well under a second when a coordinator begins: a shorter log is left as it is.
	restateMin = 100_000
	// restateFactor: the log may hold so many records for each one that counts. Restating then writes a quarter of what was written since.
	restateFactor = 4
	// restateBytes are restated at a time, so that what clients ask for is not held up by more than one write.
	restateBytes = 256 << 10
)

// restatement keeps the log of a coordinator short. Everything that it says is said again at its end, between what clients ask for, and when that is
// committed the log starts where it ended before. What a new coordinator has to read is so bounded by what it has to know.
//
// The records below the start were all in the state when the work began: they were asked for by this session, or replayed when it began. So it does not
// matter who leads when the cut takes effect.
type restatement struct {
	work  *group.Restatement // nil: nothing is under way
	start int64              // where the log ended when it began
	need  uint64             // the last record that has to be committed before the cut; 0: not all has been asked for
}

// beginRestatement begins if the log is too long for what it says.
func (s *session) beginRestatement() {
	if s.again.work != nil {
		return
	}
	start, end := s.home.bounds()
	stats := s.machine.Stats()
	live := int64(stats.Offsets)
	for _, n := range stats.Groups {
		live += int64(n)
	}
	if records := end - start; records < s.restateMin || records < restateFactor*live {
		return
	}
	s.again = restatement{work: s.machine.NewRestatement(), start: end}
}

// restate takes the next step unless much waits to be written.
func (s *session) restate() {
	r := &s.again
	if r.work == nil || r.need > 0 || s.backlog.bytes > restateBytes {
		return
	}
	s.backlog.add(s.machine.Restate(r.work, restateBytes))
	if s.machine.Restated(r.work) {
		r.need = s.backlog.last
	}
}

// cut is where the log may start now; false: nowhere else.
func (s *session) cut() (write, bool) {
	if s.again.work == nil || s.again.need == 0 || s.again.need > s.backlog.committed || s.backlog.writing {
		return write{}, false
	}
	return write{start: s.again.start}, true
}

// bounds are the first offset of the log and its end.
func (r *replica) bounds() (start, end int64) { return r.part.Start(), r.part.End() }

// cut makes the log start at an offset.
func (r *replica) cut(start int64) error {
	if !r.leads() {
		return errNotCoordinator
	}
	result, err := r.raft.Propose(partition.EncodeStart([]partition.Start{{Key: r.key, Offset: start}})).Wait(context.Background())
	if err != nil {
		return err
	}
	switch a := result.(type) {
	case error:
		return a
	case []partition.StartResult:
		if len(a) == 1 {
			return a[0].Err
		}
	}
	panic(fmt.Sprintf("BUG: start answered with %T", result))
}
