package partition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/vfs"
)

const (
	// stagePollMin is how soon a stage that has caught up looks for what is new; it doubles while
	// there is nothing, so that a thousand idle moves cost little.
	stagePollMin = 20 * time.Millisecond
	stagePollMax = 500 * time.Millisecond

	// stagePrepareBytes are copied before the last segment is synced and indexed up to its end again: what
	// is left when the partition is frozen takes a disk some milliseconds.
	stagePrepareBytes = 1 << 20

	logSuffix  = ".log"
	partSuffix = ".log.part"
)

// errTaken is returned when a stage is used after its directory was adopted.
var errTaken = errors.New("stage was adopted")

// errStageClosed is returned to who waits for a copy that was closed before it was whole.
var errStageClosed = errors.New("copy was closed")

// StageOptions configure a Stage. All but Slots and Logger are required.
type StageOptions struct {
	FS    vfs.FS
	Dirs  *Dirs
	Key   Key
	Name  string       // the topic's
	Shard meta.ShardID // the target
	From  meta.ShardID // the source
	Move  uint64
	// Sources returns the replicas of the source, in the order in which they are to be asked. It is
	// asked anew for every round.
	Sources func() []Peer
	// Slots bounds the stages of a node that copy at one time; nil is no bound.
	Slots chan struct{}
	// Throttle holds back all but what a seal waits for.
	Throttle *Throttle
	Logger   *slog.Logger
}

// Stage is the copy of a partition's segments that a node makes before the partition is adopted by a
// shard that the node is in. Nobody is served from it.
//
// A segment lies there as `<base>.log.part` while it is copied. It is called `<base>.log` only after
// it was compared with the source's checksum and synced, so that a file of that name, in this
// directory, can be relied on after any crash: Adopt takes it without reading it.
type Stage struct {
	o     StageOptions
	log   *slog.Logger
	dir   string
	wake  chan struct{} // buffered: a seal is asked for
	ended chan struct{} // closed when the stage is taken or discarded

	mu struct {
		sync.Mutex
		taken    bool                            // no more is copied
		adopted  bool                            // because the directory is the partition's
		sealed   map[int64]commitlog.SegmentInfo // whole and durable; those of an earlier run have only Base and Bytes
		part     part
		progress StageProgress
		seal     *seal
		done     *commitlog.Manifest // sealed up to here
	}
}

// seal is the manifest that a stage shall come to, and who waits for that.
type seal struct {
	manifest commitlog.Manifest
	done     chan struct{}
}

// StageProgress says how far a copy is.
type StageProgress struct {
	Bytes int64 // copied
	Left  int64 // of what the source had when it was last asked
	End   int64 // offset up to which it was told
	Known bool  // the source has been asked at all
	Error string
}

// OpenStage finds what an earlier attempt at the same move has left, or begins with nothing. It
// starts nothing: Run copies.
func OpenStage(o StageOptions) (*Stage, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Stage{o: o, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	s.log = o.Logger.With("partition", preferredDir(o.Key, o.Name), "move", o.Move, "shard", uint32(o.Shard))
	s.mu.sealed = make(map[int64]commitlog.SegmentInfo)
	var err error
	if s.dir, err = o.Dirs.openStage(s); err != nil {
		return nil, fmt.Errorf("open stage of %s-%d: %w", o.Name, o.Key.Index, err)
	}
	if err := s.survey(); err != nil {
		return nil, fmt.Errorf("open stage of %s-%d: %w", o.Name, o.Key.Index, err)
	}
	return s, nil
}

func (s *Stage) claim() claim { return claim{key: s.o.Key, shard: s.o.Shard, move: s.o.Move} }

// survey lists what is there.
func (s *Stage) survey() error {
	names, err := s.o.FS.List(s.dir)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, name := range names {
		base, suffix, ok := splitSegmentName(name)
		if !ok || suffix != logSuffix {
			continue // a part is looked at when its segment is copied
		}
		info, err := s.o.FS.Stat(filepath.Join(s.dir, name))
		if err != nil {
			return fmt.Errorf("stat segment: %w", err)
		}
		s.mu.sealed[base] = commitlog.SegmentInfo{Base: base, Bytes: info.Size()}
	}
	return nil
}

// splitSegmentName takes `<20 digits><suffix>` apart.
func splitSegmentName(name string) (base int64, suffix string, ok bool) {
	digits, rest, ok := strings.Cut(name, ".")
	base, err := strconv.ParseInt(digits, 10, 64)
	return base, "." + rest, ok && err == nil && len(digits) == 20
}

func (s *Stage) path(base int64, suffix string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%020d%s", base, suffix))
}

// Move is the move that the stage belongs to.
func (s *Stage) Move() uint64 { return s.o.Move }

// Key is the partition that is copied.
func (s *Stage) Key() Key { return s.o.Key }

// Progress tells how far the copy is.
func (s *Stage) Progress() StageProgress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.progress
}

