// Package uplink forwards a gateway's buffer to a Kafka cluster, each record once.
//
// The buffer (a core/commitlog) is cut into rounds: ranges of buffer offsets, turned into produce batches by a pure function. Before a round is
// sent, its plan (topic, partition, producer, sequence, count and checksum of every batch) is journaled and synced. After a crash the open
// rounds are rebuilt from the buffer, compared with their plans, and sent again under the same sequences: the partition's producer state at the
// other end recognises what it already has. Nothing but the standard idempotent Produce is needed, so any Kafka cluster will do.
//
// Guaranteed: a record that the buffer calls synced is in its core topic once, in buffer order within its partition. The exceptions are counted,
// never silent: records sent again after retention had removed the evidence of the first time ("possibly twice"), and records that the cluster
// refuses for good, which go to the dead-letter topic.
//
// Not done here: reading MQTT, deciding the route (edge/ingest did, its outcome is in the record), trimming the buffer (it is told what is confirmed).
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/core/commitlog"
	"sluice/core/record"
	"sluice/core/vfs"
)

const (
	// roundBytesMax bounds a round's records: large enough to compress well and to cost one journal sync per megabytes, small enough to rebuild quickly.
	roundBytesMax = 2 << 20
	// batchBytesMax bounds a batch before compression, so that it passes the usual max.message.bytes of 1 MiB whatever the codec makes of it.
	batchBytesMax = 768 << 10
	// openRoundsMax bounds the memory of rounds that wait for their answer (times roundBytesMax). Only the first batch of a
	// partition is ever under way, so the broker's memory of five batches per producer is never exceeded.
	openRoundsMax = 8
	// lingerDefault is how long a small round waits for company: rounds cost a sync each, and the boxes have SD cards.
	lingerDefault = 50 * time.Millisecond
	// requestBytesMax bounds one Produce request, far below the usual socket.request.max.bytes of 100 MiB.
	requestBytesMax = 8 << 20
	// produceTimeout is what the cluster is given to commit a batch; requestTimeout adds the way there and back over a poor link.
	produceTimeout = 10 * time.Second
	requestTimeout = 30 * time.Second
	// back-off between tries of the same thing, with full jitter.
	backoffMin = 50 * time.Millisecond
	backoffMax = 15 * time.Second
	// silenceMax: after so long without an answer for a partition, its producer state may be gone, so the log is asked first.
	silenceMax = time.Hour
)

// ErrRebuiltDiffers is returned when an open round, rebuilt from the buffer after a restart, is not what its journal entry says: sending it could
// double or lose records, so the uplink stops and a person decides.
var ErrRebuiltDiffers = errors.New("an open round rebuilt from the buffer differs from its journal")

// Buffer is the log that is forwarded. edge/buffer implements it.
type Buffer interface {
	Log() *commitlog.Log
	// Synced is the end of what is on disk: nothing from there on may be sent.
	Synced() int64
	// Appended is closed when Synced has grown; it is fetched before Synced is looked at, and anew each time.
	Appended() <-chan struct{}
	// Confirm tells that everything below offset is in the core and may be trimmed.
	Confirm(offset int64)
	// Hold tells that what lies from offset on is in an open round and must not be dropped, however full the buffer is; negative: nothing is.
	Hold(offset int64)
}

// Options of an uplink. Zero values mean the defaults named beside them.
type Options struct {
	FS         vfs.FS        // vfs.OS
	Dir        string        // of the journal; required
	Brokers    []string      // host:port of the cluster; required
	ClientID   string        // "sluice-uplink"
	MachineID  string        // what tells this box from one that runs a copy of its disk; "" = not checked
	Codec      record.Codec  // of the batches
	DeadLetter string        // topic of refused records; "sluice.dead-letter"
	BytesPerS  int64         // bandwidth cap; 0 = none
	Windows    []Window      // times of day in which it sends; none = always
	Linger     time.Duration // 50 ms
	KgoOptions []kgo.Opt     // TLS, SASL
	Logger     *slog.Logger
}

