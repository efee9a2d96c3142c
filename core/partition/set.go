package partition

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/vfs"
)

// defaultFiles is how many files a set without Options.Files keeps open: enough
// for the partitions of a test or of one busy shard.
const defaultFiles = 1024

// Options configure a Set. FS and Dirs are required.
type Options struct {
	FS    vfs.FS
	Dirs  *Dirs // shared by all sets of the node, on the same FS
	Shard meta.ShardID
	// Files bounds the open files of all logs of the process. Where it has no
	// Whole it should have room for the segments that are being written, since one
	// that has to be closed is synced first, and apply waits for it. Nil means
	// defaultFiles for this set.
	Files *commitlog.Files
	// together is syncTogetherFrom, but in tests.
	together int
	// Logger gets what a person should know; nil discards it.
	Logger *slog.Logger
	// Peers returns the other replicas of the shard, to fetch missing segments
	// from. Nil means there are none. It is asked anew for every round.
	Peers func() []Peer
	// FetchBytesPerSecond and ServeBytesPerSecond bound catch-up traffic of this
	// set, so that it stays behind the live one. Zero means
	// DefaultCatchUpBytesPerSecond.
	FetchBytesPerSecond int64
	ServeBytesPerSecond int64
	// In and Out bound the catch-up traffic of all sets that share them, at rates
	// that may change. They stand above the two fields before them.
	In, Out *Throttle
}

// Peer is another replica of the shard.
type Peer struct {
	Name string // for logs
	// Dial opens a connection of the kind "segments" to the peer's node.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Set is the partitions of one shard's replica: the state machine of its group.
//
// ApplyBatch, Capture and Restore are called by one goroutine at a time, all
// other methods by any. A Set starts nothing by itself: Run fetches what a
// restored checkpoint names and this replica lacks.
type Set struct {
	o       Options
	log     *slog.Logger
	metrics *setMetrics

	// partitions is changed by apply only, which reads it without the lock.
	mu         sync.RWMutex
	partitions map[Key]*Partition

	frozen atomic.Int64 // how many partitions are

	// deleted belongs to apply.
	deleted tombstones

	// Scratch of apply.
	touched  []*Partition
	spare    [][]byte
	decision decision

	err     atomic.Pointer[error]
	closed  atomic.Bool
	doomed  doomedList
	catchUp catchUp
	wounds  wounds

	compacting compacting
}

// Open returns an empty set. What its directories hold counts only once Restore
// has adopted a checkpoint that names it, or apply has created it again.
func Open(o Options) (*Set, error) {
	if o.FS == nil || o.Dirs == nil {
		return nil, errors.New("open partition set: file system and directories are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.together == 0 {
		o.together = syncTogetherFrom
	}
	if o.Files == nil {
		o.Files = commitlog.NewFiles(defaultFiles)
	}
	s := &Set{
		o:          o,
		log:        o.Logger.With("shard", uint32(o.Shard)),
		partitions: make(map[Key]*Partition),
	}
	s.wounds.init()
	in, out := o.In, o.Out
	if in == nil {
		in = fixedThrottle(o.FetchBytesPerSecond)
	}
	if out == nil {
		out = fixedThrottle(o.ServeBytesPerSecond)
	}
	s.catchUp.init(in, out)
	s.metrics = newSetMetrics(s)
	return s, nil
}

// Get returns a partition.
func (s *Set) Get(k Key) (*Partition, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, ok := s.partitions[k]
	return p, ok
}

// All yields the partitions as they are at the call, ordered by key.
func (s *Set) All() iter.Seq[*Partition] {
	list := s.sorted()
	return slices.Values(list)
}

func (s *Set) sorted() []*Partition {
	s.mu.RLock()
	list := slices.Collect(maps.Values(s.partitions))
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Partition) int { return compareKeys(a.key, b.key) })
	return list
}

// Len returns the number of partitions.
func (s *Set) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.partitions)
}

// Shard returns the shard whose replica this is.
func (s *Set) Shard() meta.ShardID { return s.o.Shard }

