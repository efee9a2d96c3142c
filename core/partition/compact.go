package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"sluice/core/commitlog"
)

// CompactOptions are a topic's settings as far as compaction goes, and the time.
type CompactOptions struct {
	NowMs                                 int64
	MinLagMs, MaxLagMs, DeleteRetentionMs int64
	MinDirtyRatio                         float64
	Throttle                              *Throttle // of what is read and written
}

// Cleanable says how much there is to compact.
type Cleanable struct {
	Dirty int64   // bytes that were never compacted, and may be
	Ratio float64 // of these in all that may be
	Limit int64   // offset up to which whole segments may be rewritten
	Due   bool
}

// Cleanable looks at a partition's segments as Kafka's log cleaner does. The segment that is written to does not count, nor what is younger than
// MinLagMs or belongs to a transaction that is open.
func (p *Partition) Cleanable(o CompactOptions) Cleanable {
	segments := p.log.Segments()
	if len(segments) < 2 || p.Frozen() || p.Removed() {
		return Cleanable{}
	}
	var (
		c     Cleanable
		clean int64
		aged  bool
		dirty = max(p.Dirty(), p.Start())
	)
	for _, seg := range segments[:len(segments)-1] {
		if seg.Next > p.LastStable() || o.MinLagMs > 0 && seg.MaxTimestamp > o.NowMs-o.MinLagMs {
			break
		}
		c.Limit = seg.Next
		if seg.Next <= dirty {
			clean += seg.Bytes
			continue
		}
		c.Dirty += seg.Bytes
		aged = aged || seg.FirstTimestamp >= 0 && seg.FirstTimestamp < o.NowMs-o.MaxLagMs
	}
	if c.Dirty > 0 {
		c.Ratio = float64(c.Dirty) / float64(c.Dirty+clean)
		c.Due = aged || c.Ratio > o.MinDirtyRatio || o.MinDirtyRatio == 0
	}
	return c
}

// Compaction is what one round has made of a partition. Nothing counts of it before its Entry is applied.
type Compaction struct {
	Swap
	BytesBefore, BytesAfter, RecordsLost int64

	release func()
}

// Release lets the partition be compacted again. It is called when the Entry is decided on, or will never be proposed: until then what was staged for it stays here.
func (c *Compaction) Release() { c.release() }

// Staged are the segments that the other replicas need.
func (c *Compaction) Staged() []commitlog.SegmentInfo {
	var list []commitlog.SegmentInfo
	for _, g := range c.Groups {
		if g.New.Bytes > 0 {
			list = append(list, g.New)
		}
	}
	return list
}

// Trim leaves out what retention has dropped since: of segments that are all gone nothing has to be replaced.
func (s *Set) Trim(c *Compaction) {
	p, ok := s.Get(c.Key)
	if !ok {
		return
	}
	segments := p.log.Segments()
	c.Groups = slices.DeleteFunc(c.Groups, func(g commitlog.SwapGroup) bool {
		return len(segments) > 0 && g.Old[len(g.Old)-1].Base < segments[0].Base
	})
}

// compacting guards the directories of partitions that are being rewritten or staged.
type compacting struct {
	sync.Mutex
	busy map[Key]bool
}

func (c *compacting) enter(k Key) error {
	c.Lock()
	defer c.Unlock()
	if c.busy[k] {
		return fmt.Errorf("%w: partition %s", errCompacting, k)
	}
	if c.busy == nil {
		c.busy = make(map[Key]bool)
	}
	c.busy[k] = true
	return nil
}

func (c *compacting) leave(k Key) {
	c.Lock()
	defer c.Unlock()
	delete(c.busy, k)
}

// ErrNotListed is returned when a partition is to be compacted or staged that no durable checkpoint of this replica names: replaying the entry that creates it would empty its
// directory, on all replicas after a power cut.
var ErrNotListed = errors.New("no checkpoint names the partition yet")

// Listed tells whether a durable checkpoint of this replica names a partition.
func (s *Set) Listed(k Key) bool {
	p, ok := s.Get(k)
	return ok && p.listed.Load()
}

// errCompacting is returned for the second of two that want to rewrite or stage one partition.
var errCompacting = errors.New("partition is being compacted")

// Compact rewrites what may be rewritten of a partition, beside its log. It is for the shard's leader, which has applied every entry of earlier leaders: what they have
// staged is removed. The caller releases the compaction.
func (s *Set) Compact(ctx context.Context, k Key, o CompactOptions) (*Compaction, error) {
	p, ok := s.Get(k)
	if !ok {
		return nil, ErrUnknownPartition
	}
	if err := s.compacting.enter(k); err != nil {
		return nil, err
	}
	c, err := s.compact(ctx, p, o)
	if err != nil {
		s.compacting.leave(k)
		return nil, fmt.Errorf("compact %s-%d: %w", p.name, k.Index, err)
	}
	c.release = func() { s.compacting.leave(k) }
	return c, nil
}

