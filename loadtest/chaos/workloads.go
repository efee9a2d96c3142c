package chaos

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest"
	"sluice/loadtest/history"
)

// What the clients are told to wait for. These are a client's decisions, not the cluster's: a producer whose leader has vanished without a word
// learns it when its own timeout is over, so timeouts of half a minute, as clients have them by default, would be all that is measured. The
// timeout of a request is produceTimeout + requestOverhead.
const (
	dialTimeout     = 500 * time.Millisecond
	produceTimeout  = 500 * time.Millisecond
	requestOverhead = 500 * time.Millisecond
	retryBackoff    = 50 * time.Millisecond
	metadataMinAge  = 100 * time.Millisecond
)

const (
	steadyTopic     = "steady" // of the writer by which unavailability is measured
	stockTopic      = "chaos"  // of producers with a stock client library
	topicPartitions = 6
	segmentBytes    = 1 << 20 // small, so that there are closed segments to damage
	writers         = 3
	devices         = 8
	deviceWindow    = 10
	recordBytes     = 200
)

// clientOptions are what every Kafka client of a run has.
func clientOptions() []kgo.Opt {
	return []kgo.Opt{
		kgo.Dialer((&net.Dialer{Timeout: dialTimeout}).DialContext), kgo.ProduceRequestTimeout(produceTimeout), kgo.RequestTimeoutOverhead(requestOverhead),
		kgo.RetryBackoffFn(func(int) time.Duration { return retryBackoff }), kgo.MetadataMinAge(metadataMinAge),
	}
}

// workloads are the clients that work during a run.
type workloads struct {
	until   chan struct{}
	cancel  context.CancelFunc
	results chan workloadResult
	count   int
}

type workloadResult struct {
	name    string
	verdict *history.Verdict
	err     error
}

// startWorkloads makes the topics and starts the clients.
func (r *run) startWorkloads(ctx context.Context) (*workloads, error) {
	if err := r.createTopics(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &workloads{until: make(chan struct{}), cancel: cancel, results: make(chan workloadResult, 3)}
	w.add("steady", func() (*history.Verdict, error) { return r.steady(ctx, w.until) })
	v := loadtest.Verify{
		Kafka:   loadtest.Kafka{Brokers: r.cluster.kafkas(), Topic: stockTopic, Options: clientOptions()},
		Writers: writers, Rate: r.o.Rate, Duration: r.o.DurationMax + settle + 2*healMax, Size: recordBytes, Late: healMax, Until: w.until,
		Heard: func(who string, at time.Time) { r.stock.heard(stockTopic+"-"+who, at) },
	}
	w.add("produce", verify(ctx, v))
	if r.o.Gateway {
		v.Topic, v.Heard = "mqtt", nil
		v.Writers, v.Rate, v.Gateway, v.MQTT, v.Window = devices, r.o.DeviceRate, r.cluster.mqtt(), "chaos", deviceWindow
		w.add("gateway", verify(ctx, v))
	}
	return w, nil
}

func verify(ctx context.Context, v loadtest.Verify) func() (*history.Verdict, error) {
	return func() (*history.Verdict, error) {
		result, err := v.Run(ctx)
		return result.Verdict, err
	}
}

// steady writes until it is told to end, and judges what it wrote.
func (r *run) steady(ctx context.Context, until <-chan struct{}) (*history.Verdict, error) {
	s := &steady{topic: steadyTopic, partitions: topicPartitions, brokers: map[int32]string{}, timeline: r.timeline, size: recordBytes}
	for i, address := range r.cluster.kafkas() {
		s.brokers[int32(i+1)] = address
	}
	late, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	go func() {
		select {
		case <-until:
		case <-late.Done():
		}
		_ = sleep(late, healMax)
		cancel()
	}()
	s.run(late, until)
	reads, err := readBack(ctx, r.cluster.kafkas(), steadyTopic)
	if err != nil {
		return nil, err
	}
	verdict := history.Check(s.mu.writes, reads, history.Options{Contiguous: true})
	for _, text := range s.mu.refused {
		verdict.Counts["refused"]++
		verdict.Violations = append(verdict.Violations, history.Violation{Kind: "refused", Detail: text})
	}
	return verdict, nil
}

func (r *run) createTopics(ctx context.Context) error {
	c, err := kgo.NewClient(append(clientOptions(), kgo.SeedBrokers(r.cluster.kafkas()...))...)
	if err != nil {
		return fmt.Errorf("configure client: %w", err)
	}
	defer c.Close()
	size := fmt.Sprint(segmentBytes)
	for _, name := range []string{steadyTopic, stockTopic} {
		if _, err := kadm.NewClient(c).CreateTopic(ctx, topicPartitions, 3, map[string]*string{"segment.bytes": &size}, name); err != nil {
			return fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	return nil
}

func (w *workloads) add(name string, fn func() (*history.Verdict, error)) {
	w.count++
	go func() {
		verdict, err := fn()
		w.results <- workloadResult{name, verdict, err}
	}()
}

// finish ends the writing, waits for what is under way, and collects the verdicts; a run that has failed is not judged.
func (w *workloads) finish(failed error) (map[string]*history.Verdict, error) {
	defer w.cancel()
	close(w.until)
	if failed != nil {
		w.cancel()
	}
	out := map[string]*history.Verdict{}
	for range w.count {
		one := <-w.results
		if one.verdict != nil {
			out[one.name] = one.verdict
		}
		if one.err != nil && failed == nil {
			failed = fmt.Errorf("workload %s: %w", one.name, one.err)
		}
	}
	return out, failed
}
