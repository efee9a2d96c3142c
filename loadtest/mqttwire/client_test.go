package mqttwire

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker answers one connection with what script says to each packet; nil answers nothing.
func broker(t *testing.T, script func(packets.ControlPacket) packets.ControlPacket) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			p, err := packets.ReadPacket(conn)
			if err != nil {
				return
			}
			if answer := script(p); answer != nil && answer.Write(conn) != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String()
}

func connack(code byte, session bool) packets.ControlPacket {
	a := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	a.ReturnCode, a.SessionPresent = code, session
	return a
}

func TestPublishing(t *testing.T) {
	topics := make(chan string, 1)
	addr := broker(t, func(p packets.ControlPacket) packets.ControlPacket {
		switch p := p.(type) {
		case *packets.ConnectPacket:
			if p.ClientIdentifier != "d" || p.CleanSession {
				t.Errorf("connect: %v", p)
			}
			return connack(packets.Accepted, true)
		case *packets.PublishPacket:
			if p.Qos == 2 {
				rec := packets.NewControlPacket(packets.Pubrec).(*packets.PubrecPacket)
				rec.MessageID = p.MessageID
				return rec
			}
			topics <- p.TopicName
			ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
			ack.MessageID = p.MessageID
			return ack
		case *packets.PubrelPacket:
			comp := packets.NewControlPacket(packets.Pubcomp).(*packets.PubcompPacket)
			comp.MessageID = p.MessageID
			return comp
		}
		return nil
	})
	acked := make(chan uint16, 2)
	c, session, err := Dial(context.Background(), addr, Options{ID: "d", Acked: func(id uint16) { acked <- id }})
	if err != nil || !session {
		t.Fatal(session, err)
	}
	for _, m := range []struct {
		qos byte
		id  uint16
	}{{1, 7}, {2, 8}} {
		if err := c.Publish("a/b", []byte("x"), m.qos, m.id, false); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		if id := <-acked; id != m.id {
			t.Errorf("acknowledged %d, want %d", id, m.id)
		}
	}
	if topic := <-topics; topic != "a/b" {
		t.Errorf("published to %q", topic)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	<-c.Closed()
}

func TestRefusedAndSilent(t *testing.T) {
	addr := broker(t, func(packets.ControlPacket) packets.ControlPacket {
		return connack(packets.ErrRefusedNotAuthorised, false)
	})
	if _, _, err := Dial(context.Background(), addr, Options{ID: "d"}); err == nil {
		t.Error("a refused connection is no error")
	}
	addr = broker(t, func(packets.ControlPacket) packets.ControlPacket { return nil })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Dial(ctx, addr, Options{ID: "d"}); err == nil {
		t.Error("a silent broker is no error")
	}
}

// A connection that the other side closes is noticed, and Abort after that is no harm.
func TestLostConnection(t *testing.T) {
	addr := broker(t, func(p packets.ControlPacket) packets.ControlPacket {
		if _, ok := p.(*packets.ConnectPacket); ok {
			return connack(packets.Accepted, false)
		}
		return packets.NewControlPacket(packets.Connack) // whatever: the client passes it over
	})
	c, session, err := Dial(context.Background(), addr, Options{ID: "d", Clean: true})
	if err != nil || session {
		t.Fatal(session, err)
	}
	c.Abort()
	<-c.Closed()
	if c.Err() == nil {
		t.Error("no reason is given")
	}
}
