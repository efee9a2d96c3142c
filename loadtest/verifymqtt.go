package loadtest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/loadtest/history"
	"sluice/loadtest/mqttwire"
)

const (
	// reconnectWait is what a device waits between two tries to reach its gateway.
	reconnectWait = 200 * time.Millisecond
	qosVerify     = 1
	// silenceMax is how long a device waits for an acknowledgement before it takes the connection for dead: a gateway that vanished says nothing.
	silenceMax = 15 * time.Second
)

// writeMQTT runs devices with persistent sessions that publish with QoS 1 and, after a lost connection, send again what was not acknowledged.
func (v Verify) writeMQTT(ctx context.Context, run string, m *Meter, log *writeLog) error {
	s, err := newSchedule(v.Rate, 0, v.Duration)
	if err != nil {
		return err
	}
	return workers(ctx, v.Writers, func(ctx context.Context, i int) error {
		d := &verifyDevice{v: v, run: run, name: "d" + strconv.Itoa(i), meter: m, log: log, freed: make(chan struct{}, 1)}
		return d.write(ctx, s)
	})
}

// verifyDevice is one firmware. Its flight is what it has sent and not seen acknowledged, oldest first.
type verifyDevice struct {
	v      Verify
	run    string
	name   string
	meter  *Meter
	log    *writeLog
	client *mqttwire.Client
	id     uint16
	freed  chan struct{} // something was acknowledged
	mu     sync.Mutex
	flight []*flying
}

type flying struct {
	id     uint16
	number int64
	at     time.Time
	resent bool
}

func (d *verifyDevice) topic() string { return d.v.MQTT + "/" + d.name }

func (d *verifyDevice) write(ctx context.Context, s *schedule) error {
	if err := d.connect(ctx); err != nil {
		return err
	}
	for number := int64(0); !d.v.over(); number++ {
		at, _, ok := s.take(ctx)
		if !ok {
			break
		}
		if err := d.send(ctx, number, at); err != nil {
			return err
		}
	}
	late, cancel := context.WithTimeout(ctx, d.v.Late)
	defer cancel()
	d.finish(late)
	return nil
}

// send publishes one message once there is room in the window, over as many connections as it takes.
func (d *verifyDevice) send(ctx context.Context, number int64, at time.Time) error {
	for d.flying() >= d.v.Window {
		if err := d.pause(ctx); err != nil {
			return err
		}
	}
	d.id = d.id%65535 + 1
	f := &flying{id: d.id, number: number, at: at}
	d.mu.Lock()
	d.flight = append(d.flight, f)
	d.mu.Unlock()
	if d.publish(f, false) != nil {
		return d.connect(ctx) // which sends it again
	}
	return nil
}

func (d *verifyDevice) flying() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flight)
}

func (d *verifyDevice) publish(f *flying, dup bool) error {
	if err := d.client.Publish(d.topic(), numbered(d.run, d.name, f.number, d.v.Size), qosVerify, f.id, dup); err != nil {
		return err
	}
	return d.client.Flush()
}

// pause waits for an acknowledgement, or for the connection to be lost or silent, which is mended.
func (d *verifyDevice) pause(ctx context.Context) error {
	silence := time.NewTimer(silenceMax)
	defer silence.Stop()
	select {
	case <-silence.C:
		return d.connect(ctx)
	case <-d.freed:
		return nil
	case <-d.client.Closed():
		return d.connect(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect tries until it is connected, then sends again what is in flight, marked as such.
func (d *verifyDevice) connect(ctx context.Context) error {
	for {
		if d.client != nil {
			d.client.Abort()
			d.client = nil
		}
		c, _, err := mqttwire.Dial(ctx, brokerAddr(d.v.Gateway), mqttwire.Options{ID: "verify-" + d.run + "-" + d.name, Acked: d.acked})
		if err == nil {
			d.client = c
			if err = d.resend(); err == nil {
				return nil
			}
		}
		d.meter.Failed(err)
		if err := sleep(ctx, reconnectWait); err != nil {
			return fmt.Errorf("device %s: %w", d.name, err)
		}
	}
}

func (d *verifyDevice) resend() error {
	d.mu.Lock()
	again := slices.Clone(d.flight)
	for _, f := range again {
		f.resent = true
	}
	d.mu.Unlock()
	for _, f := range again {
		if err := d.publish(f, true); err != nil {
			return err
		}
	}
	return nil
}

// acked runs on the reader's goroutine.
func (d *verifyDevice) acked(id uint16) {
	d.mu.Lock()
	i := slices.IndexFunc(d.flight, func(f *flying) bool { return f.id == id })
	if i < 0 {
		d.mu.Unlock()
		return
	}
	f := d.flight[i]
	d.flight = slices.Delete(d.flight, i, i+1)
	d.mu.Unlock()
	d.log.add(history.Write{Writer: d.name, Number: f.number, Acked: true, Resent: f.resent})
	d.log.heard(d.name, time.Since(d.meter.start))
	d.meter.Done(int(f.number), f.at, d.v.Size)
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// finish waits for the last acknowledgements; what is still in flight then is written down as unacknowledged.
func (d *verifyDevice) finish(ctx context.Context) {
	for d.flying() > 0 {
		if d.pause(ctx) != nil {
			break
		}
	}
	if d.client != nil {
		if err := d.client.Close(); err != nil {
			d.meter.Failed(fmt.Errorf("close: %w", err))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.flight {
		d.log.add(history.Write{Writer: d.name, Number: f.number, Resent: f.resent})
	}
}
