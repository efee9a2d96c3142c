package scale

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest"
)

const (
	// rateWindow records are under way at the most, whatever the number of partitions.
	rateWindow = 50_000
	// rateLinger is how long a batch waits for company.
	rateLinger = 10 * time.Millisecond
	// stickyRun records in a row go to one partition, as clients without keys do it to fill batches.
	stickyRun = 200
)

// Rate is what a number of partitions took when all of them were written to at once.
type Rate struct {
	Partitions int `json:"partitions"`
	// Spread is "each" when every record goes to the next partition, as with keys, and "runs" when 200 in a row go to one.
	Spread        string  `json:"spread"`
	PerSecond     float64 `json:"per_second"`
	MBPerS        float64 `json:"mb_per_s"`
	P99Ms         float64 `json:"p99_ms"`
	LongestPause  float64 `json:"longest_pause_ms"`
	Errors        int64   `json:"errors"`
	FirstError    string  `json:"first_error,omitempty"`
	CPUPerMillion float64 `json:"cpu_s_per_million"` // of all nodes, for a million records
}

// rate writes to the partitions for a while; parts are counted over the topics in order.
func (r *run) rate(ctx context.Context, topics []string, per, parts int, spread string) (Rate, error) {
	out := Rate{Partitions: parts, Spread: spread}
	c, err := kgo.NewClient(kgo.SeedBrokers(r.brokers()...), kgo.ClientID("loadtest-scale"), kgo.ProducerLinger(rateLinger), kgo.MaxBufferedRecords(rateWindow),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ConnIdleTimeout(5*time.Minute), kgo.RecordDeliveryTimeout(time.Minute))
	if err != nil {
		return out, fmt.Errorf("configure producer: %w", err)
	}
	defer c.Close()
	at := func(i int) (string, int32) { i %= parts; return topics[i/per], int32(i % per) }
	if err := warm(ctx, c, parts, at); err != nil {
		return out, err
	}
	before, err := r.cpu()
	if err != nil {
		return out, err
	}
	m, value, began := loadtest.NewMeter(), make([]byte, r.RecordBytes), time.Now()
	for i := 0; time.Since(began) < r.Load && ctx.Err() == nil; i++ {
		n := i
		if spread == "runs" {
			n = i / stickyRun
		}
		topic, p := at(n)
		since := time.Now()
		c.Produce(ctx, &kgo.Record{Topic: topic, Partition: p, Value: value}, func(rec *kgo.Record, err error) {
			if err != nil {
				m.Failed(err)
				return
			}
			m.Done(int(rec.Partition), since, len(rec.Value))
		})
	}
	if err := c.Flush(ctx); err != nil {
		return out, fmt.Errorf("flush: %w", err)
	}
	after, err := r.cpu()
	res := m.Result("scale", 0, nil)
	out.PerSecond, out.MBPerS, out.P99Ms, out.LongestPause = res.PerSecond, res.MBPerS, res.LatencyMs["p99"], res.PauseMs
	out.Errors, out.FirstError = res.Errors, res.FirstError
	out.CPUPerMillion = (after - before).Seconds() / max(float64(res.Operations), 1) * 1e6
	return out, err
}

// warm writes one record to each partition, so that connections and metadata are there when the clock starts.
func warm(ctx context.Context, c *kgo.Client, parts int, at func(int) (string, int32)) error {
	failed := make(chan error, 1)
	for i := range parts {
		topic, p := at(i)
		c.Produce(ctx, &kgo.Record{Topic: topic, Partition: p, Value: []byte("warm")}, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	if err := c.Flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	select {
	case err := <-failed:
		return fmt.Errorf("write to each partition: %w", err)
	default:
		return nil
	}
}