func (o *Options) defaults() error {
	if o.Dir == "" || len(o.Brokers) == 0 {
		return errors.New("uplink: Dir and Brokers are required")
	}
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.ClientID == "" {
		o.ClientID = "sluice-uplink"
	}
	if o.DeadLetter == "" {
		o.DeadLetter = "sluice.dead-letter"
	}
	if o.Linger == 0 {
		o.Linger = lingerDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Uplink forwards one buffer. Its loop (Run) owns everything but mu and the metrics.
type Uplink struct {
	o       Options
	buffer  Buffer
	journal *journal
	cluster *cluster
	limit   bucket

	parts     map[target]*partition
	rounds    []*round // open, oldest first
	cutAt     int64    // the next buffer offset to cut
	roundID   uint64
	order     uint64         // the last one given to a batch
	cloned    bool           // the journal was written on another machine
	blocked   bool           // what is next to be cut is for a topic of which nothing is known yet
	busy      map[int32]bool // leaders with a request under way
	events    chan event
	metaAt    time.Time // not before: the next metadata refresh
	metaTries int
	metaBusy  bool
	lingering time.Time            // since when records wait uncut
	unsynced  time.Time            // since when a confirmation is journaled but not synced
	missing   map[string]time.Time // topics that the cluster does not have, since when

	set     *metrics.Set
	m       counters
	mu      sync.Mutex
	status  Status
	repeats map[string]time.Time // last time an error was logged, by kind
}

// event is what a request's goroutine brings back to the loop.
type event interface{ apply(u *Uplink) error }

// Open reads the journal and rebuilds nothing yet; it starts no goroutine and needs no network.
func Open(buffer Buffer, o Options) (*Uplink, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	j, err := openJournal(o.FS, o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open uplink journal: %w", err)
	}
	u := &Uplink{o: o, buffer: buffer, journal: j, parts: map[target]*partition{}, busy: map[int32]bool{}, repeats: map[string]time.Time{}, missing: map[string]time.Time{},
		events: make(chan event, 64), limit: bucket{rate: o.BytesPerS}}
	u.metrics()
	if err := u.recover(); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return u, nil
}

// Run forwards until ctx ends (nil) or the uplink has to stop: a failed journal, or ErrRebuiltDiffers. It owns every goroutine it starts.
func (u *Uplink) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var requests sync.WaitGroup
	defer requests.Wait() // they end with ctx
	defer cancel()
	defer u.journal.close()
	var err error
	if u.cluster, err = openCluster(u.o); err != nil {
		return err
	}
	u.cluster.ctx, u.cluster.requests, u.cluster.events = ctx, &requests, u.events
	defer u.cluster.close()
	if err := u.identify(ctx); err != nil {
		return endOf(ctx, err)
	}
	if err := u.rebuild(); err != nil {
		u.alarm(err.Error())
		return err
	}
	err = u.loop(ctx)
	return endOf(ctx, errors.Join(err, u.journal.commit())) // what is confirmed need not be looked for at the next start
}

func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (u *Uplink) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := u.buffer.Appended()
		if err := u.cut(); err != nil {
			return err
		}
		wait, err := u.dispatch()
		if err != nil {
			return err
		}
		timer.Reset(wait)
		u.publish()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		case e := <-u.events:
			if err := u.applyAll(e); err != nil {
				return err
			}
		}
	}
}

// applyAll applies e and what else has come in meanwhile, then confirms what is complete.
func (u *Uplink) applyAll(e event) error {
	for {
		if err := e.apply(u); err != nil {
			return err
		}
		select {
		case e = <-u.events:
		default:
			return u.confirm()
		}
	}
}

// backoff is the wait before try n (from 0): full jitter below a doubling bound.
func backoff(n int) time.Duration {
	bound := backoffMin << min(n, 12)
	return backoffMin/2 + rand.N(min(bound, backoffMax))
}

// warn logs the first error of a kind, and then one a minute.
func (u *Uplink) warn(kind, msg string, args ...any) {
	if t := u.repeats[kind]; time.Since(t) < time.Minute {
		return
	}
	u.repeats[kind] = time.Now()
	u.o.Logger.Warn(msg, args...)
}

// alarm is for what a person has to look at: it stays in the status.
func (u *Uplink) alarm(msg string) {
	u.m.alarms.Inc()
	u.o.Logger.Error("uplink alarm", "reason", msg)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Alarm, u.status.AlarmTime = msg, time.Now()
}
