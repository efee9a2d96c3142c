package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"sluice/core/commitlog"
)

const (
	// Between two rounds over all peers that brought nothing the fetcher waits
	// this long, doubling, with full jitter.
	backOffMin = 100 * time.Millisecond
	backOffMax = 5 * time.Second
)

// Run fetches what a restored checkpoint names and this replica lacks, and repairs
// what is found damaged, until ctx ends. It returns nil then, or the error that has stopped the set.
func (s *Set) Run(ctx context.Context) error {
	var repairs sync.WaitGroup
	defer repairs.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	repairs.Go(func() { s.repair(ctx) })
	return s.catchUpRounds(ctx)
}

func (s *Set) catchUpRounds(ctx context.Context) error {
	wait := backOffMin
	for round := 0; ; round++ {
		if err := s.Err(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if s.catchUp.complete() {
			select {
			case <-s.catchUp.wake:
				wait = backOffMin
			case <-ctx.Done():
			}
			continue
		}
		if s.round(ctx, round) {
			wait = backOffMin
			continue
		}
		_ = sleep(ctx, time.Duration(rand.Int64N(int64(wait)))+backOffMin/2)
		wait = min(2*wait, backOffMax)
	}
}

// round checks and syncs what is here, then asks one peer after the other for
// what is not. It tells whether it came forward.
func (s *Set) round(ctx context.Context, round int) (progress bool) {
	progress = s.settle(ctx)
	if s.o.Peers == nil || s.catchUp.segments() == 0 || s.Err() != nil {
		return progress
	}
	peers := s.o.Peers()
	for i := range peers {
		peer := peers[(i+round)%len(peers)]
		n, err := s.fetchFrom(ctx, peer)
		if err != nil && ctx.Err() == nil {
			s.metrics.fetchErrors.Inc()
			s.log.Info("segments not fetched from peer", "peer", peer.Name, "fetched", n, "err", err)
		}
		progress = progress || n > 0
		if s.catchUp.segments() == 0 || ctx.Err() != nil || s.Err() != nil {
			break
		}
	}
	return progress
}

// settle verifies and syncs what is here of incomplete partitions.
func (s *Set) settle(ctx context.Context) (progress bool) {
	for _, w := range s.catchUp.list() {
		for _, seg := range w.unverified {
			if ctx.Err() != nil || s.Err() != nil {
				return progress
			}
			s.verify(ctx, w.p, seg)
			progress = true
		}
		if !w.unsynced || s.Err() != nil {
			continue
		}
		if err := s.syncRestored(w.p); err != nil {
			s.fail(err)
			return progress
		}
		s.catchUp.update(w.p, func(w *incomplete) { w.unsynced = false })
		progress = true
	}
	return progress
}

// syncRestored makes durable what a restored partition has: its segments with
// their names, and its own name.
func (s *Set) syncRestored(p *Partition) error {
	err := s.syncFiles(p)
	if err == nil {
		err = s.o.Dirs.at(p.dir).SyncDir(p.dir)
	}
	if err == nil {
		err = s.o.Dirs.Sync()
	}
	if err != nil && !p.Removed() {
		return fmt.Errorf("sync restored %s-%d: %w", p.name, p.key.Index, err)
	}
	return nil
}

// verify compares a segment with its checksum and syncs it; one that differs is
// set aside and becomes missing.
func (s *Set) verify(ctx context.Context, p *Partition, seg commitlog.SegmentInfo) {
	err := p.log.Verify(seg.Base, false, func(n int) error { return s.catchUp.fetch.Wait(ctx, int64(n)) })
	if err == nil {
		err = s.syncSegment(p, seg.Base)
	}
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, fs.ErrNotExist): // it got another name at this moment: the next round looks again
	case err == nil || errors.Is(err, commitlog.ErrMissing) || !contains(p.log.Segments(), seg.Base): // whole, or dropped meanwhile
		s.catchUp.update(p, func(w *incomplete) { w.unverified = without(w.unverified, seg.Base) })
		p.wake()
	case errors.Is(err, commitlog.ErrCorrupt):
		s.log.Warn("segment differs from the checkpoint and will be fetched", "partition", p.dir, "segment", seg.Base, "err", err)
		s.quarantine(p, seg.Base)
	default:
		s.fail(fmt.Errorf("verify restored segment: %w", err))
	}
}

func (s *Set) quarantine(p *Partition, base int64) {
	_, err := p.log.Quarantine(base)
	if errors.Is(err, commitlog.ErrMissing) {
		return // another segment has taken its place meanwhile
	}
	if err != nil {
		s.fail(fmt.Errorf("set damaged segment aside: %w", err))
		return
	}
	s.catchUp.update(p, func(w *incomplete) {
		w.unverified = without(w.unverified, base)
		w.missing = p.log.Missing()
	})
}

// syncSegment makes a segment durable that the log takes for synced.
func (s *Set) syncSegment(p *Partition, base int64) error {
	f, err := s.o.Dirs.at(p.dir).Open(p.segmentPath(base))
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync segment: %w", err), f.Close())
	}
	return f.Close()
}

