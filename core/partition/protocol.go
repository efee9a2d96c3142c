package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/meta"
)

// The segments protocol: a replica that lacks segments asks another one for
// them, piece by piece, over a connection of its own.
//
//	fetcher                           server
//	hello {version, shard}       ->
//	                             <-   answer {version, 0, error}
//	piece request                ->
//	                             <-   answer {version, n, error}, then n bytes
//	...
//
// A message is a CBOR array behind its length (2 bytes, big-endian). An answer
// with an error carries no bytes and leaves the connection usable, except the
// answer to hello.
const (
	segmentsVersion = 1
	// messageBytesMax is more than any message of this version has.
	messageBytesMax = 4 << 10
	// pieceBytesMax bounds a piece: large enough that the round trip does not
	// matter, small enough that eight of them are nothing.
	pieceBytesMax = 1 << 20
)

type hello struct {
	_       struct{} `cbor:",toarray"`
	Version uint16
	Shard   meta.ShardID
}

// pieceRequest asks for up to Max bytes at From of the first Bytes bytes of the
// segment at Base.
type pieceRequest struct {
	_     struct{} `cbor:",toarray"`
	Topic meta.TopicID
	Index int32
	Base  int64
	Bytes int64
	From  int64
	Max   int64
}

type answerHead struct {
	_       struct{} `cbor:",toarray"`
	Version uint16
	Bytes   int64
	Error   string
}

func writeMessage(conn net.Conn, m any) error {
	body, err := cbor.Marshal(m)
	if err != nil || len(body) > messageBytesMax {
		panic(fmt.Sprintf("BUG: encode message of %d bytes: %v", len(body), err))
	}
	frame := append(binary.BigEndian.AppendUint16(nil, uint16(len(body))), body...)
	if err := conn.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := conn.Write(frame); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

func readMessage(conn net.Conn, m any) error {
	if err := conn.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	var head [2]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > messageBytesMax {
		return fmt.Errorf("%w: message of %d bytes", ErrProtocol, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(conn, body); err != nil {
		return fmt.Errorf("read message: %w", errors.Join(ErrProtocol, err))
	}
	if err := cbor.Unmarshal(body, m); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}
