package mqtt

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"sluice/edge/buffer"
	"sluice/edge/ingest"
)

// Bounds of one connection's memory.
const (
	// readBytesMin is enough for most devices' packets; most connections are idle and keep only this.
	readBytesMin = 1 << 10
	// readBytesMax is one read of a busy connection, and what is kept after a large packet.
	readBytesMax = 64 << 10
	// outBytesMax is what waits for a device that reads slowly; beyond it QoS 0 is dropped and the rest waits in the session.
	outBytesMax = 1 << 20
	// outBytesTotal is shared by all devices that read slowly: each may have as much waiting as is free still, so that many of them get less, and
	// one that has begun to be slow always something. Twice as much may be allocated.
	outBytesTotal = 32 << 20
	// outBytesMin is what may wait for a device in any case.
	outBytesMin = 4 << 10
	// controlBytesMax bounds answers that a device asks for without reading them (PINGRESP, SUBACK and so on).
	controlBytesMax = 4 << 20
	// topicsMax bounds how many of its topics a connection remembers the checks of.
	topicsMax = 64
)

// conn is one connection of a device. One goroutine reads; writers come and go with what there is to write.
type conn struct {
	server    *Server
	nc        net.Conn
	ctx       context.Context
	cancel    context.CancelFunc
	session   *session
	user      *User
	version   byte
	maxPacket uint32 // that the client takes; 0: any
	idle      time.Duration

	// Owned by the reader.
	buf      []byte // [from, to) is read and not yet handled
	from, to int
	scratch  ingest.Scratch
	input    ingest.Input
	props    []byte
	topics   map[string]*knownTopic
	aliases  map[uint16]*knownTopic
	open2    map[uint16]struct{} // QoS 2 ids of this connection between PUBLISH and PUBREL
	crowd    struct {            // what came while the queue was crowded
		since time.Time
		bytes int
	}

	owner   *buffer.Owner
	unacked atomic.Int32  // QoS 1 messages
	resume  chan struct{} // nudged when unacked went down
	dead    atomic.Bool   // set under session.in: taken over, nothing more of it counts
	normal  bool          // DISCONNECT without will

	w struct {
		sync.Mutex
		out     []byte
		spare   []byte
		writing bool
		closing bool // after what is in out
		closed  bool
	}
	finished chan struct{} // closed with the network connection
}

// knownTopic is a topic name whose checks are done.
type knownTopic struct {
	name    string
	allowed bool
}

// stop is why a connection ends.
type stop struct {
	code packets.Code
	tell bool // send a DISCONNECT (MQTT 5)
}

func (s *stop) Error() string { return s.code.Reason }

func violation(code packets.Code) error { return &stop{code, true} }

// errDone ends a connection that said goodbye.
var errDone = errors.New("the client disconnected")

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{server: s, nc: nc, version: 4, resume: make(chan struct{}, 1), finished: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.owner = buffer.NewOwner(c.told)
	return c
}

// next returns the next packet, which is valid until the call after it.
func (c *conn) next() (first byte, body []byte, err error) {
	for {
		first, body, size, err := c.parse()
		if err != nil {
			return 0, nil, err
		}
		if body != nil {
			c.from += size
			return first, body, nil
		}
		if err := c.fill(); err != nil {
			return 0, nil, err
		}
	}
}

var noBody = []byte{}

// parse looks for a whole packet in what has been read; a nil body says that there is none yet.
func (c *conn) parse() (first byte, body []byte, size int, err error) {
	b := c.buf[c.from:c.to]
	if len(b) < 2 {
		return 0, nil, 0, nil
	}
	length, n := 0, 1
	for shift := 0; ; shift += 7 {
		if n >= len(b) {
			return 0, nil, 0, nil
		}
		if shift == 28 {
			return 0, nil, 0, violation(packets.ErrMalformedVariableByteInteger)
		}
		length |= int(b[n]&127) << shift
		n++
		if b[n-1] < 128 {
			break
		}
	}
	if n+length > c.server.config.MaxPacketBytes {
		return 0, nil, 0, violation(packets.ErrPacketTooLarge)
	}
	if len(b) < n+length {
		return 0, nil, 0, nil
	}
	if length == 0 {
		return b[0], noBody, n, nil
	}
	return b[0], b[n : n+length], n + length, nil
}

// fill reads more. The buffer grows with what has come, never with what a header promises.
func (c *conn) fill() error {
	c.makeSpace()
	if c.idle > 0 {
		c.nc.SetReadDeadline(time.Now().Add(c.idle))
	}
	n, err := c.nc.Read(c.buf[c.to:])
	c.to += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return violation(packets.ErrKeepAliveTimeout)
	}
	return err
}

func (c *conn) makeSpace() {
	switch {
	case c.buf == nil:
		c.buf = make([]byte, readBytesMin)
	case c.from == c.to:
		if c.to == len(c.buf) && len(c.buf) < readBytesMax { // a full read: the device is busy
			c.buf = make([]byte, 2*len(c.buf))
		} else if len(c.buf) > readBytesMax || len(c.buf) > readBytesMin && c.to < len(c.buf)/16 {
			c.buf = make([]byte, max(readBytesMin, min(len(c.buf)/2, readBytesMax)))
		}
		c.from, c.to = 0, 0
	case c.to == len(c.buf):
		to := c.buf
		if c.to-c.from > len(c.buf)/2 {
			to = make([]byte, 2*len(c.buf))
		}
		c.to = copy(to, c.buf[c.from:c.to])
		c.buf, c.from = to, 0
	}
}

