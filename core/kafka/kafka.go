// Package kafka is the wire of Apache Kafka's protocol and nothing else: frames, headers, the table of versions, and the loop of a connection.
//
// It guarantees that requests of one connection are handed over and answered in order, that no frame, queue or connection is without a
// bound, that bytes which are no request cost only the connection that sent them, and that record bytes of a fetch go from the file to
// the socket without being copied here. It does not know what a request means: a Handler does, in core/broker.
package kafka

import (
	"context"
	"io"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Keys of the protocol that this package itself has to know.
const (
	keyProduce      = 0
	keyOffsetCommit = 8
	keyJoinGroup    = 11
	keySyncGroup    = 14
	keyApiVersions  = 18
)

// A Request is one decoded request.
type Request struct {
	Key, Version  int16
	CorrelationID int32
	ClientID      string
	// Body is decoded by Version. Byte slices in it alias the frame. The frame of a Produce request is reused as soon as Serve has returned;
	// all others are left to the garbage collector, so a handler may keep parts of them.
	Body kmsg.Request
	Conn *Conn
}

// A Reply waits for the answer of one request. It is called at most once, by the writer of the connection, in the order of the requests, and
// not at all when the connection is gone. ctx ends with the connection. A nil Reply, or a nil Response, means that nothing is answered (Produce with acks=0).
type Reply func(ctx context.Context) Response

// A Response is a message of kmsg, or one of them with payloads (see Streamer). Its version is set by this package from the request's.
type Response interface {
	kmsg.Response
}

// A Streamer is a Response that is not encoded whole: payloads are written in between its bytes.
type Streamer interface {
	Response
	// AppendStream appends the encoded message without its payloads to dst, and returns where they belong, in ascending order.
	AppendStream(dst []byte) ([]byte, []Cut)
	// Release gives the payloads back. It is called once for every Streamer that a Reply returned, also when nothing could be written.
	Release()
}

// A Cut is a place in the bytes of AppendStream at which a payload is written.
type Cut struct {
	At      int
	Payload Payload
}

// A Payload writes exactly Len bytes. A *commitlog.Chunk is one.
type Payload interface {
	io.WriterTo
	Len() int64
}

// A Handler serves decoded requests.
type Handler interface {
	// Serve does the part of a request that must happen in the order of the connection (proposing, say) before it returns; what waits is done by
	// the Reply. ctx ends with the connection.
	Serve(ctx context.Context, r *Request) Reply
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(ctx context.Context, r *Request) Reply

// Serve calls f.
func (f HandlerFunc) Serve(ctx context.Context, r *Request) Reply { return f(ctx, r) }
