package partition

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"sluice/core/commitlog"
)

const (
	// Between two rounds over all peers that brought nothing the fetcher waits
	// this long, doubling, with full jitter.
	backOffMin = 100 * time.Millisecond
	backOffMax = 5 * time.Second
	// verifyBytes are read at once to compare a segment with its checksum.
	verifyBytes = 1 << 20
)

// Run fetches what a restored checkpoint names and this replica lacks, until ctx
// ends. It returns nil then, or the error that has stopped the set.
func (s *Set) Run(ctx context.Context) error {
	wait := backOffMin
	for round := 0; ; round++ {
		if err := s.Err(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if s.Complete() {
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
		if w.unsynced && len(w.missing) == 0 || w.unsynced && !progress {
			if err := s.syncPartition(w.p); err != nil {
				s.fail(err)
				return progress
			}
			s.catchUp.update(w.p, func(w *incomplete) { w.unsynced = false })
			progress = true
		}
	}
	return progress
}

// verify compares a segment with its checksum; one that differs becomes missing.
func (s *Set) verify(ctx context.Context, p *Partition, seg commitlog.SegmentInfo) {
	sum, err := s.checksum(ctx, p, seg)
	if ctx.Err() != nil {
		return
	}
	damaged := err != nil || sum != seg.CRC
	if damaged && !p.Removed() {
		s.log.Warn("segment differs from the checkpoint and will be fetched",
			"partition", fmt.Sprintf("%s-%d", p.name, p.key.Index), "segment", seg.Base, "err", err)
	}
	s.catchUp.update(p, func(w *incomplete) {
		w.unverified = without(w.unverified, seg.Base)
		if damaged {
			w.missing = append(w.missing, seg)
		}
	})
}

func (s *Set) checksum(ctx context.Context, p *Partition, seg commitlog.SegmentInfo) (uint32, error) {
	f, err := s.o.FS.Open(p.segmentPath(seg.Base))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	r := io.NewSectionReader(f, 0, seg.Bytes)
	for done := int64(0); done < seg.Bytes; {
		n, err := io.CopyN(sum, r, min(verifyBytes, seg.Bytes-done))
		if err != nil {
			return 0, err
		}
		if err := s.catchUp.fetch.wait(ctx, n); err != nil {
			return 0, err
		}
		done += n
	}
	return sum.Sum32(), nil
}

func without(list []commitlog.SegmentInfo, base int64) []commitlog.SegmentInfo {
	var rest []commitlog.SegmentInfo
	for _, seg := range list {
		if seg.Base != base {
			rest = append(rest, seg)
		}
	}
	return rest
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
		return s.fetchFailed(p, fmt.Errorf("write missing segment %d of %s-%d: %w", seg.Base, p.name, p.key.Index, err))
	}
	defer w.Close()
	if err := s.fetchPieces(ctx, conn, p, seg, w); err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		if errors.Is(err, commitlog.ErrCorrupt) {
			return fmt.Errorf("%w: what came is not segment %d of %s-%d: %w", ErrPeer, seg.Base, p.name, p.key.Index, err)
		}
		return s.fetchFailed(p, fmt.Errorf("commit fetched segment %d of %s-%d: %w", seg.Base, p.name, p.key.Index, err))
	}
	s.metrics.fetchedSegments.Inc()
	s.catchUp.update(p, func(w *incomplete) { w.missing = without(w.missing, seg.Base) })
	p.wake()
	return nil
}

// fetchFailed stops the set for an error of its own storage, unless the segment
// was no longer wanted.
func (s *Set) fetchFailed(p *Partition, err error) error {
	if !p.Removed() && !errors.Is(err, commitlog.ErrOutOfRange) {
		s.fail(err)
	}
	return err
}

func (s *Set) fetchPieces(ctx context.Context, conn net.Conn, p *Partition, seg commitlog.SegmentInfo, w commitlog.SegmentWriter) error {
	buf := make([]byte, min(pieceBytesMax, seg.Bytes))
	q := pieceRequest{Topic: p.key.Topic, Index: p.key.Index, Base: seg.Base, Bytes: seg.Bytes, From: w.Resume(), Max: pieceBytesMax}
	for q.From < seg.Bytes {
		piece, err := fetchPiece(conn, &q, buf)
		if err != nil {
			return err
		}
		if _, err := w.WriteAt(piece, q.From); err != nil {
			return s.fetchFailed(p, fmt.Errorf("write fetched piece of %s-%d: %w", p.name, p.key.Index, err))
		}
		q.From += int64(len(piece))
		s.metrics.fetchedBytes.Add(len(piece))
		if err := s.catchUp.fetch.wait(ctx, int64(len(piece))); err != nil {
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
