package firmwaresim

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
)

type counters struct {
	measured, published, acknowledged, failed, forgotten, connects, lost, drops *metrics.Counter
	latency                                                                     *metrics.Histogram
}

func newCounters(s *metrics.Set) *counters {
	return &counters{
		measured:     s.NewCounter("sluice_sim_readings_total"),
		published:    s.NewCounter("sluice_sim_published_total"),
		acknowledged: s.NewCounter("sluice_sim_acknowledged_total"),
		failed:       s.NewCounter("sluice_sim_publish_failed_total"),
		forgotten:    s.NewCounter("sluice_sim_forgotten_offline_total"),
		connects:     s.NewCounter("sluice_sim_connects_total"),
		lost:         s.NewCounter("sluice_sim_connections_lost_total"),
		drops:        s.NewCounter("sluice_sim_links_dropped_total"),
		latency:      s.NewHistogram("sluice_sim_acknowledge_seconds"),
	}
}

// Fleet is the devices of a scenario.
type Fleet struct {
	scenario Scenario
	devices  []*device
	set      *metrics.Set
	m        *counters
	log      *slog.Logger
}

// NewFleet makes the devices and connects none. A nil logger is silent.
func NewFleet(s Scenario, log *slog.Logger) (*Fleet, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{scenario: s, set: metrics.NewSet(), log: log}
	f.m = newCounters(f.set)
	for z := range s.Zones {
		for k := range Kinds {
			for n := range s.DevicesPerSet {
				f.devices = append(f.devices, newDevice(&f.scenario, z, k, n, f.m))
			}
		}
	}
	f.set.NewGauge("sluice_sim_connected", func() float64 { return float64(f.connected()) })
	return f, nil
}

func (f *Fleet) connected() (n int) {
	for _, d := range f.devices {
		if d.client.IsConnectionOpen() {
			n++
		}
	}
	return n
}

// Run lets the city live until ctx ends. Devices connect one after the other, at the scenario's rate.
func (f *Fleet) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	pace := time.NewTicker(time.Second / time.Duration(f.scenario.ConnectRate))
	defer pace.Stop()
	for _, d := range f.devices {
		select {
		case <-ctx.Done():
			return nil
		case <-pace.C:
			all.Go(func() { d.run(ctx, f.log) })
		}
	}
	<-ctx.Done()
	return nil
}

// Status is what /status shows of the simulator.
type Status struct {
	Broker       string `json:"broker"`
	Devices      int    `json:"devices"`
	Connected    int    `json:"connected"`
	Published    uint64 `json:"published"`
	Acknowledged uint64 `json:"acknowledged"`
	Forgotten    uint64 `json:"forgotten_offline"`
}

// Status may be called from anywhere.
func (f *Fleet) Status() Status {
	return Status{f.scenario.Broker, len(f.devices), f.connected(), f.m.published.Get(), f.m.acknowledged.Get(), f.m.forgotten.Get()}
}

// WritePrometheus writes the simulator's metrics in Prometheus text.
func (f *Fleet) WritePrometheus(w io.Writer) { f.set.WritePrometheus(w) }

// ServeHTTP answers /metrics, /healthz and /status on l until ctx ends.
func (f *Fleet) ServeHTTP(ctx context.Context, l net.Listener) error {
	server := &fasthttp.Server{Name: "firmware-sim", ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, Handler: f.handle, CloseOnShutdown: true}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(l) }()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	err := server.ShutdownWithContext(stop)
	<-stopped
	return err
}
