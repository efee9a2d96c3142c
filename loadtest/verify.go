package loadtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

const (
	// verifyMessagesMax bounds what a run remembers: about 100 bytes a record.
	verifyMessagesMax = 20_000_000
	// readRetry is the wait before a reading that failed is tried again; readTries bounds it to minutes.
	readRetry = time.Second
	readTries = 120
)

// Verify writes numbered records while whatever is to be survived happens, reads everything back, and says exactly what is wrong.
type Verify struct {
	Kafka
	Writers  int
	Rate     float64 // records a second, of all writers together
	Duration time.Duration
	Size     int           // bytes of a value, at least
	Late     time.Duration // how long acknowledgements and arrivals are waited for after the last write
	Gateway  string        // host:port of an MQTT broker; "" = written to Kafka directly
	MQTT     string        // MQTT topic prefix
	Window   int           // unacknowledged messages of a device
	History  string        // file that the history is written to, for a second look
	Progress io.Writer
	Until    <-chan struct{}                // ends the writing before Duration does; nil = it does not
	Heard    func(who string, at time.Time) // called for every acknowledged write with its partition (or device); nil = nobody wants to know
}

// VerifyResult is what a run prints.
type VerifyResult struct {
	Result
	Run     string           `json:"run"`
	Topic   string           `json:"topic"`
	Verdict *history.Verdict `json:"verdict"`
	// PartitionPauseMs is the longest time without an acknowledged write, for each partition (or device) that was written to.
	PartitionPauseMs map[string]float64 `json:"partition_longest_pause_ms"`
}

// recorded is what a run knows: it can be written to a file and checked again.
type recorded struct {
	Run    string          `json:"run"`
	Topic  string          `json:"topic"`
	Mixed  bool            `json:"mixed"` // others write to the topic too
	Writes []history.Write `json:"writes"`
}

// Run writes, reads and judges. The error is about the run itself; what is wrong with the log is in the verdict.
func (v Verify) Run(ctx context.Context) (VerifyResult, error) {
	if v.Writers < 1 || v.Rate <= 0 || v.Duration <= 0 || v.Rate*v.Duration.Seconds() > verifyMessagesMax {
		return VerifyResult{}, fmt.Errorf("%d writers, rate %v, duration %v: all have to be positive, and %d records are the most", v.Writers, v.Rate, v.Duration, verifyMessagesMax)
	}
	run := strconv.FormatUint(rand.Uint64(), 36)
	if v.Topic == "" {
		v.Topic = "verify-" + run
	}
	m := NewMeter()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go m.Progress(watch, v.Progress)
	log := &writeLog{pauses: map[string]*pause{}, tell: v.Heard}
	write := v.writeKafka
	if v.Gateway != "" {
		write = v.writeMQTT
	}
	if err := write(ctx, run, m, log); err != nil {
		return VerifyResult{}, err
	}
	stop()
	rec := recorded{Run: run, Topic: v.Topic, Mixed: v.Gateway != "", Writes: log.writes}
	if err := rec.save(v.History); err != nil {
		return VerifyResult{}, err
	}
	verdict, err := v.judge(ctx, rec)
	r := VerifyResult{Result: m.Result("verify", v.Rate, map[string]string{"writers": fmt.Sprint(v.Writers), "bytes": fmt.Sprint(v.Size)}),
		Run: run, Topic: v.Topic, Verdict: verdict, PartitionPauseMs: log.longest()}
	return r, err
}

// Check reads a recorded run's topic again.
func (v Verify) Check(ctx context.Context, file string) (VerifyResult, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return VerifyResult{}, fmt.Errorf("read history: %w", err)
	}
	var rec recorded
	if err := json.Unmarshal(data, &rec); err != nil {
		return VerifyResult{}, fmt.Errorf("read history %s: %w", file, err)
	}
	v.Topic = rec.Topic
	verdict, err := v.judge(ctx, rec)
	return VerifyResult{Result: Result{Load: "verify"}, Run: rec.Run, Topic: rec.Topic, Verdict: verdict}, err
}

func (r recorded) save(file string) error {
	if file == "" {
		return nil
	}
	data, err := json.Marshal(r)
	if err != nil {
		panic("BUG: encode history: " + err.Error())
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	return nil
}

// writeLog collects what the writers know.
type writeLog struct {
	mu     sync.Mutex
	writes []history.Write
	pauses map[string]*pause
	tell   func(who string, at time.Time)
}

type pause struct{ last, longest time.Duration }

func (l *writeLog) add(w history.Write) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes = append(l.writes, w)
}

// heard notes an acknowledgement for a partition or a device.
func (l *writeLog) heard(who string, at time.Duration) {
	if l.tell != nil {
		l.tell(who, time.Now())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pauses[who]
	if p == nil {
		l.pauses[who] = &pause{last: at}
		return
	}
	p.longest, p.last = max(p.longest, at-p.last), max(p.last, at)
}

func (l *writeLog) longest() map[string]float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]float64{}
	for who, p := range l.pauses {
		out[who] = float64(p.longest.Microseconds()) / 1000
	}
	return out
}

// numbered makes a value: run, writer and number, padded.
func numbered(run, writer string, n int64, size int) []byte {
	b := fmt.Appendf(nil, "%s %s %d ", run, writer, n)
	for len(b) < size {
		b = append(b, "sluice"[len(b)%6])
	}
	return b
}

// parseNumbered reads a value of this run; ok is false for all others.
func parseNumbered(run string, value []byte) (writer string, n int64, ok bool) {
	fields := bytes.SplitN(value, []byte(" "), 4)
	if len(fields) < 3 || string(fields[0]) != run {
		return "", 0, false
	}
	n, err := strconv.ParseInt(string(fields[2]), 10, 64)
	return string(fields[1]), n, err == nil
}

