package workload

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"sluice/loadtest/history"
	"sluice/loadtest/mqttwire"
)

const (
	// deviceWindow is how many messages of a device may be without an acknowledgement.
	deviceWindow = 10
	// reconnectWait is what a device waits between two tries to reach its gateway, connectTimeout how long one may take.
	reconnectWait  = 200 * time.Millisecond
	connectTimeout = 3 * time.Second
	// silenceMax is how long a device with a full window waits for an acknowledgement before it takes the connection for dead.
	silenceMax = 5 * time.Second
	qos1       = 1
)

// device is an MQTT 3.1.1 client with a persistent session that publishes with QoS 1 and, after a lost connection, sends again what was not
// acknowledged, marked as such. Such a message may be stored twice.
type device struct {
	s       *Set
	gateway string
	writer  *history.Writer
	every   time.Duration
	client  *mqttwire.Client
	id      uint16
	freed   chan struct{} // something was acknowledged
	mu      sync.Mutex
	flight  []flying // oldest first
}

type flying struct {
	id     uint16
	number int64
}

func (s *Set) newDevice(i int) *device {
	return &device{
		s: s, gateway: s.c.Gateways[i%len(s.c.Gateways)], writer: s.c.History.Writer(fmt.Sprintf("%s-d%d", s.c.Prefix, i), s.ingested),
		every: time.Duration(float64(time.Second) * float64(s.c.Devices) / s.c.DeviceRate), freed: make(chan struct{}, 1),
	}
}

func (d *device) Name() string { return "device " + d.writer.Name() }

func (d *device) Run(ctx context.Context) error {
	if d.connect(ctx) != nil {
		return nil
	}
	for due := time.Now(); ; due = due.Add(d.every) {
		if early := time.Until(due); early > 0 && sleep(ctx, early) != nil {
			return nil
		}
		if d.room(ctx, deviceWindow) != nil {
			return nil
		}
		if d.send() != nil && d.connect(ctx) != nil { // connecting sends it again
			return nil
		}
	}
}

// room waits until fewer than n messages are in flight, over as many connections as it takes.
func (d *device) room(ctx context.Context, n int) error {
	for d.flying() >= n {
		if err := d.pause(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (d *device) flying() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flight)
}

func (d *device) send() error {
	n := d.writer.Next()
	d.writer.Send(history.Anywhere, history.Sum(d.payload(n)))
	d.s.stats.DeviceSent.Add(1)
	d.id = d.id%65535 + 1
	f := flying{d.id, n}
	d.mu.Lock()
	d.flight = append(d.flight, f)
	d.mu.Unlock()
	return d.publish(f, false)
}

func (d *device) payload(n int64) []byte { return value(d.writer.Name(), n, d.s.c.Size) }

func (d *device) publish(f flying, again bool) error {
	if err := d.client.Publish(d.s.c.Prefix+"/"+d.writer.Name(), d.payload(f.number), qos1, f.id, again); err != nil {
		return err
	}
	return d.client.Flush()
}

// pause waits for an acknowledgement, or for the connection to be lost or silent, which is mended.
func (d *device) pause(ctx context.Context) error {
	if d.client == nil {
		return d.connect(ctx)
	}
	silence := time.NewTimer(silenceMax)
	defer silence.Stop()
	select {
	case <-d.freed:
		return nil
	case <-silence.C:
	case <-d.client.Closed():
	case <-ctx.Done():
		return ctx.Err()
	}
	return d.connect(ctx)
}

// connect tries until it is connected and has sent again what is in flight.
func (d *device) connect(ctx context.Context) error {
	for ctx.Err() == nil {
		d.disconnect()
		dial, cancel := context.WithTimeout(ctx, connectTimeout)
		c, _, err := mqttwire.Dial(dial, d.gateway, mqttwire.Options{ID: d.writer.Name(), Acked: d.acked, Dial: d.s.c.Dial})
		cancel()
		if err == nil {
			d.client = c
			if err = d.resend(); err == nil {
				return nil
			}
		}
		d.s.stats.Errors.Add(1)
		_ = sleep(ctx, reconnectWait) // ctx is looked at above
	}
	return ctx.Err()
}

func (d *device) disconnect() {
	if d.client != nil {
		d.client.Abort()
		d.client = nil
	}
}

func (d *device) resend() error {
	d.mu.Lock()
	again := slices.Clone(d.flight)
	d.mu.Unlock()
	for _, f := range again {
		d.writer.Resent(f.number)
		if err := d.publish(f, true); err != nil {
			return err
		}
	}
	return nil
}

// acked runs on the reader's goroutine.
func (d *device) acked(id uint16) {
	d.mu.Lock()
	i := slices.IndexFunc(d.flight, func(f flying) bool { return f.id == id })
	if i < 0 {
		d.mu.Unlock()
		return
	}
	n := d.flight[i].number
	d.flight = slices.Delete(d.flight, i, i+1)
	d.mu.Unlock()
	d.writer.Stored(n)
	d.s.stats.DeviceAcked.Add(1)
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// Finish waits for the last acknowledgements, and then until the gateway has forwarded what it acknowledged.
func (d *device) Finish(ctx context.Context) error {
	err := d.room(ctx, 1)
	d.disconnect()
	if err != nil {
		return fmt.Errorf("acknowledgements of %d messages are missing: %w", d.flying(), err)
	}
	return nil
}