// Err returns why the set has stopped, or nil. The first failure of its storage
// stays: what has not been written is never tried again, since the file system
// may have dropped it.
func (s *Set) Err() error {
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

// fail stops the set.
func (s *Set) fail(err error) {
	if s.err.CompareAndSwap(nil, &err) {
		s.metrics.failures.Inc()
		s.log.Error("partition set stopped", "err", err)
	}
}

// Close gives up all files. It must not run beside ApplyBatch, Restore, Run or
// the Persist of a checkpoint. Readers' chunks stay usable.
func (s *Set) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	closed := error(ErrClosed)
	s.err.CompareAndSwap(nil, &closed)
	var errs []error
	for _, p := range s.sorted() {
		p.remove()
		s.o.Dirs.release(p.dir)
		errs = append(errs, p.log.Close())
	}
	return errors.Join(errs...)
}

// Destroy closes the set and removes all its directories: this node is no
// longer a member of the shard.
func (s *Set) Destroy() error {
	errs := []error{s.Close()}
	for _, p := range s.sorted() {
		path, err := s.o.Dirs.setAside(s.claimOf(p), p.name, p.dir)
		if err == nil {
			err = s.o.Dirs.remove(path)
		}
		errs = append(errs, err)
	}
	left, err := s.o.Dirs.deletedOf(s.o.Shard)
	errs = append(errs, err)
	for _, path := range left {
		errs = append(errs, s.o.Dirs.remove(path))
	}
	return errors.Join(append(errs, s.o.Dirs.Sync())...)
}

func (s *Set) logConfig(c LogConfig, dirty int64) commitlog.Config {
	return commitlog.Config{
		Gaps:               dirty > 0,
		SegmentBytes:       c.SegmentBytes,
		SegmentMs:          c.SegmentMs,
		IndexIntervalBytes: c.IndexIntervalBytes,
		Files:              s.o.Files,
	}
}

// open opens or creates a partition's log as the section says and makes the
// partition known. fresh is a new partition, of which nothing on disk counts.
func (s *Set) open(sec *section, fresh bool) (*Partition, []commitlog.SegmentInfo, error) {
	k := sec.key()
	dir, marked, err := s.o.Dirs.claim(claim{key: k, shard: s.o.Shard, move: sec.arrived}, sec.Name, fresh)
	if err != nil {
		return nil, nil, fmt.Errorf("claim directory of %s-%d: %w", sec.Name, k.Index, err)
	}
	p := &Partition{key: k, name: sec.Name, dir: dir, arrived: sec.arrived}
	c := s.logConfig(sec.Config, sec.dirty)
	c.Epoch = p.EpochAt
	c.Damaged = func(base int64, err error) { s.suspect(p, base, err) }
	log, missing, err := commitlog.OpenAt(s.o.Dirs.at(dir), dir, c, sec.Log)
	if err != nil {
		return nil, nil, fmt.Errorf("open log of %s-%d: %w", sec.Name, k.Index, err)
	}
	p.log = log
	p.named.Store(marked && len(sec.Log.Segments) > 0) // by the checkpoint, if it was taken here
	s.adopt(p, sec)
	s.mu.Lock()
	s.partitions[k] = p
	s.mu.Unlock()
	return p, missing, nil
}

// adopt makes a section the partition's state and shows it to readers.
func (s *Set) adopt(p *Partition, sec *section) {
	p.state.Lock()
	sec.into(p)
	p.state.Unlock()
	p.epochBase.Store(sec.EpochBase)
	s.setFrozen(p, sec.frozen)
	p.dirty.Store(sec.dirty)
	p.next = p.log.End()
	p.pending = pending{}
	p.version++
	p.publish()
}

