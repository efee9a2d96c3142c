package partition

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/core/commitlog"
)

const (
	// DefaultScrubBytesPerSecond is read while the node is at work: a twentieth of what a common disk gives. A node that
	// is idle, or in its first pass, reads scrubIdleFactor times as much: what happens to files happens while nobody looks.
	DefaultScrubBytesPerSecond = 8 << 20
	scrubIdleFactor            = 4
	// DefaultScrubInterval is how often every segment is read, where the rate lets it: a terabyte takes a day and a half.
	DefaultScrubInterval = 24 * time.Hour
	// scrubFirst is how long after its start a node begins: it has better things to do at first.
	scrubFirst = 10 * time.Second
	// scrubBusyBytes written in a second make a node one that is at work.
	scrubBusyBytes = 256 << 10
	// scrubFileBytes is what a closed file counts for beside its bytes.
	scrubFileBytes = 256 << 10
	// scrubOpenBytes is the same for a file that is written to. Every partition has one, most are small, and to open one costs more than to read it: thousands
	// of them must not be felt on an idle node. It looks at eight a second, and so at 10,000 within 21 minutes.
	scrubOpenBytes = 4 << 20
	// scrubOpenWait is how long it sleeps between some of these: what costs is to be woken.
	scrubOpenWait = 500 * time.Millisecond
	// scrubWait is how long the scrubber sleeps at least: shorter waits cost more than they spread.
	scrubWait = 5 * time.Millisecond
)

// ScrubOptions configure a Scrubber. Sets is required.
type ScrubOptions struct {
	// Sets returns the sets of the node; it is asked anew for every pass.
	Sets func() []*Set
	// BytesPerSecond are read while the node is at work, four times as many in the first pass and while it is idle; zero means DefaultScrubBytesPerSecond, a negative number that
	// nothing is scrubbed.
	BytesPerSecond int64
	// Interval is from the beginning of one pass over all segments to that of the next; zero means DefaultScrubInterval.
	Interval time.Duration
	// Logger gets what a person should know; nil discards it.
	Logger *slog.Logger
}

// Scrubber reads all segments of a node again and again, one file at a time and slowly, and compares them with their
// checksums: those that are closed first, from the disk and not from memory, then what is synced of those that are
// written to, then the indexes. What is damaged is told to its set, which repairs it.
type Scrubber struct {
	o   ScrubOptions
	log *slog.Logger

	bytes, segments, damaged, indexes, passes *metrics.Counter
	set                                       *metrics.Set

	load struct {
		sync.Mutex
		at      time.Time
		written uint64
		busy    bool
	}
	debt     time.Duration // not yet slept
	openDebt time.Duration // the same for the files that are written to
	lastPass atomic.Int64  // when the last pass ended, in ms since 1970
}

