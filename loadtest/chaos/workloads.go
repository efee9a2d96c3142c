package chaos

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest"
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
	topicName       = "chaos"
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
	name   string
	result loadtest.VerifyResult
	err    error
}

// startWorkloads makes the topic and starts the clients.
func (r *run) startWorkloads(ctx context.Context) (*workloads, error) {
	if err := r.createTopic(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &workloads{until: make(chan struct{}), cancel: cancel, results: make(chan workloadResult, 2)}
	duration := r.o.DurationMax + settle + 2*healMax
	kafka := loadtest.Kafka{Brokers: r.cluster.kafkas(), Topic: topicName, Options: clientOptions()}
	w.add(ctx, "produce", loadtest.Verify{
		Kafka: kafka, Writers: writers, Rate: r.o.Rate, Duration: duration, Size: recordBytes, Late: healMax, Until: w.until,
		Heard: func(who string, at time.Time) { r.timeline.heard(topicName+"-"+who, at) },
	})
	if !r.o.Gateway {
		return w, nil
	}
	kafka.Topic = "mqtt"
	w.add(ctx, "gateway", loadtest.Verify{
		Kafka: kafka, Writers: devices, Rate: r.o.DeviceRate, Duration: duration, Size: recordBytes, Late: healMax, Until: w.until,
		Gateway: r.cluster.mqtt(), MQTT: "chaos", Window: deviceWindow,
	})
	return w, nil
}

func (r *run) createTopic(ctx context.Context) error {
	c, err := kgo.NewClient(append(clientOptions(), kgo.SeedBrokers(r.cluster.kafkas()...))...)
	if err != nil {
		return fmt.Errorf("configure client: %w", err)
	}
	defer c.Close()
	size := fmt.Sprint(segmentBytes)
	if _, err := kadm.NewClient(c).CreateTopic(ctx, topicPartitions, 3, map[string]*string{"segment.bytes": &size}, topicName); err != nil {
		return fmt.Errorf("create topic %s: %w", topicName, err)
	}
	return nil
}

func (w *workloads) add(ctx context.Context, name string, v loadtest.Verify) {
	w.count++
	go func() {
		result, err := v.Run(ctx)
		w.results <- workloadResult{name, result, err}
	}()
}

// finish ends the writing, waits for what is under way, and collects the verdicts; a run that has failed is not judged.
func (w *workloads) finish(failed error) (map[string]loadtest.VerifyResult, error) {
	defer w.cancel()
	close(w.until)
	if failed != nil {
		w.cancel()
	}
	out := map[string]loadtest.VerifyResult{}
	for range w.count {
		one := <-w.results
		out[one.name] = one.result
		if one.err != nil && failed == nil {
			failed = fmt.Errorf("workload %s: %w", one.name, one.err)
		}
	}
	return out, failed
}
