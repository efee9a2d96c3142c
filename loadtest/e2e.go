package loadtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// EndToEnd publishes over MQTT and waits for the messages in Kafka.
type EndToEnd struct {
	MQTT
	Kafka Kafka // Topic is the core topic in which the messages arrive
}

// e2eHeader is what a payload begins with: the run, and the message's number.
const e2eHeader = 16

// lateMax is how long the last messages are waited for.
const lateMax = 30 * time.Second

// Run publishes and reads at the same time. An operation ends when its message has been read; one that never comes is an error.
func (l EndToEnd) Run(ctx context.Context) (Result, error) {
	if l.Rate <= 0 {
		return Result{}, fmt.Errorf("an end-to-end load needs a rate: without one it would measure its own queue")
	}
	l.Size = max(l.Size, e2eHeader)
	reader, err := l.reader(ctx)
	if err != nil {
		return Result{}, err
	}
	defer reader.Close()
	run := rand.Uint64()
	w := &waiting{meter: NewMeter(), at: map[uint64]time.Time{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go w.meter.Progress(ctx, l.Progress)
	var read sync.WaitGroup
	read.Go(func() { w.read(ctx, reader, run, l.Size) })
	if err := l.publish(ctx, run, w); err != nil {
		return Result{}, err
	}
	missing := w.wait(ctx)
	cancel()
	read.Wait()
	if missing > 0 {
		w.meter.errors.Add(int64(missing))
		w.meter.Failed(fmt.Errorf("%d messages did not arrive within %v", missing, lateMax))
	}
	return w.meter.Result("e2e", l.Rate, map[string]string{"clients": fmt.Sprint(l.Clients), "qos": fmt.Sprint(l.QoS), "bytes": fmt.Sprint(l.Size), "topic": l.Kafka.Topic}), nil
}

// reader starts at the end of the topic as it is now.
func (l EndToEnd) reader(ctx context.Context) (*kgo.Client, error) {
	c, err := l.Kafka.client(kgo.FetchMaxWait(100*time.Millisecond), kgo.KeepControlRecords())
	if err != nil {
		return nil, err
	}
	if err := l.Kafka.ensure(ctx, c); err != nil {
		c.Close()
		return nil, err
	}
	_, ends, err := bounds(ctx, c, l.Kafka.Topic)
	if err != nil {
		c.Close()
		return nil, err
	}
	c.AddConsumePartitions(ends.KOffsets())
	return c, nil
}

// publish runs the MQTT side: one schedule, every client with its own window.
func (l EndToEnd) publish(ctx context.Context, run uint64, w *waiting) error {
	ignored := NewMeter() // of acknowledgements: not what is measured here
	clients := make([]*mqttLoad, l.Clients)
	for i := range clients {
		var err error
		if clients[i], err = l.connect(ctx, i, ignored); err != nil {
			return err
		}
		defer clients[i].c.Close()
	}
	s, err := newSchedule(l.Rate, l.Messages, l.Duration)
	if err != nil {
		return err
	}
	return workers(ctx, l.Clients, func(ctx context.Context, i int) error {
		return clients[i].run(ctx, s, l.QoS, func(n int64) []byte {
			b := make([]byte, l.Size)
			binary.BigEndian.PutUint64(b, run)
			binary.BigEndian.PutUint64(b[8:], uint64(n))
			w.add(uint64(n), s.start.Add(time.Duration(n)*s.interval))
			return b
		})
	})
}

// waiting knows the messages that are under way.
type waiting struct {
	meter *Meter
	mu    sync.Mutex
	at    map[uint64]time.Time
	empty chan struct{} // closed when nothing is left, once wait has begun
}

func (w *waiting) add(n uint64, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at[n] = at
}

func (w *waiting) arrived(n uint64, size int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at, ok := w.at[n]; ok {
		delete(w.at, n)
		w.meter.Done(int(n), at, size)
	}
	if len(w.at) == 0 && w.empty != nil {
		close(w.empty)
		w.empty = nil
	}
}

// wait returns how many never arrived.
func (w *waiting) wait(ctx context.Context) int {
	empty := make(chan struct{})
	w.mu.Lock()
	n := len(w.at)
	w.empty = empty
	w.mu.Unlock()
	if n == 0 {
		return 0
	}
	late := time.NewTimer(lateMax)
	defer late.Stop()
	select {
	case <-empty:
	case <-late.C:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.at)
}

func (w *waiting) read(ctx context.Context, c *kgo.Client, run uint64, size int) {
	for ctx.Err() == nil {
		c.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if len(r.Value) >= e2eHeader && binary.BigEndian.Uint64(r.Value) == run {
				w.arrived(binary.BigEndian.Uint64(r.Value[8:]), size)
			}
		})
	}
}
