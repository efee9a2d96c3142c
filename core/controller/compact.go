package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

// settleBytes are replaced before a pass goes on to a checkpoint, after which they go: a large topic's take as much room again until then.
const settleBytes uint64 = 256 << 20

// errTooOld is returned while some node of the cluster has not said that it knows the entries of compaction.
var errTooOld = errors.New("not every node is known to run a release that can compact")

// compactor compacts the partitions of topics with cleanup.policy=compact that this node leads, one at a time, the dirtiest first.
type compactor struct {
	c        *Controller
	throttle *partition.Throttle
	levels   map[meta.Server]bool // known to know the entries; belongs to run
	told     string               // the last error that was logged; belongs to run

	set                                            *metrics.Set
	rounds, failures, before, after, lost, skipped *metrics.Counter
	seconds                                        *metrics.FloatCounter
	last                                           atomic.Int64 // ms since 1970
	current                                        atomic.Pointer[string]

	step  atomic.Pointer[func(step string)] // called before each step of a round; set by tests alone
	asked chan *stageJob                    // for run
	mu    struct {
		sync.Mutex
		jobs map[partition.Key]*stageJob
	}
}

func newCompactor(c *Controller) *compactor {
	m := metrics.NewSet()
	k := &compactor{
		c: c, levels: make(map[meta.Server]bool), set: m,
		rounds: m.NewCounter("sluice_compaction_rounds_total"), failures: m.NewCounter("sluice_compaction_failed_rounds_total"),
		before: m.NewCounter("sluice_compaction_before_bytes_total"), after: m.NewCounter("sluice_compaction_after_bytes_total"),
		lost: m.NewCounter("sluice_compaction_removed_records_total"), skipped: m.NewCounter("sluice_compaction_skipped_replicas_total"),
		seconds: m.NewFloatCounter("sluice_compaction_seconds_total"),
	}
	m.NewGauge("sluice_compaction_last_run_timestamp_seconds", func() float64 { return float64(k.last.Load()) / 1000 })
	k.throttle = partition.NewThrottle(k.rate)
	k.asked = make(chan *stageJob, stageJobsMax)
	k.mu.jobs = make(map[partition.Key]*stageJob)
	return k
}

// rate is what live traffic leaves, and no more than the operator lets compaction take.
func (k *compactor) rate() int64 {
	spare := k.c.node.SpareBytesPerSecond()
	if limit := k.c.brokerNumber("log.cleaner.io.max.bytes.per.second", 0); limit >= 1 && limit < float64(spare) {
		return int64(limit)
	}
	return spare
}

// brokerNumber is a number of this node's dynamic configuration, or the cluster's.
func (c *Controller) brokerNumber(name string, otherwise float64) float64 {
	for _, broker := range []string{strconv.Itoa(int(c.Self())), ""} {
		if text, ok := c.Image().Config(meta.ResourceBroker, broker)[name]; ok {
			if n, err := strconv.ParseFloat(text, 64); err == nil {
				return n
			}
		}
	}
	return otherwise
}

func (k *compactor) interval() time.Duration {
	if d := k.c.o.CompactionInterval; d > 0 {
		return d
	}
	const usual = 15_000 // Kafka's
	return max(100*time.Millisecond, time.Duration(k.c.brokerNumber("log.cleaner.backoff.ms", usual))*time.Millisecond)
}

func (k *compactor) run(ctx context.Context) {
	var jobs sync.WaitGroup
	defer jobs.Wait()
	jobs.Go(func() { k.runJobs(ctx, &jobs) })
	for ctx.Err() == nil {
		pause(ctx, k.interval())
		k.pass(ctx)
		k.settle(ctx)
	}
}

// pass compacts until nothing is due. What has failed waits for the next pass.
func (k *compactor) pass(ctx context.Context) {
	tried, settled := map[partition.Key]bool{}, k.before.Get()
	for ctx.Err() == nil {
		next := k.choose(tried)
		if next == nil {
			return
		}
		tried[next.key] = true
		name := fmt.Sprintf("%s-%d", next.topic, next.key.Index)
		k.current.Store(&name)
		err := k.round(ctx, next)
		k.current.Store(nil)
		if err == nil {
			delete(tried, next.key) // it may have more keys than one round looks at
		}
		if k.before.Get()-settled >= settleBytes {
			k.settle(ctx)
			settled = k.before.Get()
		}
		if err != nil && ctx.Err() == nil {
			k.failures.Inc()
			k.tell(next, err)
		}
	}
}

