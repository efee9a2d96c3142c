package loadtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"sluice/loadtest/mqttwire"
)

// MQTT is a load of published messages.
type MQTT struct {
	Broker   string // host:port, or tcp://host:port
	Topic    string // the client's number is appended as a level
	Clients  int
	Window   int // unacknowledged messages of one client
	QoS      byte
	Size     int
	Messages int64
	Duration time.Duration
	Rate     float64 // of all clients together
	Progress io.Writer
}

func brokerAddr(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "tcp://"), "mqtt://")
	if _, _, err := net.SplitHostPort(s); err != nil {
		return net.JoinHostPort(s, "1883")
	}
	return s
}

// Run publishes until the count, the duration or ctx ends. An operation ends with its PUBACK (QoS 1), PUBCOMP (QoS 2) or when written (QoS 0).
func (l MQTT) Run(ctx context.Context) (Result, error) {
	if l.Clients < 1 || l.Window < 1 || l.Window > 60000 || l.QoS > 2 {
		return Result{}, fmt.Errorf("%d clients, window %d, QoS %d: at least 1 client, a window of 1 to 60000 and a QoS of 0 to 2 are needed", l.Clients, l.Window, l.QoS)
	}
	clients := make([]*mqttLoad, l.Clients)
	m := NewMeter()
	for i := range clients {
		var err error
		if clients[i], err = l.connect(ctx, i, m); err != nil {
			return Result{}, err
		}
		defer clients[i].c.Close()
	}
	m.start = time.Now() // connecting is not part of it
	s, err := newSchedule(l.Rate, l.Messages, l.Duration)
	if err != nil {
		return Result{}, err
	}
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go m.Progress(watch, l.Progress)
	payload := Produce{Size: l.Size}.value()
	err = workers(ctx, l.Clients, func(ctx context.Context, i int) error { return clients[i].run(ctx, s, l.QoS, payload) })
	return m.Result("mqtt", l.Rate, map[string]string{"clients": fmt.Sprint(l.Clients), "window": fmt.Sprint(l.Window), "qos": fmt.Sprint(l.QoS), "bytes": fmt.Sprint(l.Size)}), err
}

// mqttLoad is one publishing client with its window.
type mqttLoad struct {
	c      *mqttwire.Client
	number int
	topic  string
	meter  *Meter
	size   int
	slots  chan uint16 // free packet ids
	mu     sync.Mutex
	began  map[uint16]time.Time
}

func (l MQTT) connect(ctx context.Context, i int, m *Meter) (*mqttLoad, error) {
	c := &mqttLoad{number: i, topic: fmt.Sprintf("%s/%d", l.Topic, i), meter: m, size: l.Size, slots: make(chan uint16, l.Window), began: map[uint16]time.Time{}}
	for id := range l.Window {
		c.slots <- uint16(id + 1)
	}
	var err error
	c.c, _, err = mqttwire.Dial(ctx, brokerAddr(l.Broker), mqttwire.Options{ID: fmt.Sprintf("loadtest-%d", i), Clean: true, Acked: c.acked})
	return c, err
}

func (c *mqttLoad) acked(id uint16) {
	c.mu.Lock()
	at, ok := c.began[id]
	delete(c.began, id)
	c.mu.Unlock()
	if ok {
		c.meter.Done(c.number, at, c.size)
		c.slots <- id
	}
}

func (c *mqttLoad) run(ctx context.Context, s *schedule, qos byte, payload func(int64) []byte) error {
	for {
		at, n, ok := s.take(ctx)
		if !ok {
			break
		}
		if err := c.publish(ctx, at, n, qos, payload); err != nil {
			c.meter.Failed(err)
			return err
		}
	}
	if err := c.c.Flush(); err != nil {
		return err
	}
	return c.drain(ctx)
}

func (c *mqttLoad) publish(ctx context.Context, at time.Time, n int64, qos byte, payload func(int64) []byte) error {
	if qos == 0 {
		err := c.c.Publish(c.topic, payload(n), 0, 0, false)
		if err == nil {
			c.meter.Done(c.number, at, c.size)
		}
		return err
	}
	var id uint16
	select {
	case id = <-c.slots:
	default: // the window is full: let go what is written, then wait
		if err := c.c.Flush(); err != nil {
			return err
		}
		select {
		case id = <-c.slots:
		case <-c.c.Closed():
			return fmt.Errorf("connection lost: %w", c.c.Err())
		case <-ctx.Done():
			return nil
		}
	}
	c.mu.Lock()
	c.began[id] = at
	c.mu.Unlock()
	if err := c.c.Publish(c.topic, payload(n), qos, id, false); err != nil {
		return err
	}
	if len(c.slots) == 0 || alone(at) {
		return c.c.Flush()
	}
	return nil
}

// alone tells whether an operation's moment has only just come: then nothing more is due at once, and the message must not wait for company.
func alone(at time.Time) bool { return time.Since(at) < time.Millisecond }

// drain waits for the acknowledgements that are still due.
func (c *mqttLoad) drain(ctx context.Context) error {
	late := time.NewTimer(mqttwire.Timeout)
	defer late.Stop()
	for range cap(c.slots) {
		select {
		case <-c.slots:
		case <-c.c.Closed():
			return fmt.Errorf("connection lost: %w", c.c.Err())
		case <-late.C:
			return fmt.Errorf("client %d: acknowledgements are missing %v after the last message", c.number, mqttwire.Timeout)
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}
