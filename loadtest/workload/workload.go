// Package workload is what runs against a cluster while things break: producers, readers, consumer groups, devices behind gateways, and
// clients that create, change and delete topics. All of them tell a history what they do and see, and the history judges.
//
// Workloads are strangers to the house: franz-go and MQTT clients that could belong to anybody. None of them gives up because a cluster does not
// answer; they end when their context does, and an error of Run means that the workload itself could not do its work.
//
// # How a run goes
//
//	h := history.New(nil)
//	set, err := workload.New(workload.Config{Brokers: ..., History: h})
//	err = set.Setup(ctx)        // creates the topics; the cluster is healthy
//	err = set.Run(faultCtx)     // all at once, until the context ends
//	err = set.Finish(ctx)       // the cluster is whole again: outstanding writes, a last reading of everything, the groups' backlog
//	verdict := h.Check()        // and set.Stats()
//
// # Client settings
//
// A client must notice a node that is silent in a time that is short beside the unavailability that is measured, or it is the client that is
// measured. All clients dial with DialTimeout, give a request RequestTimeout beyond what it asks the broker to wait (produce, join), retry
// after RetryBackoff without limit, and look for new leaders at most every MetadataMinAge. Idle connections are not reused across a
// failure, and a node that let a request time out is left alone for reconnectBackoff. Producers are idempotent with acks=all, never give a record up, and keep up to five batches in flight.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

const (
	// DialTimeout is how long a connection may take: a node that is cut off drops packets silently.
	DialTimeout = 500 * time.Millisecond
	// RequestTimeout is how long an answer may take beyond what the request asks the broker to wait. A write that is sent to a leader that has just
	// fallen silent costs this and produceTimeout, and once more if nobody else leads yet: together they have to stay well below a pause that matters.
	RequestTimeout = 500 * time.Millisecond
	// RetryBackoff is the wait before a request is tried again.
	RetryBackoff = 50 * time.Millisecond
	// MetadataMinAge is how soon a client may ask again who leads.
	MetadataMinAge = 50 * time.Millisecond
	// metadataMaxAge is how long a client believes what it was told without an error.
	metadataMaxAge = 10 * time.Second
)