// tell logs why a partition was not compacted. What is said again and again is not told to everybody.
func (k *compactor) tell(c *candidate, err error) {
	level := slog.LevelInfo
	if err.Error() == k.told {
		level = slog.LevelDebug
	}
	k.told = err.Error()
	k.c.log.Log(context.Background(), level, "a partition could not be compacted", "topic", c.topic, "partition", c.key.Index, "err", err)
}

// settle takes a checkpoint of the replicas in which replaced segments wait for one.
func (k *compactor) settle(ctx context.Context) {
	for id, r := range k.c.replicaMap() {
		if r.set.Unsettled() == 0 || ctx.Err() != nil {
			continue
		}
		if err := r.group.Checkpoint(ctx); err != nil && ctx.Err() == nil {
			k.c.log.Debug("no checkpoint after a compaction", "shard", id, "err", err)
		}
	}
}

// candidate is a partition that is due.
type candidate struct {
	r       *replica
	term    uint64
	topic   string
	key     partition.Key
	options partition.CompactOptions
	ratio   float64
}

// choose returns the dirtiest partition of those that are due and that this node leads.
func (k *compactor) choose(tried map[partition.Key]bool) (best *candidate) {
	image := k.c.Image()
	now := k.c.o.Now().UnixMilli()
	for id, r := range k.c.replicaMap() {
		term, ok := r.group.Serving()
		if !ok || r.doneTerm.Load() != term {
			continue
		}
		for t := range image.ShardTopics(id) {
			s := image.TopicSettings(t)
			if t.Internal || !s.Compact { // what is internal is kept short by its coordinator
				continue
			}
			o := partition.CompactOptions{
				NowMs: now, MinLagMs: s.MinCompactionLagMs, MaxLagMs: s.MaxCompactionLagMs, DeleteRetentionMs: s.DeleteRetentionMs,
				MinDirtyRatio: s.MinCleanableDirtyRatio, Throttle: k.throttle,
			}
			for i := range t.Partitions {
				c := &candidate{r: r, term: term, topic: t.Name, key: partition.Key{Topic: t.ID, Index: t.Partitions[i].Index}, options: o}
				if t.Partitions[i].Shard == id && t.Partitions[i].Move == nil && !tried[c.key] && c.due() && (best == nil || c.ratio > best.ratio) {
					best = c
				}
			}
		}
	}
	return best
}

func (c *candidate) due() bool {
	p, ok := c.r.set.Get(c.key)
	if !ok {
		return false
	}
	clean := p.Cleanable(c.options)
	c.ratio = clean.Ratio
	return clean.Due
}