// writeKafka runs idempotent producers with acks=all. Every writer writes to every partition in turn, so that a pause of one shows.
func (v Verify) writeKafka(ctx context.Context, run string, m *Meter, log *writeLog) error {
	setup, err := v.client()
	if err != nil {
		return err
	}
	defer setup.Close()
	if err := v.ensure(ctx, setup); err != nil {
		return err
	}
	partitions, err := v.count(ctx, setup)
	if err != nil {
		return err
	}
	s, err := newSchedule(v.Rate, 0, v.Duration)
	if err != nil {
		return err
	}
	return workers(ctx, v.Writers, func(ctx context.Context, i int) error {
		return v.writer(ctx, run, "w"+strconv.Itoa(i), partitions, s, m, log)
	})
}

// count is how many partitions the topic has.
func (v Verify) count(ctx context.Context, c *kgo.Client) (n int, err error) {
	err = patiently(ctx, "describe "+v.Topic, func() error {
		topics, err := kadm.NewClient(c).ListTopics(ctx, v.Topic)
		if err != nil {
			return err
		}
		if n = len(topics[v.Topic].Partitions); n == 0 {
			return fmt.Errorf("it has no partitions: %w", cmp.Or[error](topics[v.Topic].Err, kerr.UnknownTopicOrPartition))
		}
		return nil
	})
	return n, err
}

func (v Verify) writer(ctx context.Context, run, name string, partitions int, s *schedule, m *Meter, log *writeLog) error {
	c, err := v.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(time.Millisecond), kgo.MaxBufferedRecords(windowRecords),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.ProduceRequestTimeout(5*time.Second), kgo.RequestTimeoutOverhead(3*time.Second),
		kgo.UnknownTopicRetries(-1), kgo.RecordRetries(1<<30))
	if err != nil {
		return err
	}
	defer c.Close()
	for number := int64(0); !v.over(); number++ {
		at, _, ok := s.take(ctx)
		if !ok {
			break
		}
		r := &kgo.Record{Topic: v.Topic, Partition: int32(number % int64(partitions)), Key: []byte(name), Value: numbered(run, name, number, v.Size)}
		c.Produce(ctx, r, func(r *kgo.Record, err error) {
			w := history.Write{Writer: name, Number: number}
			if err != nil {
				m.Failed(err)
				log.add(w)
				return
			}
			w.Acked, w.Place = true, &history.Place{Partition: r.Partition, Offset: r.Offset}
			log.add(w)
			log.heard(strconv.Itoa(int(r.Partition)), time.Since(m.start))
			m.Done(int(number), at, len(r.Value))
		})
	}
	late, cancel := context.WithTimeout(ctx, v.Late)
	defer cancel()
	if err := c.Flush(late); err != nil && ctx.Err() == nil {
		m.Failed(fmt.Errorf("writer %s: acknowledgements are missing %v after the last write: %w", name, v.Late, err))
	}
	return nil
}

// over tells whether the writing has been told to end.
func (v Verify) over() bool {
	select {
	case <-v.Until:
		return true
	default:
		return false
	}
}

// judge reads the topic and checks; when what came over a gateway is still on its way, it looks again until v.Late is over.
func (v Verify) judge(ctx context.Context, rec recorded) (*history.Verdict, error) {
	end := time.Now().Add(v.Late)
	for {
		reads, err := v.read(ctx, rec.Run)
		if err != nil {
			return nil, err
		}
		verdict := history.Check(rec.Writes, reads, history.Options{Contiguous: !rec.Mixed})
		if !rec.Mixed || verdict.Counts[history.Lost] == 0 || time.Now().After(end) {
			return verdict, nil
		}
		if err := sleep(ctx, readRetry); err != nil {
			return nil, err
		}
	}
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

// read returns this run's records. A cluster that is still healing is given time.
func (v Verify) read(ctx context.Context, run string) ([]history.Read, error) {
	var last error
	for range readTries {
		reads, err := v.readOnce(ctx, run)
		if err == nil || ctx.Err() != nil {
			return reads, err
		}
		last = err
		if err := sleep(ctx, readRetry); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("read %s back: %w", v.Topic, last)
}

func (v Verify) readOnce(ctx context.Context, run string) ([]history.Read, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c, err := v.client(kgo.FetchMaxWait(250*time.Millisecond), kgo.FetchMaxBytes(32<<20), kgo.KeepControlRecords())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	adm := kadm.NewClient(c)
	starts, err := adm.ListStartOffsets(ctx, v.Topic)
	if err = errors.Join(err, starts.Error()); err != nil {
		return nil, err
	}
	ends, err := adm.ListEndOffsets(ctx, v.Topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, err
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if s, ok := starts.Lookup(v.Topic, o.Partition); ok && o.Offset > s.Offset {
			left[o.Partition] = o.Offset
		}
	})
	c.AddConsumePartitions(starts.KOffsets())
	return collect(ctx, c, run, left)
}

// collect polls until every partition has been read up to its end.
func collect(ctx context.Context, c *kgo.Client, run string, left map[int32]int64) (reads []history.Read, err error) {
	for len(left) > 0 {
		fetches := c.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("partitions %v were not read to their end: %w", left, ctx.Err())
		}
		fetches.EachError(func(_ string, p int32, e error) { err = fmt.Errorf("partition %d: %w", p, e) })
		if err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
			if writer, n, ok := parseNumbered(run, r.Value); ok {
				reads = append(reads, history.Read{Place: history.Place{Partition: r.Partition, Offset: r.Offset}, Writer: writer, Number: n})
			}
		})
	}
	return reads, nil
}
