package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"sluice/core/commitlog"
	"sluice/core/meta"
)

const (
	// maxServed connections fetch from one set at once; a shard has few replicas,
	// and each fetches over one connection.
	maxServed = 8
	// idleTimeout closes a connection on which nothing was asked or taken for so
	// long: a fetcher asks for the next piece as soon as it has written the last.
	idleTimeout = 30 * time.Second
)

// Serve answers one connection of the kind "segments": it reads which shard is
// meant and hands over to that shard's set. It returns when the peer has closed
// the connection, ctx has ended or the peer has broken the protocol; the caller
// closes conn.
func Serve(ctx context.Context, conn net.Conn, lookup func(meta.ShardID) (*Set, bool)) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var h hello
	if err := readMessage(conn, &h); err != nil {
		return endOfConn(ctx, err)
	}
	set, ok := lookup(h.Shard)
	answer := answerHead{Version: segmentsVersion}
	if h.Version > segmentsVersion {
		answer.Error = "newer protocol version"
	} else if !ok {
		answer.Error = "shard is not on this node"
	}
	if err := writeMessage(conn, &answer); err != nil || answer.Error != "" {
		return endOfConn(ctx, err)
	}
	return endOfConn(ctx, set.serve(ctx, conn))
}

// ServeSegments is Serve for a node with this set alone.
func (s *Set) ServeSegments(ctx context.Context, conn net.Conn) error {
	return Serve(ctx, conn, func(id meta.ShardID) (*Set, bool) { return s, id == s.o.Shard })
}

// endOfConn makes a clean end of what is one.
func endOfConn(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (s *Set) serve(ctx context.Context, conn net.Conn) error {
	select {
	case s.catchUp.slots <- struct{}{}:
		defer func() { <-s.catchUp.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		var q pieceRequest
		if err := readMessage(conn, &q); err != nil {
			return err
		}
		if err := s.answer(ctx, conn, &q); err != nil {
			return err
		}
	}
}

func (s *Set) answer(ctx context.Context, conn net.Conn, q *pieceRequest) error {
	piece, err := s.readPiece(q)
	defer piece.Release()
	n := piece.Len()
	if err := s.catchUp.serve.Wait(ctx, n); err != nil {
		return err
	}
	if err := writeMessage(conn, &answerHead{Version: segmentsVersion, Bytes: n, Error: text(err)}); err != nil {
		return err
	}
	if _, err := piece.WriteTo(conn); err != nil {
		return fmt.Errorf("send piece: %w", err)
	}
	s.metrics.servedBytes.Add(int(n))
	return nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// readPiece returns the bytes that a peer asked for, which the caller releases.
// Only what this replica has applied, and has itself, is served.
func (s *Set) readPiece(q *pieceRequest) (*commitlog.Chunk, error) {
	p, ok := s.Get(Key{q.Topic, q.Index})
	if !ok {
		return nil, ErrUnknownPartition
	}
	n := min(q.Max, q.Bytes-q.From, pieceBytesMax)
	if q.From < 0 || n <= 0 {
		return nil, fmt.Errorf("%w: piece from %d of %d bytes", ErrProtocol, q.From, q.Bytes)
	}
	n = s.catchUp.serve.Piece(n)
	if s.wounds.has(p, q.Base) {
		return nil, fmt.Errorf("segment %d: %w", q.Base, commitlog.ErrCorrupt)
	}
	chunk, err := p.log.ReadSegment(q.Base, q.From, n)
	if err != nil {
		return nil, err
	}
	if chunk.Len() < n {
		chunk.Release()
		return nil, fmt.Errorf("%w: segment %d has no %d bytes", ErrOutOfRange, q.Base, q.Bytes)
	}
	return chunk, nil
}

func (p *Partition) segmentPath(base int64) string {
	return p.log.SegmentPath(base)
}
