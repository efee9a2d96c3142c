// Package buffer is the gateway's disk: what it has acknowledged, in order, until the core has it.
//
// Many connections put entries into one queue; one committer writes what has gathered as one record batch, syncs it, and
// only then are the entries' owners told. While a sync runs the next batch gathers, so that the number of syncs adapts to
// the disk and not to the number of messages.
//
// Guarantees: an owner is told success only for what is synced, in the order of the entries; all records of an entry lie in one
// batch, so that a torn write loses all of it or nothing; after a failed write or sync nothing is acknowledged any more.
// It does not know MQTT or HTTP, and does not send anything anywhere: the uplink reads Log up to Synced and calls Confirm.
package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sluice/core/commitlog"
	"sluice/core/record"
	"sluice/core/vfs"
)

// Names of what the buffer adds to records; FORMAT.md describes them.
const (
	// HeaderTo is the first header of every record that is meant for the core: the core's topic. The uplink strips it.
	HeaderTo = "sluice.to"
	// HeaderGap marks a record that tells of dropped messages instead of carrying one.
	HeaderGap = "sluice.gap"
	// KeyJournal is the key of a batch's journal record, which holds the notes of its entries one after the other.
	KeyJournal = "sluice.journal"
)

// Bounds, each with its reason.
const (
	// batchBytesDefault is where a batch is closed: large enough for a few long writes instead of many, small enough for the
	// core's default max.message.bytes when a batch goes out as it is.
	batchBytesDefault = 512 << 10
	// queueBytesDefault bounds what waits in memory; beyond it connections stop reading.
	queueBytesDefault = 16 << 20
	// queueBytesMin, queueStep and queueTarget: how much waits is less while the oldest has waited longer than the target.
	queueBytesMin = 2 << 20
	queueStep     = 256 << 10
	queueTarget   = 100 * time.Millisecond
	// queueEntriesMax bounds entries that weigh nothing in bytes (acknowledgements of what is there already).
	queueEntriesMax = 256 << 10
	// commitBytesMax bounds one write, and so the time until the first of its owners is told.
	commitBytesMax = 8 << 20
	// finishing is how many commits may wait for their owners to be told while the next is written.
	finishing = 4
	// segmentBytesDefault is what the buffer gives back to the disk at a time.
	segmentBytesDefault = 64 << 20
	// reserveBytesDefault stays free on the disk, so that the log's own files never meet a full one.
	reserveBytesDefault = 64 << 20
)

var (
	// ErrFull is returned when the budget or the disk is used up by messages that the core has not confirmed.
	ErrFull = errors.New("the buffer is full of messages that the core has not confirmed")
	// ErrStopped is returned when the buffer has been told to stop.
	ErrStopped = errors.New("the buffer is stopped")
	// ErrFailed is returned after a write or sync failed; nothing is acknowledged any more.
	ErrFailed = errors.New("the buffer has failed")
)

// Policy says what happens to new messages when the buffer is full of unconfirmed ones.
type Policy string

const (
	Refuse     Policy = "refuse"      // new messages are refused
	DropOldest Policy = "drop-oldest" // the oldest segment goes, and gap records tell of it
)

// Options of Open; zero values stand for the defaults.
type Options struct {
	FS           vfs.FS
	Dir          string
	SegmentBytes int64
	BatchBytes   int64
	QueueBytes   int64
	BudgetBytes  int64         // 0: only the disk bounds it
	BudgetAge    time.Duration // 0: unconfirmed messages do not age
	ReserveBytes int64         // of the disk that stay free
	Linger       time.Duration // waits this long for more before a sync: fewer, larger syncs on an SD card
	WhenFull     Policy
	Logger       *slog.Logger // nil discards
}

