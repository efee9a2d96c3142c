// Package mqttwire is the least of an MQTT 3.1.1 publisher: the codec is paho's, the session is its user's, so that it is known exactly what was
// sent again. It sends PUBLISH and answers PUBREC, and hands acknowledgements over; it neither stores nor resends anything.
package mqttwire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Client is one connection.
type Client struct {
	conn   net.Conn
	out    *bufio.Writer
	mu     sync.Mutex // of out
	onAck  func(id uint16)
	closed chan struct{}
	err    error // after closed
}

// Timeout bounds connecting and every write.
const Timeout = 10 * time.Second

// Options of a connection.
type Options struct {
	ID    string // client id
	Clean bool   // no session is kept
	// Acked is called from the reader's goroutine for every PUBACK and PUBCOMP.
	Acked func(id uint16)
	// Dial opens the connection; nil = net.Dialer with Timeout.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial connects; session says whether the broker still has one of that client id.
func Dial(ctx context.Context, addr string, o Options) (c *Client, session bool, err error) {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: Timeout}).DialContext
	}
	conn, err := o.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, false, fmt.Errorf("connect to %s: %w", addr, err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession, p.Keepalive = "MQTT", 4, o.ID, o.Clean, 60
	deadline := time.Now().Add(Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err = conn.SetDeadline(deadline); err != nil {
		return nil, false, err
	}
	if err = p.Write(conn); err != nil {
		return nil, false, fmt.Errorf("connect to %s: %w", addr, err)
	}
	in := bufio.NewReaderSize(conn, 16<<10)
	answer, err := packets.ReadPacket(in)
	if err != nil {
		return nil, false, fmt.Errorf("connect to %s: %w", addr, err)
	}
	ack, ok := answer.(*packets.ConnackPacket)
	if !ok || ack.ReturnCode != packets.Accepted {
		err = fmt.Errorf("connect to %s: refused: %v", addr, answer)
		return nil, false, err
	}
	if err = conn.SetDeadline(time.Time{}); err != nil {
		return nil, false, err
	}
	c = &Client{conn: conn, out: bufio.NewWriterSize(conn, 16<<10), onAck: o.Acked, closed: make(chan struct{})}
	go c.read(in)
	return c, ack.SessionPresent, nil
}

// Closed is closed when the connection is lost or closed, and its reader has ended.
func (c *Client) Closed() <-chan struct{} { return c.closed }

// Err is why, after Closed.
func (c *Client) Err() error { return c.err }

// Abort closes without farewell, as a device that loses its link, and waits for the reader.
func (c *Client) Abort() {
	c.conn.Close()
	<-c.closed
}

func (c *Client) read(in *bufio.Reader) {
	defer close(c.closed)
	for {
		p, err := packets.ReadPacket(in)
		if err != nil {
			c.err = err
			return
		}
		switch p := p.(type) {
		case *packets.PubackPacket:
			c.onAck(p.MessageID)
		case *packets.PubcompPacket:
			c.onAck(p.MessageID)
		case *packets.PubrecPacket:
			rel := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
			rel.MessageID = p.MessageID
			if err := c.write(rel, true); err != nil {
				c.err = err
				return
			}
		}
	}
}

// Publish writes a PUBLISH; it goes out with the next Flush.
func (c *Client) Publish(topic string, payload []byte, qos byte, id uint16, dup bool) error {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID, p.Dup = topic, payload, qos, id, dup
	return c.write(p, false)
}

func (c *Client) write(p packets.ControlPacket, flush bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	if err := p.Write(c.out); err != nil {
		return err
	}
	if flush {
		return c.out.Flush()
	}
	return nil
}

// Flush sends what was written.
func (c *Client) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Flush()
}

// Close says farewell and closes.
func (c *Client) Close() error {
	bye := packets.NewControlPacket(packets.Disconnect)
	err := errors.Join(c.write(bye, true), c.conn.Close())
	<-c.closed
	return err
}