func (s *Set) compact(ctx context.Context, p *Partition, o CompactOptions) (*Compaction, error) {
	if !p.listed.Load() {
		return nil, ErrNotListed
	}
	if !s.Complete() || p.Frozen() {
		return nil, ErrChanged
	}
	if err := p.log.DropStaged(); err != nil {
		return nil, err
	}
	from := p.Dirty()
	r, err := p.log.Rewrite(commitlog.RewriteOptions{
		Dirty: from, Limit: p.Cleanable(o).Limit, NowMs: o.NowMs, DeleteRetentionMs: o.DeleteRetentionMs, LastOf: p.lastOf(),
		Pace: func(n int) error {
			if p.Removed() || p.Frozen() {
				return ErrChanged
			}
			return o.Throttle.Wait(ctx, int64(n))
		},
	})
	if err != nil {
		return nil, err
	}
	return &Compaction{
		Swap:        Swap{Key: p.key, From: from, To: max(r.Dirty, from), Groups: r.Groups},
		BytesBefore: r.BytesBefore, BytesAfter: r.BytesAfter, RecordsLost: r.RecordsLost,
	}, nil
}

// lastOf tells where the last record of each known producer is.
func (p *Partition) lastOf() func(int64) int64 {
	last := make(map[int64]int64)
	for _, pr := range p.Producers() {
		last[pr.ID] = pr.LastOffset
	}
	return func(id int64) int64 {
		if at, ok := last[id]; ok {
			return at
		}
		return -1
	}
}

// StageRequest asks a replica to get the segments that its leader has rewritten.
type StageRequest struct {
	Key      Key
	Segments []commitlog.SegmentInfo
	Throttle *Throttle
}

// StageCompacted copies rewritten segments from the leader. When it returns nil they are whole and durable here. The replica must have applied what the leader had when
// it began: what else was staged is removed.
func (s *Set) StageCompacted(ctx context.Context, leader Peer, q StageRequest) error {
	p, ok := s.Get(q.Key)
	if !ok {
		return ErrUnknownPartition
	}
	if err := s.compacting.enter(q.Key); err != nil {
		return err
	}
	defer s.compacting.leave(q.Key)
	if !p.listed.Load() {
		return ErrNotListed
	}
	if err := p.log.DropStaged(); err != nil {
		return fmt.Errorf("stage %s-%d: %w", p.name, q.Key.Index, err)
	}
	conn, err := dialSource(ctx, leader, s.o.Shard, q.Key)
	if err != nil {
		return fmt.Errorf("stage %s-%d: %w", p.name, q.Key.Index, err)
	}
	defer conn.close()
	buf := make([]byte, pieceBytesMax)
	for _, seg := range q.Segments {
		err := p.log.StageSegment(seg, func(from int64) ([]byte, error) {
			n := q.Throttle.Piece(min(pieceBytesMax, seg.Bytes-from))
			if err := q.Throttle.Wait(ctx, n); err != nil {
				return nil, err
			}
			return conn.staged(seg, from, buf[:n])
		})
		if err != nil {
			return fmt.Errorf("stage %s-%d: %w", p.name, q.Key.Index, err)
		}
	}
	return p.log.SyncStaged()
}

// moveStaged asks for bytes of a segment that was rewritten and is not part of the log yet. Max has its checksum in its lower half, so that no other
// that was made of the same one is taken for it, and how many bytes are wanted in its upper.
const moveStaged = 4

func (c *sourceConn) staged(seg commitlog.SegmentInfo, from int64, buf []byte) ([]byte, error) {
	return c.read(&moveRequest{Op: moveStaged, Base: seg.Base, Bytes: seg.Bytes, From: from, Max: int64(len(buf))<<32 | int64(seg.CRC)}, buf)
}

func (s *Set) readStaged(q *moveRequest) (*commitlog.Chunk, error) {
	p, ok := s.Get(Key{q.Topic, q.Index})
	if !ok {
		return nil, ErrUnknownPartition
	}
	n := min(q.Max>>32, q.Bytes-q.From, pieceBytesMax)
	if q.From < 0 || n <= 0 || q.Base < 0 {
		return nil, fmt.Errorf("%w: piece from %d of %d bytes", ErrProtocol, q.From, q.Bytes)
	}
	return p.log.ReadStaged(commitlog.SegmentInfo{Base: q.Base, Bytes: q.Bytes, CRC: uint32(q.Max)}, q.From, n)
}
