// Package broker is the assembly of one node: it answers Kafka's requests from the metadata (core/controller), the partitions (core/partition) and their
// Raft groups (core/shard). Each API key has a file of its own that registers its versions; what is not registered is neither advertised nor served.
//
// An answer means what the design promises: a produced record is on the disks of a majority, a fetched one is committed, and what must not go back
// (ends of logs, offsets) is told only by a leader that has just verified that it leads.
package broker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"sluice/core/controller"
	"sluice/core/group"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// Options of a Broker.
type Options struct {
	Controller *controller.Controller
	// Listeners are open sockets for clients (see Listen). The broker closes them when Run returns. Where clients find them is the node's
	// registration (meta.Node), not said here.
	Listeners []kafka.Listener
	Logger    *slog.Logger // nil discards
	// ConnectionsMax and MemoryBytes bound all listeners together; zero takes core/kafka's defaults. ConnectionsPerHostMax bounds those of one
	// address; zero is no bound.
	ConnectionsMax, ConnectionsPerHostMax int
	MemoryBytes                           int64
	// UnsentBytes is what the kernel holds of a connection's answers when its client stops reading; zero takes core/kafka's default.
	UnsentBytes int
	// Groups is what the group coordinators decide by (group.max.size and the like); zero values are Kafka's defaults.
	Groups group.Config
	// Now is the wall clock, which gives LogAppendTime and the times of committed offsets; nil means time.Now. What lasts (sessions, timeouts) is measured
	// by the monotonic reading of what it returns.
	Now func() time.Time
}

// A Broker serves one node's clients. New starts nothing; Run owns all goroutines.
type Broker struct {
	opts      Options
	ctl       *controller.Controller
	log       *slog.Logger
	table     *kafka.Table
	server    *kafka.Server
	metrics   *brokerMetrics
	sessions  *sessionCache
	settings  settingsCache
	producers *producerIDs
	queues    refusedBatches
	parts     map[string]part
	ready     chan struct{}
}

// handleFunc serves one request; see kafka.Handler for what may wait where.
type handleFunc func(b *Broker, ctx context.Context, r *kafka.Request) kafka.Reply

// api is one registered key.
type api struct {
	versions kafka.Versions
	handle   handleFunc
}

// apis is filled by the files' init functions and never changes afterwards.
var apis = map[int16]api{}

// register makes a key served and advertised. It is called by init functions only.
func register(key, minVersion, maxVersion int16, handle handleFunc) {
	if _, ok := apis[key]; ok {
		panic(fmt.Sprintf("BUG: key %d is registered twice", key))
	}
	apis[key] = api{versions: kafka.Versions{Key: key, Min: minVersion, Max: maxVersion}, handle: handle}
}

// A part is something with a life of its own inside a Broker, such as the group coordinators: made by New, run by Run.
type part interface {
	Run(ctx context.Context) error
	WritePrometheus(w io.Writer)
	Status() any
}

// makers make the parts by name; filled by init functions, never changed afterwards.
var makers = map[string]func(b *Broker) (part, error){}

// registerPart adds a part to every Broker. It is called by init functions only; maker runs at the end of New.
func registerPart(name string, maker func(b *Broker) (part, error)) { makers[name] = maker }

// New returns a broker for the listeners.
func New(o Options) (*Broker, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	b := &Broker{
		opts: o, ctl: o.Controller, log: o.Logger, table: versionTable(), metrics: newBrokerMetrics(),
		sessions: newSessionCache(), producers: newProducerIDs(), parts: make(map[string]part), ready: make(chan struct{}),
	}
	b.server = kafka.NewServer(kafka.Options{
		Handler: b, Versions: b.table, Logger: o.Logger, ConnectionsMax: o.ConnectionsMax, ConnectionsPerHostMax: o.ConnectionsPerHostMax,
		MemoryBytes: o.MemoryBytes, UnsentBytes: o.UnsentBytes,
	})
	for name, make := range makers {
		p, err := make(b)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		b.parts[name] = p
	}
	return b, nil
}

func versionTable() *kafka.Table {
	var list []kafka.Versions
	for _, a := range apis {
		list = append(list, a.versions)
	}
	return kafka.NewTable(list)
}

// Run serves clients once the controller is ready, until ctx ends.
func (b *Broker) Run(ctx context.Context) error {
	defer b.closeListeners()
	select {
	case <-ctx.Done():
		return nil
	case <-b.ctl.Ready():
	}
	g, ctx := errgroup.WithContext(ctx)
	for name, p := range b.parts {
		g.Go(func() error {
			if err := p.Run(ctx); err != nil {
				return fmt.Errorf("run %s: %w", name, err)
			}
			return nil
		})
	}
	g.Go(func() error { return b.serve(ctx) })
	close(b.ready)
	return g.Wait()
}

// handOverTimeout bounds how long a stop waits for other nodes to take this one's shards.
const handOverTimeout = 3 * time.Second

// serve runs the server until ctx ends. Before clients are let go this node's shards are led elsewhere, and it has told who leads them: a producer
// pauses for a round trip instead of a reconnect and an election.
func (b *Broker) serve(ctx context.Context) error {
	serverCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- b.server.Run(serverCtx, b.opts.Listeners...) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	handOver, cancel := context.WithTimeout(serverCtx, handOverTimeout)
	defer cancel()
	b.ctl.HandOver(handOver)
	stop()
	return <-done
}

func (b *Broker) closeListeners() {
	for _, l := range b.opts.Listeners {
		l.Close()
	}
}

// Ready is closed when requests are served.
func (b *Broker) Ready() <-chan struct{} { return b.ready }

// Serve implements kafka.Handler.
func (b *Broker) Serve(ctx context.Context, r *kafka.Request) kafka.Reply {
	a, ok := apis[r.Key]
	if !ok {
		panic(fmt.Sprintf("BUG: key %d is in the table but not registered", r.Key))
	}
	return a.handle(b, ctx, r)
}

// reply is a Reply that is ready. It is for small responses: a large one is made by its Reply, when the connection's earlier answers are written, so
// that a client which asks and does not read holds one at a time.
func reply(resp kmsg.Response) kafka.Reply {
	return func(context.Context) kafka.Response { return resp }
}

// self returns this node's id.
func (b *Broker) self() meta.NodeID { return b.ctl.Self() }