// Buffer is open between Open and the end of Run.
type Buffer struct {
	o       Options
	log     *commitlog.Log
	deliver func(locals []any, next int64)
	metrics *meters

	mu struct {
		sync.Mutex
		open     *batch
		sealed   []*batch
		free     []*batch
		bytes    int64     // queued
		limit    int64     // from which on the queue is crowded
		cut      time.Time // when it became less
		entries  int64
		stopping bool
		err      error
		room     chan struct{} // closed when there may be room again; nil when nobody waits
		appended chan struct{} // closed after the next sync; nil when nobody waits
	}
	wake      chan struct{} // the committer's
	trim      chan struct{} // the keeper's
	finish    chan commit
	synced    atomic.Int64
	confirmed atomic.Int64
	floors    []*Floor     // set before Run
	held      atomic.Int64 // the uplink needs what lies from here on, up to its own confirmation
	dropping  sync.Mutex   // held changes before a segment is dropped, or after, not while
	full      atomic.Bool
	crowded   atomic.Bool
	lowDisk   atomic.Bool
	failed    chan struct{}
}

// Open recovers the log (a torn tail is cut) and starts nothing.
func Open(o Options) (*Buffer, error) {
	o = o.withDefaults()
	log, err := commitlog.Open(o.FS, o.Dir, commitlog.Config{SegmentBytes: o.SegmentBytes})
	if err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	b := &Buffer{
		o: o, log: log, metrics: newMeters(),
		wake: make(chan struct{}, 1), trim: make(chan struct{}, 1), finish: make(chan commit, finishing),
		failed: make(chan struct{}),
	}
	b.mu.open, b.mu.limit = newBatch(), min(queueBytesMin, o.QueueBytes)
	b.synced.Store(log.End()) // what Open found is on disk: it synced what it kept
	b.confirmed.Store(log.Start())
	b.held.Store(noHold)
	b.deliver = func([]any, int64) {}
	b.metrics.observe(b)
	return b, nil
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	setDefault(&o.SegmentBytes, segmentBytesDefault)
	setDefault(&o.BatchBytes, batchBytesDefault)
	setDefault(&o.QueueBytes, queueBytesDefault)
	setDefault(&o.ReserveBytes, reserveBytesDefault)
	if o.BudgetBytes > 0 { // a segment is the unit of giving back: a budget must hold a few
		o.SegmentBytes = min(o.SegmentBytes, max(o.BudgetBytes/8, 4096))
	}
	if o.WhenFull == "" {
		o.WhenFull = Refuse
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault(v *int64, def int64) {
	if *v == 0 {
		*v = def
	}
}

// OnDeliver sets who gets the entries' Local values, in order, after the sync and before the owners are told, and the offset
// after the last record of that sync. Call it before Run.
func (b *Buffer) OnDeliver(fn func(locals []any, next int64)) { b.deliver = fn }

// Log is the buffer's log. Readers stay below Synced.
func (b *Buffer) Log() *commitlog.Log { return b.log }

// Synced is the offset after the last record that is on disk.
func (b *Buffer) Synced() int64 { return b.synced.Load() }

// SegmentBytes is the unit in which the log gives back what is confirmed.
func (b *Buffer) SegmentBytes() int64 { return b.o.SegmentBytes }

// Appended returns a channel that is closed after the next sync of new records; fetch it before looking at Synced.
func (b *Buffer) Appended() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.appended == nil {
		b.mu.appended = make(chan struct{})
	}
	return b.mu.appended
}

// Failed is closed when the buffer has failed; Err says why.
func (b *Buffer) Failed() <-chan struct{} { return b.failed }

// Err is the error that stopped the buffer, nil while it works.
func (b *Buffer) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.err
}

// Run commits until ctx ends, then commits what is queued, tells its owners and closes the log. An error means that a
// write or sync failed.
func (b *Buffer) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() { b.finishLoop() })
	keeper, stopKeeper := context.WithCancel(ctx)
	keeperDone := make(chan struct{})
	go func() { defer close(keeperDone); b.keep(keeper) }()
	err := b.commitLoop(ctx)
	stopKeeper()
	close(b.finish)
	all.Wait()
	<-keeperDone
	return errors.Join(err, b.log.Close())
}

// nudge wakes the loop that listens on c, at most once ahead.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// appendHeaders puts the core's topic first. Builder.Add copies what it is given, so dst is used again.
func appendHeaders(dst []record.Header, topic []byte, more []record.Header) []record.Header {
	dst = append(dst, record.Header{Key: HeaderTo, Value: topic})
	return append(dst, more...)
}
