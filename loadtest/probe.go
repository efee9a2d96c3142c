package loadtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// probeAnswerWithin is how long the probe's last records are waited for; those that come later count as lost answers.
	probeAnswerWithin = 30 * time.Second
	// probeBuffered bounds the probe's records under way: a minute of a stuck cluster at 1,000 a second.
	probeBuffered = 60_000
	probeHeader   = 16 // bytes of a value: phase and moment
)

// A Probe is the well-behaved client next to whatever else happens: it produces at a fixed rate, reads what it has written, and measures both from
// the moment at which each record was meant to be produced. Its time is cut into phases.
type Probe struct {
	Kafka
	Rate float64 // records a second
	Size int     // bytes of a value, at least 16

	client, reader *kgo.Client
	mu             sync.Mutex
	phases         []*probePhase
	current        atomic.Pointer[probePhase]
	waiting        atomic.Int64
}

// probePhase is what was meant to be produced within one phase.
type probePhase struct {
	index        uint32
	name         string
	mu           sync.Mutex
	write, read  *hdrhistogram.Histogram
	sent, acked  int64
	readBack     int64
	failures     int64
	firstFailure string
	began, ended time.Time
}

// PhaseResult is what a phase prints.
type PhaseResult struct {
	Phase      string             `json:"phase"`
	Seconds    float64            `json:"seconds"`
	Sent       int64              `json:"sent"`
	Acked      int64              `json:"acked"`
	Read       int64              `json:"read"`
	Errors     int64              `json:"errors"`
	FirstError string             `json:"first_error,omitempty"`
	ProduceMs  map[string]float64 `json:"produce_ms"`
	EndToEndMs map[string]float64 `json:"end_to_end_ms"`
	Peak       map[string]Peak    `json:"peak"`
	Seen       map[string]int64   `json:"seen,omitempty"` // what the phase's own clients counted
}

// open connects and creates the topic.
func (p *Probe) open(ctx context.Context) error {
	var err error
	p.client, err = p.Kafka.client(kgo.ProducerLinger(0), kgo.MaxBufferedRecords(probeBuffered), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	if err != nil {
		return err
	}
	if err := p.ensure(ctx, p.client); err != nil {
		return err
	}
	p.reader, err = p.Kafka.client(kgo.ConsumeTopics(p.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(500*time.Millisecond))
	return err
}

func (p *Probe) close() {
	if p.client != nil {
		p.client.Close()
	}
	if p.reader != nil {
		p.reader.Close()
	}
}

// Phase begins a phase and ends the one before.
func (p *Probe) Phase(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if old := p.current.Load(); old != nil {
		old.mu.Lock()
		old.ended = now
		old.mu.Unlock()
	}
	h := func() *hdrhistogram.Histogram { return hdrhistogram.New(latencyMin, latencyMax, latencyDigits) }
	next := &probePhase{index: uint32(len(p.phases)), name: name, write: h(), read: h(), began: now}
	p.phases = append(p.phases, next)
	p.current.Store(next)
}

// Run produces and reads until ctx ends, then waits for what is under way. A phase must have begun.
func (p *Probe) Run(ctx context.Context) error {
	s, err := newSchedule(p.Rate, 0, 24*time.Hour)
	if err != nil {
		return err
	}
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { p.read(reading) })
	for {
		at, _, ok := s.take(ctx)
		if !ok {
			break
		}
		p.produce(reading, at)
	}
	deadline := time.Now().Add(probeAnswerWithin)
	for p.waiting.Load() > 0 && time.Now().Before(deadline) {
		pauseFor(reading, nodesPoll)
	}
	stop()
	all.Wait()
	return nil
}

func (p *Probe) produce(ctx context.Context, at time.Time) {
	phase := p.current.Load()
	value := make([]byte, max(p.Size, probeHeader))
	binary.BigEndian.PutUint64(value, uint64(phase.index))
	binary.BigEndian.PutUint64(value[8:], uint64(at.UnixNano()))
	phase.mu.Lock()
	phase.sent++
	phase.mu.Unlock()
	p.waiting.Add(2) // an answer and a reading
	p.client.TryProduce(ctx, &kgo.Record{Topic: p.Topic, Value: value}, func(_ *kgo.Record, err error) {
		p.waiting.Add(-1)
		if err != nil {
			p.waiting.Add(-1) // nothing to read
		}
		phase.wrote(at, err)
	})
}

func (f *probePhase) wrote(at time.Time, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		if f.failures++; f.firstFailure == "" {
			f.firstFailure = err.Error()
		}
		return
	}
	f.acked++
	record(f.write, at)
}

func record(h *hdrhistogram.Histogram, since time.Time) {
	_ = h.RecordValue(max(latencyMin, min(latencyMax, time.Since(since).Microseconds()))) // clamped: always in range
}

func (p *Probe) read(ctx context.Context) {
	for ctx.Err() == nil {
		p.reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if len(r.Value) < probeHeader {
				return
			}
			p.mu.Lock()
			n := binary.BigEndian.Uint64(r.Value)
			var phase *probePhase
			if n < uint64(len(p.phases)) {
				phase = p.phases[n]
			}
			p.mu.Unlock()
			if phase == nil {
				return
			}
			at := time.Unix(0, int64(binary.BigEndian.Uint64(r.Value[8:])))
			p.waiting.Add(-1)
			phase.mu.Lock()
			phase.readBack++
			record(phase.read, at)
			phase.mu.Unlock()
		})
	}
}

// Results returns the phases. Records that were never answered count as errors.
func (p *Probe) Results() []PhaseResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []PhaseResult
	for _, f := range p.phases {
		list = append(list, f.result())
	}
	return list
}

func (f *probePhase) result() PhaseResult {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := f.ended
	if end.IsZero() {
		end = time.Now()
	}
	r := PhaseResult{Phase: f.name, Seconds: end.Sub(f.began).Seconds(), Sent: f.sent, Acked: f.acked, Read: f.readBack,
		Errors: f.sent - f.acked, FirstError: f.firstFailure, ProduceMs: quantiles(f.write), EndToEndMs: quantiles(f.read)}
	if lost := f.sent - f.acked - f.failures; lost > 0 && r.FirstError == "" {
		r.FirstError = fmt.Sprintf("%d records were not answered", lost)
	}
	return r
}

func quantiles(h *hdrhistogram.Histogram) map[string]float64 {
	m := make(map[string]float64)
	for name, q := range map[string]float64{"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100} {
		m[name] = float64(h.ValueAtQuantile(q)) / 1000
	}
	return m
}
