package loadtest

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

// mqttClient is the least of an MQTT 3.1.1 publisher: the codec is paho's, the session is ours, so that it is known exactly what was sent again.
type mqttClient struct {
	conn   net.Conn
	out    *bufio.Writer
	mu     sync.Mutex // of out
	onAck  func(id uint16)
	closed chan struct{}
	err    error // after closed
}

const mqttTimeout = 10 * time.Second

// dialMQTT connects; session says whether the broker still has one of that client id. onAck is called from the reader's goroutine for
// every PUBACK and PUBCOMP.
func dialMQTT(ctx context.Context, addr, id string, clean bool, onAck func(id uint16)) (c *mqttClient, session bool, err error) {
	d := net.Dialer{Timeout: mqttTimeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, false, fmt.Errorf("connect to %s: %w", addr, err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.CleanSession, p.Keepalive = "MQTT", 4, id, clean, 60
	if err = conn.SetDeadline(time.Now().Add(mqttTimeout)); err != nil {
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
		return nil, false, fmt.Errorf("connect to %s: refused: %v", addr, answer)
	}
	if err = conn.SetDeadline(time.Time{}); err != nil {
		return nil, false, err
	}
	c = &mqttClient{conn: conn, out: bufio.NewWriterSize(conn, 16<<10), onAck: onAck, closed: make(chan struct{})}
	go c.read(in)
	return c, ack.SessionPresent, nil
}

func (c *mqttClient) read(in *bufio.Reader) {
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

// publish writes a PUBLISH; it goes out with the next flush.
func (c *mqttClient) publish(topic string, payload []byte, qos byte, id uint16, dup bool) error {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID, p.Dup = topic, payload, qos, id, dup
	return c.write(p, false)
}

func (c *mqttClient) write(p packets.ControlPacket, flush bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(mqttTimeout)); err != nil {
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

func (c *mqttClient) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Flush()
}

// close says farewell and closes.
func (c *mqttClient) close() error {
	bye := packets.NewControlPacket(packets.Disconnect)
	err := errors.Join(c.write(bye, true), c.conn.Close())
	<-c.closed
	return err
}