// write appends to what goes out and sees to it that someone writes it. It never waits.
func (c *conn) write(add func(b []byte) []byte) {
	c.w.Lock()
	defer c.w.Unlock()
	if c.w.closing || c.w.closed {
		return
	}
	before := len(c.w.out)
	c.w.out = add(c.w.out)
	c.server.waiting.Add(int64(len(c.w.out) - before))
	if len(c.w.out) > controlBytesMax { // it asks and does not listen
		c.w.closing = true
	}
	c.startWriterLocked()
}

func (c *conn) startWriterLocked() {
	if !c.w.writing {
		c.w.writing = true
		go c.flush()
	}
}

// room says whether the connection takes more messages for its subscriber.
func (c *conn) room() bool {
	c.w.Lock()
	defer c.w.Unlock()
	return len(c.w.out) < c.server.outBound()
}

// outBound is how much may wait for one device now.
func (s *Server) outBound() int {
	return int(min(outBytesMax, max(outBytesTotal-s.waiting.Load(), outBytesMin)))
}

// publish sends o unless it is larger than the client takes, or (when bounded) too much waits already; both return false.
func (c *conn) publish(o *outbound, dup, bounded bool) (ok bool) {
	p := outgoing{
		topic: o.msg.Topic, payload: o.msg.Payload, props: o.msg.Props, identifiers: o.ids,
		qos: o.qos, dup: dup, retain: o.retain, id: o.id,
	}
	if o.msg.ExpiresMs != 0 {
		left := (o.msg.ExpiresMs - time.Now().UnixMilli() + 999) / 1000
		p.expiry, p.hasExpiry = uint32(max(left, 1)), true
	}
	c.w.Lock()
	defer c.w.Unlock()
	if c.w.closing || c.w.closed {
		return true // the session keeps it
	}
	if bounded && len(c.w.out) >= c.server.outBound() {
		return false
	}
	before := len(c.w.out)
	c.w.out, _ = appendPublish(c.w.out, &p, c.version, c.maxPacket)
	if len(c.w.out) == before {
		return false
	}
	c.server.waiting.Add(int64(len(c.w.out) - before))
	c.server.metrics.sent.Inc()
	c.startWriterLocked()
	return true
}

// flush writes until nothing is left. It runs only while there is something: an idle connection costs no second goroutine.
func (c *conn) flush() {
	for {
		c.w.Lock()
		if len(c.w.out) == 0 || c.w.closed {
			c.w.writing = false
			closing := c.w.closing
			if cap(c.w.out) > readBytesMin {
				c.w.out = nil
			}
			if cap(c.w.spare) > readBytesMin {
				c.w.spare = nil
			}
			c.w.Unlock()
			if closing {
				c.close()
			}
			return
		}
		b := c.w.out
		c.w.out, c.w.spare = c.w.spare[:0], nil
		c.w.Unlock()
		c.nc.SetWriteDeadline(time.Now().Add(c.server.config.WriteTimeout))
		_, err := c.nc.Write(b)
		c.server.waiting.Add(-int64(len(b)))
		if cap(b) <= readBytesMax { // what a slow reader needed is not kept
			c.w.Lock()
			c.w.spare = b[:0]
			c.w.Unlock()
		}
		if err != nil {
			c.close()
		}
		if sess := c.session; sess != nil && len(b) >= outBytesMin { // it may have been what others had to wait for
			sess.drained()
		}
	}
}

// close ends the network connection; what waits is lost.
func (c *conn) close() {
	c.w.Lock()
	defer c.w.Unlock()
	if c.w.closed {
		return
	}
	c.w.closed = true
	c.server.waiting.Add(-int64(len(c.w.out)))
	c.w.out = nil
	c.cancel()
	c.nc.Close()
	close(c.finished)
}

// finish closes after what waits has been written, and after a last packet when there is one.
func (c *conn) finish(last []byte) {
	c.w.Lock()
	defer c.w.Unlock()
	if c.w.closed {
		return
	}
	if !c.w.closing {
		c.w.out = append(c.w.out, last...)
		c.server.waiting.Add(int64(len(last)))
		c.w.closing = true
	}
	c.startWriterLocked()
}

// disconnect tells an MQTT 5 client why and closes.
func (c *conn) disconnect(code packets.Code) {
	if c.version < 5 || c.session == nil {
		c.finish(nil)
		return
	}
	c.finish(encode(&packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ProtocolVersion: 5, ReasonCode: code.Code,
	}))
}

// Tags of what the buffer tells us: kind, reason and packet id.
const tagLast = 0xFF // of the entry after which the connection closes

func tagOf(kind, reason byte, id uint16) buffer.Tag {
	return buffer.Tag(kind)<<24 | buffer.Tag(reason)<<16 | buffer.Tag(id)
}

// told is called by the buffer after the sync: all acknowledgements of one commit go out together.
func (c *conn) told(tags []buffer.Tag, err error) {
	if err != nil {
		c.close() // nothing is acknowledged that is not on disk
		return
	}
	freed := int32(0)
	last := false
	c.write(func(b []byte) []byte {
		for _, t := range tags {
			kind, reason, id := byte(t>>24), byte(t>>16), uint16(t)
			if kind == tagLast {
				last = true
				continue
			}
			if kind == packets.Puback {
				freed++
			}
			b = appendAck(b, kind, id, c.version, reason)
		}
		return b
	})
	c.server.metrics.acked.Add(len(tags))
	if freed > 0 {
		c.unacked.Add(-freed)
		select {
		case c.resume <- struct{}{}:
		default:
		}
	}
	if last {
		c.finish(nil)
	}
}

// closeAfterAcks closes when all that the device has published is acknowledged.
func (c *conn) closeAfterAcks() {
	if err := c.server.door.Buffer().Put(&buffer.Entry{Owner: c.owner, Tag: tagOf(tagLast, 0, 0)}); err != nil {
		c.close()
	}
}