// Taken tells whether the partition was adopted, which ends the stage.
func (s *Stage) Taken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.taken
}

// take ends the stage: its directory belongs to the partition from now on.
func (s *Stage) take() { s.end(true) }

func (s *Stage) end(adopted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return
	}
	s.mu.taken, s.mu.adopted = true, adopted
	close(s.ended)
	s.closePartLocked()
}

func (s *Stage) closePartLocked() {
	if s.mu.part.file != nil {
		_ = s.mu.part.file.Close() // what was written is checked again by whoever uses it
	}
	s.mu.part = part{base: -1}
}

// Close ends the stage and leaves what it has on disk, for OpenStage to find. Run must have ended.
func (s *Stage) Close() {
	s.end(false)
	s.o.Dirs.closeStage(s)
}

// Discard ends the stage and removes its directory, unless the partition was adopted.
func (s *Stage) Discard() error {
	adopted := s.Taken()
	s.Close()
	if adopted {
		return nil
	}
	return s.o.Dirs.remove(s.dir)
}

// Seal copies the rest of what a frozen partition's section names and returns nil once all of it is
// whole and durable here. It waits for Run, which must be running.
func (s *Stage) Seal(ctx context.Context, section []byte) error {
	sec, err := decodeSection(section)
	if err != nil {
		return err
	}
	if sec.key() != s.o.Key {
		return fmt.Errorf("%w: seal %s with the state of %s", ErrProtocol, s.o.Key, sec.key())
	}
	want := &seal{manifest: sec.Log, done: make(chan struct{})}
	s.mu.Lock()
	switch done := s.mu.done; {
	case s.mu.taken:
		s.mu.Unlock()
		return s.sealedByEnd()
	case done != nil && equalManifests(*done, sec.Log):
		s.mu.Unlock()
		return nil
	case s.mu.seal != nil && equalManifests(s.mu.seal.manifest, sec.Log):
		want = s.mu.seal
	default:
		s.mu.seal, s.mu.done = want, nil
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case <-want.done:
		return nil
	case <-s.ended:
		return s.sealedByEnd()
	case <-ctx.Done():
		return fmt.Errorf("seal the copy of %s-%d: %w", s.o.Name, s.o.Key.Index, ctx.Err())
	}
}

// sealedByEnd answers a seal of a stage that has ended. Adopted: somebody has sealed it, or the shard fetches what is missing. Closed:
// who asks may take the source's data away for this copy, of which nothing is promised.
func (s *Stage) sealedByEnd() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.adopted {
		return nil
	}
	return fmt.Errorf("seal the copy of %s-%d: %w", s.o.Name, s.o.Key.Index, errStageClosed)
}

func equalManifests(a, b commitlog.Manifest) bool {
	if a.Start != b.Start || a.End != b.End || len(a.Segments) != len(b.Segments) {
		return false
	}
	for i := range a.Segments {
		if a.Segments[i] != b.Segments[i] {
			return false
		}
	}
	return true
}

// Run copies until the partition is adopted or ctx ends. What fails is tried again.
func (s *Stage) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
	}()
	wait := stagePollMin
	for round := 0; ctx.Err() == nil; round++ {
		copied, err := s.round(ctx, round)
		s.note(err)
		switch {
		case err != nil:
			wait = min(max(2*wait, backOffMin), backOffMax)
			s.idle(ctx, time.Duration(rand.Int64N(int64(wait)))+stagePollMin)
		case copied > 0:
			wait = stagePollMin
		default:
			s.idle(ctx, wait)
			wait = min(2*wait, stagePollMax)
		}
	}
}