// NewScrubber returns a scrubber that starts with Run.
func NewScrubber(o ScrubOptions) *Scrubber {
	if o.BytesPerSecond == 0 {
		o.BytesPerSecond = DefaultScrubBytesPerSecond
	}
	if o.Interval <= 0 {
		o.Interval = DefaultScrubInterval
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := metrics.NewSet()
	s := &Scrubber{
		o: o, log: o.Logger, set: m,
		bytes:    m.NewCounter("sluice_scrub_bytes_total"),
		segments: m.NewCounter("sluice_scrub_segments_total"),
		damaged:  m.NewCounter("sluice_scrub_damaged_segments_total"),
		indexes:  m.NewCounter("sluice_scrub_damaged_indexes_total"),
		passes:   m.NewCounter("sluice_scrub_passes_total"),
	}
	m.NewGauge("sluice_scrub_last_pass_timestamp_seconds", func() float64 { return float64(s.lastPass.Load()) / 1000 })
	return s
}

// Metrics returns the scrubber's metrics.
func (s *Scrubber) Metrics() *metrics.Set { return s.set }

// ScrubStatus is what a scrubber shows at /status.
type ScrubStatus struct {
	Passes   uint64    `json:"passes"`
	Bytes    uint64    `json:"bytes"`
	Segments uint64    `json:"segments"`
	Damaged  uint64    `json:"damaged"`
	LastPass time.Time `json:"lastPass,omitzero"`
}

// Status describes what was scrubbed since the start.
func (s *Scrubber) Status() ScrubStatus {
	st := ScrubStatus{Passes: s.passes.Get(), Bytes: s.bytes.Get(), Segments: s.segments.Get(), Damaged: s.damaged.Get()}
	if at := s.lastPass.Load(); at > 0 {
		st.LastPass = time.UnixMilli(at).UTC()
	}
	return st
}

// Run scrubs until ctx ends.
func (s *Scrubber) Run(ctx context.Context) {
	if s.o.BytesPerSecond < 0 {
		<-ctx.Done()
		return
	}
	next := time.Now().Add(min(scrubFirst, s.o.Interval))
	for sleep(ctx, time.Until(next)) == nil {
		next = time.Now().Add(s.o.Interval)
		if s.Pass(ctx) != nil {
			return
		}
	}
}

// Pass reads everything once. It begins at a random partition, so that a node that is restarted often comes to all.
func (s *Scrubber) Pass(ctx context.Context) error {
	var all []scrubbed
	for _, set := range s.o.Sets() {
		for p := range set.All() {
			all = append(all, scrubbed{set, p})
		}
	}
	if len(all) > 0 {
		first := rand.IntN(len(all))
		all = slices.Concat(all[first:], all[:first])
	}
	for _, active := range []bool{false, true} {
		for _, x := range all {
			if err := s.partition(ctx, x, active); err != nil {
				return err
			}
		}
	}
	s.passes.Inc()
	s.lastPass.Store(time.Now().UnixMilli())
	return ctx.Err()
}

type scrubbed struct {
	set *Set
	p   *Partition
}

// partition scrubs the closed segments of a partition, or the one that is written to. Only the end of ctx is an error.
func (s *Scrubber) partition(ctx context.Context, x scrubbed, active bool) error {
	segments := x.p.log.Segments()
	if len(segments) == 0 {
		return ctx.Err()
	}
	last := len(segments) - 1
	segments, open := segments[:last], segments[last]
	if active {
		return s.segment(ctx, x, open.Base, false)
	}
	for _, seg := range segments {
		if err := s.segment(ctx, x, seg.Base, true); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *Scrubber) segment(ctx context.Context, x scrubbed, base int64, closed bool) error {
	pace := func(n int) error { return s.pace(ctx, int64(n)) }
	if err := s.paceFile(ctx, closed); err != nil || x.p.Removed() || x.set.wounds.has(x.p, base) {
		return ctx.Err()
	}
	err := x.p.log.Verify(base, closed, pace)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, commitlog.ErrCorrupt):
		s.found(x, base, err)
		return nil
	case err != nil: // dropped meanwhile, or being fetched
		return nil
	}
	s.segments.Inc()
	if damaged, err := x.p.log.CheckIndex(base, pace); damaged {
		s.indexes.Inc()
		s.log.Warn("damaged index made anew", "partition", x.p.dir, "segment", base)
	} else if err != nil && ctx.Err() == nil {
		s.log.Info("index not checked", "partition", x.p.dir, "segment", base, "err", err)
	}
	return ctx.Err()
}

func (s *Scrubber) found(x scrubbed, base int64, err error) {
	s.damaged.Inc()
	if x.set.wounds.add(x.p, base, true, err) {
		x.set.metrics.damageSeen.Inc()
		s.log.Error("damaged segment found by the scrub", "partition", x.p.dir, "segment", base, "err", err)
	}
}

// paceFile waits for what a file costs beside its bytes.
func (s *Scrubber) paceFile(ctx context.Context, closed bool) error {
	if closed {
		return s.wait(ctx, &s.debt, scrubFileBytes, scrubWait)
	}
	return s.wait(ctx, &s.openDebt, scrubOpenBytes, scrubOpenWait)
}

// pace waits as long as n bytes may take.
func (s *Scrubber) pace(ctx context.Context, n int64) error {
	s.bytes.AddInt64(n)
	return s.wait(ctx, &s.debt, n, scrubWait)
}

// wait adds what n bytes may take to a debt, and sleeps when that is enough to be slept.
func (s *Scrubber) wait(ctx context.Context, debt *time.Duration, n int64, enough time.Duration) error {
	rate := s.o.BytesPerSecond
	if s.passes.Get() == 0 || !s.busy() {
		rate *= scrubIdleFactor
	}
	*debt += time.Duration(float64(n) / float64(rate) * float64(time.Second))
	if *debt < enough {
		return ctx.Err()
	}
	d := *debt
	*debt = 0
	return sleep(ctx, d)
}

// busy tells whether the node has written more than a little in the last second or two.
func (s *Scrubber) busy() bool {
	s.load.Lock()
	defer s.load.Unlock()
	now := time.Now()
	past := now.Sub(s.load.at)
	if past < time.Second {
		return s.load.busy
	}
	written := uint64(0)
	for _, set := range s.o.Sets() {
		written += set.metrics.bytes.Get()
	}
	s.load.busy = written > s.load.written && float64(written-s.load.written) > scrubBusyBytes*past.Seconds()
	s.load.at, s.load.written = now, written
	return s.load.busy
}
