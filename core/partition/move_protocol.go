package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/commitlog"
	"sluice/core/meta"
)

// The move protocol: a node that is to adopt a partition of another shard asks a replica of that
// shard what the partition consists of, and for the segments, piece by piece.
//
//	copier                            server
//	request {version, op, ...}   ->
//	                             <-   answer {version, n, error}, then n bytes
//	...
//
// Messages are framed as in the segments protocol. A connection is good for any shard of the node.
const (
	moveVersion = 1

	moveDescribe = 1 // answered with the log's manifest in CBOR
	movePiece    = 2 // answered with bytes of a segment
	moveUrgent   = 3 // the same for a partition that is frozen: not held back

	// describeBytesMax bounds a manifest: some 300,000 segments.
	describeBytesMax = 32 << 20
)

type moveRequest struct {
	_       struct{} `cbor:",toarray"`
	Version uint16
	Op      uint8
	Shard   meta.ShardID
	Topic   meta.TopicID
	Index   int32
	Base    int64
	Bytes   int64
	From    int64
	Max     int64
}

// ServeMove answers one connection of the move protocol; the throttle holds pieces back. It returns when the peer has closed the connection, ctx has ended or the peer has broken the
// protocol; the caller closes conn.
func ServeMove(ctx context.Context, conn net.Conn, lookup func(meta.ShardID) (*Set, bool), throttle *Throttle) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		var q moveRequest
		if err := readMessage(conn, &q); err != nil {
			return endOfConn(ctx, err)
		}
		if err := answerMove(ctx, conn, &q, lookup, throttle); err != nil {
			return endOfConn(ctx, err)
		}
	}
}

func answerMove(ctx context.Context, conn net.Conn, q *moveRequest, lookup func(meta.ShardID) (*Set, bool), throttle *Throttle) error {
	set, ok := lookup(q.Shard)
	switch {
	case q.Version > moveVersion:
		return answerBytes(conn, nil, ErrVersion)
	case !ok:
		return answerBytes(conn, nil, errNoSuchShard)
	case q.Op == moveDescribe:
		body, err := set.describe(Key{q.Topic, q.Index})
		return answerBytes(conn, body, err)
	case q.Op != movePiece && q.Op != moveUrgent && q.Op != moveStaged:
		return answerBytes(conn, nil, ErrProtocol)
	}
	if q.Op == movePiece {
		q.Max = throttle.Piece(q.Max)
	}
	piece, err := set.moved(q)
	defer piece.Release()
	if q.Op != moveUrgent {
		if err := throttle.Wait(ctx, piece.Len()); err != nil {
			return err
		}
	}
	if err := writeMessage(conn, &answerHead{Version: moveVersion, Bytes: piece.Len(), Error: text(err)}); err != nil {
		return err
	}
	if _, err := piece.WriteTo(conn); err != nil {
		return fmt.Errorf("send piece: %w", err)
	}
	set.metrics.servedBytes.Add(int(piece.Len()))
	return nil
}

func (s *Set) moved(q *moveRequest) (*commitlog.Chunk, error) {
	if q.Op == moveStaged {
		return s.readStaged(q)
	}
	return s.readPiece(&pieceRequest{Topic: q.Topic, Index: q.Index, Base: q.Base, Bytes: q.Bytes, From: q.From, Max: q.Max})
}

var errNoSuchShard = errors.New("shard is not on this node")

func answerBytes(conn net.Conn, body []byte, err error) error {
	if err := writeMessage(conn, &answerHead{Version: moveVersion, Bytes: int64(len(body)), Error: text(err)}); err != nil {
		return err
	}
	if _, err := conn.Write(body); err != nil {
		return fmt.Errorf("send answer: %w", err)
	}
	return nil
}

// describe returns what a partition's log consists of here, in CBOR.
func (s *Set) describe(k Key) ([]byte, error) {
	p, ok := s.Get(k)
	if !ok {
		return nil, ErrUnknownPartition
	}
	body, err := cbor.Marshal(p.log.Manifest())
	if err != nil {
		panic(fmt.Sprintf("BUG: encode manifest: %v", err))
	}
	return body, nil
}

// sourceConn is a connection to a replica of a source.
type sourceConn struct {
	conn  net.Conn
	stop  func() bool
	shard meta.ShardID
	key   Key
}

func dialSource(ctx context.Context, peer Peer, shard meta.ShardID, key Key) (*sourceConn, error) {
	conn, err := peer.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return &sourceConn{conn: conn, stop: stop, shard: shard, key: key}, nil
}

func (c *sourceConn) close() {
	c.stop()
	_ = c.conn.Close()
}

func (c *sourceConn) ask(q *moveRequest) (bytes int64, err error) {
	q.Version, q.Shard, q.Topic, q.Index = moveVersion, c.shard, c.key.Topic, c.key.Index
	if err := writeMessage(c.conn, q); err != nil {
		return 0, err
	}
	var a answerHead
	if err := readMessage(c.conn, &a); err != nil {
		return 0, err
	}
	if a.Error != "" {
		return 0, fmt.Errorf("%w: %s", ErrPeer, a.Error)
	}
	return a.Bytes, nil
}

// describe asks what the partition's log consists of.
func (c *sourceConn) describe() (m commitlog.Manifest, err error) {
	n, err := c.ask(&moveRequest{Op: moveDescribe})
	if err != nil {
		return m, err
	}
	if n < 0 || n > describeBytesMax {
		return m, fmt.Errorf("%w: manifest of %d bytes", ErrProtocol, n)
	}
	body, err := readExactly(c.conn, n)
	if err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if err := sectionDecoding.Unmarshal(body, &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return m, nil
}

// piece asks for the bytes of a segment from a position on; buf has the size that is wanted.
func (c *sourceConn) piece(seg commitlog.SegmentInfo, from int64, buf []byte, urgent bool) ([]byte, error) {
	op := uint8(movePiece)
	if urgent {
		op = moveUrgent
	}
	return c.read(&moveRequest{Op: op, Base: seg.Base, Bytes: seg.Bytes, From: from, Max: int64(len(buf))}, buf)
}

func (c *sourceConn) read(q *moveRequest, buf []byte) ([]byte, error) {
	n, err := c.ask(q)
	if err != nil {
		return nil, err
	}
	if n <= 0 || n > int64(len(buf)) {
		return nil, fmt.Errorf("%w: piece of %d bytes", ErrProtocol, n)
	}
	if _, err := io.ReadFull(c.conn, buf[:n]); err != nil {
		return nil, fmt.Errorf("read piece: %w", err)
	}
	return buf[:n], nil
}