// round compacts one partition.
func (k *compactor) round(ctx context.Context, c *candidate) error {
	if err := k.allKnow(ctx, c); err != nil {
		return err
	}
	if err := listed(ctx, c.r, c.key); err != nil {
		return err
	}
	if p, ok := c.r.set.Get(c.key); ok {
		if err := k.room(p.Bytes()); err != nil {
			return err
		}
	}
	began := time.Now()
	k.at("rewrite")
	applied := c.r.group.AppliedIndex()
	writing, stop := k.whileRoom(ctx)
	defer stop()
	done, err := c.r.set.Compact(writing, c.key, c.options)
	if err != nil {
		return errors.Join(err, context.Cause(writing))
	}
	defer done.Release()
	k.at("stage")
	c.r.set.Trim(done)
	if err := k.stage(writing, c, applied, done.Staged()); err != nil {
		return errors.Join(err, context.Cause(writing))
	}
	k.at("swap")
	c.r.set.Trim(done)
	if err := k.swap(ctx, c, done); err != nil {
		return err
	}
	k.rounds.Inc()
	k.before.AddInt64(done.BytesBefore)
	k.after.AddInt64(done.BytesAfter)
	k.lost.AddInt64(done.RecordsLost)
	k.seconds.Add(time.Since(began).Seconds())
	k.last.Store(time.Now().UnixMilli())
	k.c.log.Info("compacted a partition", "topic", c.topic, "partition", c.key.Index, "bytesBefore", done.BytesBefore, "bytesAfter", done.BytesAfter,
		"records", done.RecordsLost, "upTo", done.To, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// listed takes a checkpoint if none names the partition yet.
func listed(ctx context.Context, r *replica, k partition.Key) error {
	if r.set.Listed(k) {
		return nil
	}
	if err := r.group.Checkpoint(ctx); err != nil {
		return fmt.Errorf("checkpoint before a compaction: %w", err)
	}
	return nil
}

// errNoRoom is returned when rewritten segments would not fit on the disk beside those that they replace.
var errNoRoom = errors.New("not enough room on the disk to compact")

// whileRoom ends what copies segments when the disk's reserve is touched, whoever fills it: what is produced goes first.
func (k *compactor) whileRoom(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for ctx.Err() == nil {
			if err := k.room(0); err != nil {
				cancel(err)
			}
			pause(ctx, stagePoll)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// room tells whether so many bytes more leave the disk's reserve alone.
func (k *compactor) room(bytes int64) error {
	if own := k.c.disks.own(); own != nil && own.FreeBytes < own.ReserveBytes+uint64(bytes) {
		return fmt.Errorf("%w: %d bytes free, %d are the reserve, up to %d are needed", errNoRoom, own.FreeBytes, own.ReserveBytes, bytes)
	}
	return nil
}

func (k *compactor) at(step string) {
	if hook := k.step.Load(); hook != nil {
		(*hook)(step)
	}
}

// swap proposes what was made and waits until it is decided on: for as long as the entry may still be applied, what was staged must not be touched.
func (k *compactor) swap(ctx context.Context, c *candidate, done *partition.Compaction) error {
	if term, ok := c.r.group.Serving(); !ok || term != c.term {
		return shard.ErrNotLeader
	}
	if c.moves(k.c.Image()) { // copies of it have been begun meanwhile, of the segments as they are
		return fmt.Errorf("%w: it is being moved", partition.ErrChanged)
	}
	result, err := c.r.group.Propose(partition.EncodeSwap(done.Swap)).Wait(ctx)
	if err != nil {
		return fmt.Errorf("propose swap: %w", err)
	}
	if refused, ok := result.(error); ok {
		return fmt.Errorf("swap segments: %w", refused)
	}
	return nil
}

func (c *candidate) moves(image *meta.Image) bool {
	t := image.Topic(c.topic)
	return t == nil || t.ID != c.key.Topic || int(c.key.Index) >= len(t.Partitions) || t.Partitions[c.key.Index].Move != nil
}

// allKnow returns errTooOld unless every node of the cluster has told that it knows the entry. A partition that was compacted before proves it.
func (k *compactor) allKnow(ctx context.Context, c *candidate) error {
	if p, ok := c.r.set.Get(c.key); ok && p.Dirty() > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	for _, n := range k.c.Image().Nodes() {
		if n.ID == k.c.Self() || k.levels[n.Server()] {
			continue
		}
		var pong pingAnswer
		if err := k.c.pool.call(ctx, n.ID, opPing, nil, &pong); err != nil || pong.Server != n.Server() || pong.Level < meta.LevelCompaction {
			return fmt.Errorf("%w: node %d", errTooOld, n.ID)
		}
		k.levels[n.Server()] = true
	}
	return nil
}

// CompactionStatus is what a node shows of its compacting at /status. Numbers are since its start.
type CompactionStatus struct {
	Rounds      uint64    `json:"rounds"`
	Failed      uint64    `json:"failedRounds"`
	BytesBefore uint64    `json:"bytesBefore"`
	BytesAfter  uint64    `json:"bytesAfter"`
	Records     uint64    `json:"recordsRemoved"`
	Seconds     float64   `json:"seconds"`
	LastRun     time.Time `json:"lastRun,omitzero"`
	Running     string    `json:"running,omitempty"`
}

func (k *compactor) status() CompactionStatus {
	s := CompactionStatus{
		Rounds: k.rounds.Get(), Failed: k.failures.Get(), BytesBefore: k.before.Get(), BytesAfter: k.after.Get(),
		Records: k.lost.Get(), Seconds: k.seconds.Get(),
	}
	if at := k.last.Load(); at > 0 {
		s.LastRun = time.UnixMilli(at).UTC()
	}
	if name := k.current.Load(); name != nil {
		s.Running = *name
	}
	return s
}