func (s *Set) applyCreate(body []byte) any {
	var c createBody
	if err := decodeBody(body, &c); err != nil {
		return s.refuseEntry(err)
	}
	if !ValidName(c.Name) || c.Index < 0 || c.EpochBase < 0 {
		return s.refuseEntry(fmt.Errorf("%w: create %q-%d with epoch base %d", ErrInvalidEntry, c.Name, c.Index, c.EpochBase))
	}
	if s.partitions[Key{c.Topic, c.Index}] != nil {
		return nil
	}
	if s.deleted.has(Key{c.Topic, c.Index}) {
		return s.refuseEntry(ErrDeleted)
	}
	sec := &section{Topic: c.Topic, Index: c.Index, Name: c.Name, EpochBase: c.EpochBase, Config: c.Config}
	if _, _, err := s.open(sec, true); err != nil {
		s.fail(err)
	}
	return nil
}

func (s *Set) applyDelete(body []byte) any {
	var d deleteBody
	if err := decodeBody(body, &d); err != nil {
		return s.refuseEntry(err)
	}
	if p := s.partitions[Key{d.Topic, d.Index}]; p != nil {
		s.deleted.add(p.key)
		if err := s.drop(p); err != nil {
			s.fail(err)
		}
	}
	return nil
}

// drop takes a partition out of the set. Its files stay under another name
// until a checkpoint no longer names it.
func (s *Set) drop(p *Partition) error {
	s.mu.Lock()
	delete(s.partitions, p.key)
	s.mu.Unlock()
	p.pending = pending{}
	s.setFrozen(p, 0)
	p.remove()
	s.catchUp.forget(p)
	s.wounds.forget(p)
	if err := p.log.Close(); err != nil {
		return fmt.Errorf("close log of deleted %s-%d: %w", p.name, p.key.Index, err)
	}
	path, err := s.o.Dirs.setAside(s.claimOf(p), p.name, p.dir)
	if err != nil {
		return err
	}
	s.doomed.add(doomed{dir: path})
	return nil
}

func (s *Set) applyConfigure(body []byte) any {
	var c configureBody
	if err := decodeBody(body, &c); err != nil {
		return s.refuseEntry(err)
	}
	p := s.partitions[Key{c.Topic, c.Index}]
	if p == nil {
		return ErrUnknownPartition
	}
	s.write(p) // under the configuration of its time: rolling must not depend on grouping
	p.state.Lock()
	p.state.config = c.Config
	p.state.Unlock()
	p.log.Configure(s.logConfig(c.Config, p.dirty.Load()))
	p.version++
	return nil
}

func (s *Set) applyStart(body []byte) any {
	var b startBody
	if err := decodeBody(body, &b); err != nil {
		return s.refuseEntry(err)
	}
	results := make([]StartResult, len(b.Items))
	for i, it := range b.Items {
		results[i] = s.moveStart(s.partitions[Key{it.Topic, it.Index}], it.Offset)
	}
	return results
}

func (s *Set) moveStart(p *Partition, offset int64) StartResult {
	if p == nil {
		return StartResult{Start: -1, Err: ErrUnknownPartition}
	}
	s.write(p) // the start may be its end
	if offset == -1 {
		offset = p.next
	}
	if offset < 0 || offset > p.next {
		return StartResult{Start: p.log.Start(), Err: fmt.Errorf("start at %d of a log that ends at %d: %w", offset, p.next, ErrOutOfRange)}
	}
	if offset <= p.log.Start() || s.Err() != nil {
		return StartResult{Start: p.log.Start()}
	}
	if p.frozen.Load() != 0 {
		return StartResult{Start: p.log.Start(), Err: ErrFrozen}
	}
	if dropped := p.log.SetStart(offset); len(dropped) > 0 {
		s.doomed.add(doomed{partition: p, segments: dropped})
	}
	p.state.Lock()
	p.state.epochs.trim(offset)
	p.state.txns.trim(offset)
	p.state.Unlock()
	s.catchUp.trim(p)
	p.version++
	s.touch(p)
	return StartResult{Start: offset}
}

// touch has flush show the partition's state to readers.
func (s *Set) touch(p *Partition) {
	if !p.touched {
		p.touched = true
		s.touched = append(s.touched, p)
	}
}
