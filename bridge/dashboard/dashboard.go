// Package dashboard is the live web page of a city: the readings of its sensors as they arrive in the core.
//
// One Kafka consumer reads the topics behind the page, from a few minutes back on; a model keeps, within fixed bounds, the latest reading of
// every device and a short history per zone and kind; every browser gets a snapshot and then one frame per tick as server-sent events. A
// browser that does not keep up is cut off, comes back by itself and gets a new snapshot: it can slow nobody down.
//
// What is understood: MQTT topics city/<zone>/<kind>/<device> as record keys, with payloads in JSON ({"value":...} or a bare number), SenML in
// JSON (RFC 8428 section 5) and SenML in CBOR (section 6). Everything else is counted and left alone. The page keeps nothing: the log does.
package dashboard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
)

// Options of a page. Zero values mean the defaults named beside them.
type Options struct {
	Brokers    []string     // host:port; required
	Topics     []string     // "mqtt"
	Listen     string       // "127.0.0.1:8090"
	KgoOptions []kgo.Opt    // TLS, SASL
	Logger     *slog.Logger // nil = silent
}

const (
	// tick is how often browsers are told what is new: well below the two seconds that people call live.
	tick = 500 * time.Millisecond
	// clientsMax bounds the browsers served at once; each costs a goroutine and frameQueue frames.
	clientsMax = 256
	// frameQueue is how many frames a browser may be behind before it is cut off.
	frameQueue = 16
	// writeTimeout is what a browser gets to take one frame: one that stands still would keep its connection for ever.
	writeTimeout = 20 * time.Second
	// stopTimeout is what open streams get to end at a stop.
	stopTimeout = 3 * time.Second
)

// Dashboard serves the page. Open it, then Run it.
type Dashboard struct {
	o         Options
	listener  net.Listener
	model     *model
	hub       *hub
	set       *metrics.Set
	records   *metrics.Counter
	unknown   *metrics.Counter
	lastError atomic.Value // string: why a partition cannot be read; cleared by the next record
}

// Open listens and starts nothing else.
func Open(o Options) (*Dashboard, error) {
	if len(o.Brokers) == 0 {
		return nil, errors.New("dashboard: no brokers given")
	}
	if len(o.Topics) == 0 {
		o.Topics = []string{"mqtt"}
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:8090"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the page: %w", err)
	}
	d := &Dashboard{o: o, listener: l, model: newModel(), hub: newHub(), set: metrics.NewSet()}
	d.records = d.set.NewCounter("sluice_dashboard_records_total")
	d.unknown = d.set.NewCounter("sluice_dashboard_records_not_understood_total")
	d.set.NewGauge("sluice_dashboard_clients", func() float64 { return float64(d.hub.len()) })
	d.lastError.Store("")
	return d, nil
}

// Addr is where the page is.
func (d *Dashboard) Addr() net.Addr { return d.listener.Addr() }

// Run serves until ctx ends. It owns the consumer, the hub and the HTTP server.
func (d *Dashboard) Run(ctx context.Context) error {
	server := &fasthttp.Server{Handler: d.handle, Name: "sluice", ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxRequestBodySize: 4 << 10, Concurrency: 2 * clientsMax, CloseOnShutdown: true, Logger: quiet{}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.consume(ctx) })
	g.Go(func() error { return d.hub.run(ctx, d.model) })
	g.Go(func() error { return server.Serve(patient{d.listener}) })
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return server.ShutdownWithContext(stop)
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}

// consume reads the topics from the history's reach on. A topic that does not exist yet is waited for.
func (d *Dashboard) consume(ctx context.Context) error {
	since := time.Now().Add(-historyLength).UnixMilli()
	opts := append([]kgo.Opt{
		kgo.SeedBrokers(d.o.Brokers...), kgo.ClientID("sluice-dashboard"), kgo.ConsumeTopics(d.o.Topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AfterMilli(since)), kgo.FetchMaxWait(250 * time.Millisecond),
		kgo.UnknownTopicRetries(-1), kgo.MetadataMinAge(250 * time.Millisecond), kgo.MetadataMaxAge(5 * time.Second),
		kgo.FetchMaxBytes(8 << 20), kgo.BrokerMaxReadBytes(64 << 20), kgo.AllowAutoTopicCreation(),
	}, d.o.KgoOptions...)
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("configure the page's consumer: %w", err)
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachError(func(topic string, p int32, err error) {
			if ctx.Err() == nil {
				d.lastError.Store(fmt.Sprintf("%s-%d: %v", topic, p, err))
			}
		})
		fetches.EachRecord(d.take)
		if fetches.NumRecords() > 0 {
			d.lastError.Store("")
		}
	}
	return nil
}

// take adds one record to the model.
func (d *Dashboard) take(r *kgo.Record) {
	d.records.Inc()
	source, ok := parseTopic(string(r.Key))
	if !ok {
		d.unknown.Inc()
		return
	}
	readings, ok := decode(source, r.Value, r.Timestamp.UnixMilli())
	if !ok {
		d.unknown.Inc()
	}
	for _, x := range readings {
		d.model.add(x)
	}
}

// patient gives each write of its connections a time of its own: the server's limit would be one for a whole stream.
type patient struct{ net.Listener }

func (p patient) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return patientConn{c}, nil
}

type patientConn struct{ net.Conn }

func (c patientConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// quiet drops fasthttp's own log lines: they tell of strangers' broken connections, one by one.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
