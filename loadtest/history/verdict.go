package history

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Kind of a violation.
type Kind string

const (
	Lost      Kind = "lost"      // acknowledged and not there
	Doubled   Kind = "doubled"   // there more than once, though sent once
	Reordered Kind = "reordered" // behind a later one of the same writer in the same partition
	Moved     Kind = "moved"     // not where its acknowledgement, or its writer, put it
	Invented  Kind = "invented"  // never sent
	Gap       Kind = "gap"       // an offset that was skipped, or came twice

	Corrupt   Kind = "corrupt"   // other bytes than were sent, or a batch whose checksum is wrong
	Diverged  Kind = "diverged"  // two readers, two reads or two replicas disagree about an offset
	Backdated Kind = "backdated" // acknowledged at an offset that lies before what was already visible when it was sent
	Trimmed   Kind = "trimmed"   // the log's start rose though nobody asked for it

	Stale         Kind = "stale"               // a read that began after an acknowledgement does not show it
	EndBack       Kind = "high_watermark_back" // the end of the log is lower than it was seen before
	StartBack     Kind = "log_start_back"      // the start of the log is lower than it was seen before
	CommitBack    Kind = "commit_back"         // a group's committed offset is lower than it was
	Skipped       Kind = "skipped"             // a member was not given a record between two it was given, or started behind what was committed
	Undelivered   Kind = "undelivered"         // acknowledged and never delivered to the group
	NotLinearized Kind = "not_linearizable"    // operations on a topic that no order explains
)

// Violation is one thing that is wrong.
type Violation struct {
	Kind   Kind      `json:"kind"`
	Where  string    `json:"where,omitempty"` // partition, group or topic
	Writer string    `json:"writer,omitempty"`
	Number int64     `json:"number"`
	Offset int64     `json:"offset"`
	At     time.Time `json:"at,omitzero"` // when it was noticed, if it was noticed on the way
	Detail string    `json:"detail"`
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %s: writer %q number %d offset %d: %s", v.Kind, v.Where, v.Writer, v.Number, v.Offset, v.Detail)
}

// Verdict is the outcome of a check.
type Verdict struct {
	Sent       int64          `json:"sent"`
	Acked      int64          `json:"acked"`
	Found      int64          `json:"found"`
	Unknown    int64          `json:"found_unacknowledged"` // there, though no acknowledgement came: allowed
	Resent     int64          `json:"doubled_by_the_writer"`
	Counts     map[Kind]int64 `json:"violations"`
	Violations []Violation    `json:"first_violations"`
	// Undecided are topics whose operations could not be judged within the time given.
	Undecided []string `json:"undecided,omitempty"`
}

// OK tells whether nothing is wrong.
func (v *Verdict) OK() bool { return len(v.Counts) == 0 }

// violationsMax bounds how many of each kind are kept; the counts are complete.
const violationsMax = 20

func (v *Verdict) add(k Kind, writer string, number int64, format string, args ...any) {
	v.put(Violation{Kind: k, Writer: writer, Number: number, Detail: fmt.Sprintf(format, args...)})
}

func (v *Verdict) put(what Violation) {
	v.Counts[what.Kind]++
	if v.Counts[what.Kind] <= violationsMax {
		v.Violations = append(v.Violations, what)
	}
}

func (v *Verdict) sort() {
	slices.SortStableFunc(v.Violations, func(a, b Violation) int { return cmp.Compare(a.Kind, b.Kind) })
}

// findings are what was noticed on the way.
type findings struct {
	mu     sync.Mutex
	counts map[Kind]int64
	list   []Violation
}

func (f *findings) put(v Violation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[Kind]int64{}
	}
	f.counts[v.Kind]++
	if f.counts[v.Kind] <= violationsMax {
		f.list = append(f.list, v)
	}
}

func (f *findings) total() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.counts {
		n += c
	}
	return n
}

// into adds everything to a verdict.
func (f *findings) into(v *Verdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, n := range f.counts {
		v.Counts[k] += n
	}
	v.Violations = append(v.Violations, f.list...)
}