// Config of all workloads. Zero values mean the defaults that are named.
type Config struct {
	Brokers  []string // host:port
	Gateways []string // host:port of MQTT listeners; none = no devices
	History  *history.History
	Logger   *slog.Logger // nil = discard

	// Prefix of the names of topics, groups and writers; "" = "wl". Two runs against one cluster need two.
	Prefix            string
	ReplicationFactor int16   // default 3
	Partitions        int32   // of the topic of numbered records; default 6
	Writers           int     // default 3
	Rate              float64 // records a second of all writers together; default 300
	Size              int     // bytes of a value; default 200
	Readers           int     // default 2
	Members           int     // of the consumer group, default 3; -1 = no group
	Devices           int     // in all, spread over the gateways; default 8
	DeviceRate        float64 // messages a second of all devices together; default 40
	// GatewayTopic is the core topic that the gateways write to; default "mqtt".
	GatewayTopic string
	// Admins is how many clients create, change and delete topics; default 2; -1 = none.
	Admins int
	// Lag is what reads of metadata may lag behind: see history.Metadata.Lag.
	Lag time.Duration

	// Dial opens connections, for clients that live elsewhere (a network namespace); nil = net.Dialer with DialTimeout.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c *Config) defaults() error {
	if len(c.Brokers) == 0 || c.History == nil {
		return errors.New("a workload needs brokers and a history")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: DialTimeout}).DialContext
	}
	orDefault(&c.Prefix, "wl")
	orDefault(&c.ReplicationFactor, 3)
	orDefault(&c.Partitions, 6)
	orDefault(&c.Writers, 3)
	orDefault(&c.Rate, 300)
	orDefault(&c.Size, 200)
	orDefault(&c.Readers, 2)
	orDefault(&c.Members, 3)
	orDefault(&c.Devices, 8)
	orDefault(&c.DeviceRate, 40)
	orDefault(&c.GatewayTopic, "mqtt")
	orDefault(&c.Admins, 2)
	if c.Writers < 1 || c.Rate <= 0 || c.Partitions < 1 || c.Size < minSize {
		return fmt.Errorf("%d writers, %v records a second, %d partitions, %d bytes: all have to be positive, and values have at least %d bytes", c.Writers, c.Rate, c.Partitions, c.Size, minSize)
	}
	return nil
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// client makes a Kafka client with the settings that all share.
func (c *Config) client(opts ...kgo.Opt) (*kgo.Client, error) {
	common := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...), kgo.ClientID(c.Prefix), kgo.Dialer(newDialer(c.Dial).open), kgo.RequestTimeoutOverhead(RequestTimeout),
		kgo.RetryBackoffFn(func(int) time.Duration { return RetryBackoff }), kgo.RequestRetries(1 << 20), kgo.RetryTimeout(30 * time.Second),
		kgo.MetadataMinAge(MetadataMinAge), kgo.MetadataMaxAge(metadataMaxAge), kgo.UnknownTopicRetries(-1),
	}
	client, err := kgo.NewClient(append(common, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	return client, nil
}

// Workload is one kind of client at work.
type Workload interface {
	// Name tells it from others.
	Name() string
	// Run works until ctx ends and returns nil then; what is outstanding is left to Finish.
	Run(ctx context.Context) error
	// Finish brings what is outstanding to an end on a cluster that is whole again, or says what is still missing when ctx ends.
	Finish(ctx context.Context) error
}

// Set is all workloads of a run.
type Set struct {
	c     Config
	topic *history.Topic // of numbered records
	// ingested is the topic that gateways write to; nil without devices.
	ingested *history.Topic
	list     []Workload
	stats    Stats
}

// New makes the workloads. Nothing is sent before Setup.
func New(c Config) (*Set, error) {
	if err := c.defaults(); err != nil {
		return nil, err
	}
	s := &Set{c: c}
	s.topic = c.History.Topic(c.Prefix+"-numbered", history.TopicOptions{Partitions: c.Partitions, Contiguous: true})
	return s, nil
}

// Topic is the name of the topic of numbered records.
func (s *Set) Topic() string { return s.topic.Name() }

// Setup creates the topic and prepares the workloads.
func (s *Set) Setup(ctx context.Context) error {
	client, err := s.c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	if err := s.create(ctx, client, s.c.Partitions, s.topic.Name()); err != nil {
		return err
	}
	return s.prepare(ctx, client)
}

// setupPatience bounds how long something is asked for before the run: leaders may just be changing, and a slow node may be taken for dead for a moment.
const setupPatience = time.Minute

// create creates a topic; one that is there is left as it is.
func (s *Set) create(ctx context.Context, client *kgo.Client, partitions int32, name string) error {
	return patiently(ctx, "create topic "+name, func() error {
		resp, err := kadm.NewClient(client).CreateTopics(ctx, partitions, s.c.ReplicationFactor, nil, name)
		if err == nil {
			err = resp[name].Err
		}
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return nil
		}
		return err
	})
}

// patiently tries until fn succeeds.
func patiently(ctx context.Context, what string, fn func() error) error {
	for late := time.Now().Add(setupPatience); ; {
		err := fn()
		if err == nil {
			return nil
		}
		if time.Now().After(late) || sleep(ctx, 4*RetryBackoff) != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// Run runs all workloads until ctx ends. The first that fails ends the others.
func (s *Set) Run(ctx context.Context) error {
	return all(ctx, s.list, func(ctx context.Context, w Workload) error { return w.Run(ctx) })
}

// Finish brings all workloads to their end, writers first: readers read to the end of what was written.
func (s *Set) Finish(ctx context.Context) error {
	for _, w := range s.list {
		if err := w.Finish(ctx); err != nil {
			return fmt.Errorf("%s: %w", w.Name(), err)
		}
	}
	return nil
}

// all runs fn for each at once and waits; the first error ends the others' context.
func all[T any](ctx context.Context, list []T, fn func(ctx context.Context, w T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, w := range list {
		wg.Go(func() {
			if err := fn(ctx, w); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
