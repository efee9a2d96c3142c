package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

const (
	// passTime is how long a reader stays with one session before it begins at the start of the logs again.
	passTime = 30 * time.Second
	// fetchWait is how long a broker may hold a fetch when there is nothing new.
	fetchWait = 250 * time.Millisecond
)

// reader is a plain consumer without a group, as often as it likes from the start to the end of all logs and along with it.
type reader struct {
	s    *Set
	name string
	// rack makes the brokers send it to a replica in its rack (KIP-392), "" = leaders. Ends that a follower tells are not compared: it may be behind.
	rack string
}

func (r *reader) Name() string { return "reader " + r.name }

func (r *reader) Run(ctx context.Context) error {
	for pass := 0; ctx.Err() == nil; pass++ {
		if err := r.pass(ctx, pass, passTime, nil); err != nil {
			return err
		}
	}
	return nil
}

// errPosition ends a pass: a broker has said that a position is out of range.
var errPosition = errors.New("position out of range")

// pass reads everything from the start, with a client and a session of its own, for a time or until it has reached all of until.
func (r *reader) pass(ctx context.Context, n int, d time.Duration, until map[string]map[int32]int64) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	from := map[string]map[int32]kgo.Offset{}
	for _, t := range r.s.logs() {
		from[t.Name()] = map[int32]kgo.Offset{}
		for p := range t.Partitions() {
			from[t.Name()][p] = kgo.NewOffset().AtStart()
		}
	}
	opts := []kgo.Opt{kgo.ConsumePartitions(from), kgo.FetchMaxWait(fetchWait), kgo.FetchMaxBytes(8 << 20), kgo.ConsumeResetOffset(kgo.NoResetOffset())}
	if r.rack != "" {
		opts = append(opts, kgo.Rack(r.rack))
	}
	client, err := r.s.c.client(opts...)
	if err != nil {
		return err
	}
	defer client.Close()
	session := r.s.c.History.Session(fmt.Sprintf("%s pass %d", r.name, n))
	for !reached(until) {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(r.see(session, fetches, until), errPosition) {
			return nil // and begin anew
		}
	}
	if until != nil && !reached(until) {
		return fmt.Errorf("not read to the end: %v are missing", until)
	}
	return nil
}

// see tells the history what came.
func (r *reader) see(session *history.Session, fetches kgo.Fetches, until map[string]map[int32]int64) (err error) {
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		t := r.s.log(f.Topic)
		if f.Err != nil {
			r.s.stats.Errors.Add(1)
			var loss *kgo.ErrDataLoss
			if errors.Is(f.Err, kerr.OffsetOutOfRange) || errors.As(f.Err, &loss) {
				session.OutOfRange(t, f.Partition)
				err = errPosition
			}
			r.s.c.Logger.Debug("fetch", "reader", r.name, "topic", f.Topic, "partition", f.Partition, "error", f.Err)
			return
		}
		for _, rec := range f.Records {
			session.Read(t, f.Partition, r.s.record(rec))
			if rec.Offset >= until[f.Topic][f.Partition]-1 {
				delete(until[f.Topic], f.Partition)
			}
		}
		r.s.stats.Read.Add(int64(len(f.Records)))
		if r.rack == "" {
			session.Ends(t, f.Partition, f.HighWatermark, f.LogStartOffset)
		}
	})
	return err
}

func reached(until map[string]map[int32]int64) bool {
	if until == nil {
		return false
	}
	for _, parts := range until {
		if len(parts) > 0 {
			return false
		}
	}
	return true
}

const (
	// finalPass bounds one try of the last reading of everything.
	finalPass = 10 * time.Minute
	// lateMax is how long records that were acknowledged and are not there are waited for: a gateway forwards what it has stored.
	lateMax = time.Minute
)

// Finish reads everything once more, up to what is the end now, and again while acknowledged records are missing that may still be on their way.
func (r *reader) Finish(ctx context.Context) error {
	late := time.Now().Add(lateMax)
	for pass := -1; ; pass-- {
		until, err := r.s.ends(ctx)
		if err == nil {
			err = r.pass(ctx, pass, finalPass, until)
		}
		if err == nil && reached(until) && (r.s.c.History.Unread() == 0 || time.Now().After(late)) {
			return nil
		}
		r.s.c.Logger.Debug("final reading", "reader", r.name, "pass", pass, "error", err)
		if err := errors.Join(sleep(ctx, watchEvery), ctx.Err()); err != nil {
			return fmt.Errorf("read to the end: %w", err)
		}
	}
}

// ends are the ends of all logs that are not empty.
func (s *Set) ends(ctx context.Context) (map[string]map[int32]int64, error) {
	client, err := s.c.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	until := map[string]map[int32]int64{}
	for _, t := range s.logs() {
		starts, err := adm.ListStartOffsets(ctx, t.Name())
		if err = errors.Join(err, starts.Error()); err != nil {
			return nil, fmt.Errorf("list start offsets: %w", err)
		}
		ends, err := adm.ListEndOffsets(ctx, t.Name())
		if err = errors.Join(err, ends.Error()); err != nil {
			return nil, fmt.Errorf("list end offsets: %w", err)
		}
		until[t.Name()] = map[int32]int64{}
		ends.Each(func(o kadm.ListedOffset) {
			if start, _ := starts.Lookup(t.Name(), o.Partition); o.Offset > start.Offset {
				until[t.Name()][o.Partition] = o.Offset
			}
		})
	}
	return until, nil
}

// record is what the history wants to know of a record.
func (s *Set) record(r *kgo.Record) history.Record {
	out := history.Record{Offset: r.Offset}
	out.Writer, out.Number, _ = parse(r.Value)
	if r.Topic == s.topic.Name() {
		out.Sum = history.Sum(r.Key, r.Value)
	} else {
		out.Sum = history.Sum(r.Value) // the key is the gateway's
	}
	return out
}