func (s *Stage) idle(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.wake:
	case <-ctx.Done():
	}
}

func (s *Stage) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && s.mu.progress.Error == "" {
		s.log.Debug("copying a partition was interrupted", "err", err)
	}
	s.mu.progress.Error = text
}

// round asks one source after the other until one could be worked with.
func (s *Stage) round(ctx context.Context, round int) (copied int64, err error) {
	if s.o.Slots != nil {
		select {
		case s.o.Slots <- struct{}{}:
			defer func() { <-s.o.Slots }()
		case <-ctx.Done():
			return 0, nil
		}
	}
	err = fmt.Errorf("%w: the source has no replica that can be reached", ErrPeer)
	for _, peer := range s.o.Sources() {
		if copied, err = s.copyFrom(ctx, peer); err == nil || ctx.Err() != nil || s.Taken() {
			return copied, nil
		}
		err = fmt.Errorf("copy from %s: %w", peer.Name, err)
	}
	return copied, err
}

// copyFrom brings the stage to where one source is, or to where a seal wants it.
func (s *Stage) copyFrom(ctx context.Context, peer Peer) (copied int64, err error) {
	if want, sealed := s.sealing(); sealed && want == nil {
		return 0, nil
	}
	conn, err := dialSource(ctx, peer, s.o.From, s.o.Key)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	for {
		want, sealed := s.sealing()
		if sealed && want == nil {
			return copied, nil // nothing may be touched: the next may be that it is adopted
		}
		m, err := s.target(conn, want)
		if err != nil {
			return copied, err
		}
		n, err := s.copyAll(ctx, conn, m, want != nil)
		copied += n
		if err != nil {
			return copied, err
		}
		if want != nil {
			if err := s.finishSeal(want); err != nil {
				return copied, err
			}
		}
		if n == 0 && want == nil {
			return copied, nil
		}
		if s.o.Slots != nil && copied >= stageTurnBytes {
			return copied, nil // let others have the slot
		}
	}
}

// stageTurnBytes are copied before a stage lets another one have its slot.
const stageTurnBytes = 64 << 20

// sealing returns what the stage shall come to, nil when it just follows its source, and whether it has
// come to where it is frozen.
func (s *Stage) sealing() (want *seal, sealed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.seal, s.mu.done != nil
}

// target is what is to be copied now.
func (s *Stage) target(conn *sourceConn, want *seal) (commitlog.Manifest, error) {
	if want != nil {
		return want.manifest, nil
	}
	m, err := conn.describe()
	if err != nil {
		return m, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.progress.Known, s.mu.progress.End = true, m.End
	s.measureLocked(m)
	return m, nil
}

// measureLocked counts what is there and what is not.
func (s *Stage) measureLocked(m commitlog.Manifest) {
	have, left := int64(0), int64(0)
	for _, seg := range m.Segments {
		n := int64(0)
		if done, ok := s.mu.sealed[seg.Base]; ok {
			n = done.Bytes
		} else if s.mu.part.file != nil && s.mu.part.base == seg.Base {
			n = s.mu.part.have
		}
		have += n
		left += max(0, seg.Bytes-n)
	}
	s.mu.progress.Bytes, s.mu.progress.Left = have, left
}

// copyAll copies what the manifest names and is not here. The last segment is given its name only for a seal.
func (s *Stage) copyAll(ctx context.Context, conn *sourceConn, m commitlog.Manifest, whole bool) (copied int64, err error) {
	for i, seg := range m.Segments {
		closed := i < len(m.Segments)-1 || whole
		n, err := s.copySegment(ctx, conn, m, seg, closed)
		copied += n
		if err != nil {
			return copied, fmt.Errorf("segment %d: %w", seg.Base, err)
		}
	}
	return copied, nil
}

// finishSeal makes the names durable and tells who waits.
func (s *Stage) finishSeal(want *seal) error {
	if err := s.o.FS.SyncDir(s.dir); err != nil {
		return fmt.Errorf("sync stage: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.taken {
		return errTaken
	}
	s.mu.done = &want.manifest
	s.mu.progress.Known, s.mu.progress.End = true, want.manifest.End
	s.measureLocked(want.manifest)
	if s.mu.seal == want {
		s.mu.seal = nil
	}
	close(want.done)
	return nil
}