func contains(list []commitlog.SegmentInfo, base int64) bool {
	return slices.ContainsFunc(list, func(seg commitlog.SegmentInfo) bool { return seg.Base == base })
}

func without(list []commitlog.SegmentInfo, base int64) []commitlog.SegmentInfo {
	return slices.DeleteFunc(slices.Clone(list), func(seg commitlog.SegmentInfo) bool { return seg.Base == base })
}

// fetchFrom fetches what one peer can serve and returns how many segments came.
func (s *Set) fetchFrom(ctx context.Context, peer Peer) (fetched int, err error) {
	conn, err := peer.Dial(ctx)
	if err != nil {
		return 0, fmt.Errorf("dial peer: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := s.greet(conn); err != nil {
		return 0, err
	}
	var refused error
	for _, w := range s.catchUp.list() {
		for _, seg := range w.missing {
			err := s.fetchSegment(ctx, conn, w.p, seg)
			switch {
			case err == nil:
				fetched++
			case errors.Is(err, ErrPeer):
				refused = err // another segment may be there
			default:
				return fetched, err
			}
		}
	}
	return fetched, refused
}

func (s *Set) greet(conn net.Conn) error {
	if err := writeMessage(conn, &hello{Version: segmentsVersion, Shard: s.o.Shard}); err != nil {
		return err
	}
	var a answerHead
	if err := readMessage(conn, &a); err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("%w: %s", ErrPeer, a.Error)
	}
	return nil
}

// fetchSegment fetches one segment, going on where an earlier attempt ended.
func (s *Set) fetchSegment(ctx context.Context, conn net.Conn, p *Partition, seg commitlog.SegmentInfo) error {
	w, err := p.log.WriteSegment(seg)
	if err != nil {
		return s.fetchFailed(p, seg, err)
	}
	defer w.Close()
	failed := func(err error) error { return s.fetchFailed(p, seg, err) }
	if err := s.fetchPieces(ctx, conn, p, seg, w, failed); err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		if errors.Is(err, commitlog.ErrCorrupt) {
			return fmt.Errorf("%w: what came is not segment %d of %s-%d: %w", ErrPeer, seg.Base, p.name, p.key.Index, err)
		}
		return s.fetchFailed(p, seg, err)
	}
	s.metrics.fetchedSegments.Inc()
	s.catchUp.update(p, func(w *incomplete) { w.missing = without(w.missing, seg.Base) })
	p.wake()
	if len(p.log.Missing()) == 0 {
		if err := p.log.RemoveStale(); err != nil {
			s.metrics.sweepErrors.Inc()
			s.log.Warn("could not remove replaced segments", "partition", p.dir, "err", err)
		}
	}
	return nil
}

// fetchFailed stops the set for an error of its own storage, unless the segment
// is no longer wanted: its partition was deleted, its log's start moved above it,
// or another checkpoint was restored.
func (s *Set) fetchFailed(p *Partition, seg commitlog.SegmentInfo, err error) error {
	err = fmt.Errorf("store fetched segment %d of %s-%d: %w", seg.Base, p.name, p.key.Index, err)
	if !p.Removed() && slices.Contains(p.log.Missing(), seg) {
		s.fail(err)
		return err
	}
	return fmt.Errorf("%w: no longer wanted: %w", ErrPeer, err)
}

// fetchPieces fetches the rest of a segment. failed is asked what an error of its own storage means.
func (s *Set) fetchPieces(ctx context.Context, conn net.Conn, p *Partition, seg commitlog.SegmentInfo, w commitlog.SegmentWriter, failed func(error) error) error {
	buf := make([]byte, min(pieceBytesMax, seg.Bytes))
	q := pieceRequest{Topic: p.key.Topic, Index: p.key.Index, Base: seg.Base, Bytes: seg.Bytes, From: w.Resume(), Max: s.catchUp.fetch.Piece(pieceBytesMax)}
	defer s.catchUp.partial.Store(0)
	for q.From < seg.Bytes {
		s.catchUp.partial.Store(q.From)
		piece, err := fetchPiece(conn, &q, buf)
		if err != nil {
			return err
		}
		if _, err := w.WriteAt(piece, q.From); err != nil {
			return failed(err)
		}
		q.From += int64(len(piece))
		s.metrics.fetchedBytes.Add(len(piece))
		if err := s.catchUp.fetch.Wait(ctx, int64(len(piece))); err != nil {
			return err
		}
	}
	return nil
}

func fetchPiece(conn net.Conn, q *pieceRequest, buf []byte) ([]byte, error) {
	if err := writeMessage(conn, q); err != nil {
		return nil, err
	}
	var a answerHead
	if err := readMessage(conn, &a); err != nil {
		return nil, err
	}
	if a.Error != "" {
		return nil, fmt.Errorf("%w: %s", ErrPeer, a.Error)
	}
	if a.Bytes <= 0 || a.Bytes > min(int64(len(buf)), q.Bytes-q.From) {
		return nil, fmt.Errorf("%w: piece of %d bytes", ErrProtocol, a.Bytes)
	}
	if _, err := io.ReadFull(conn, buf[:a.Bytes]); err != nil {
		return nil, fmt.Errorf("read piece: %w", err)
	}
	return buf[:a.Bytes], nil
}
