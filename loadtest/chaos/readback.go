package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

// readMax bounds the reading of a whole topic.
const readMax = 5 * time.Minute

// readBack reads a topic from its beginning to its end as it is now.
func readBack(ctx context.Context, brokers []string, topic string) ([]history.Read, error) {
	ctx, cancel := context.WithTimeout(ctx, readMax)
	defer cancel()
	c, err := kgo.NewClient(append(adminOptions(brokers), kgo.FetchMaxWait(250*time.Millisecond))...)
	if err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	defer c.Close()
	adm := kadm.NewClient(c)
	var starts, ends kadm.ListedOffsets
	err = await(ctx, readMax, "list offsets of "+topic, func() error {
		var startsErr, endsErr error
		starts, startsErr = adm.ListStartOffsets(ctx, topic)
		ends, endsErr = adm.ListEndOffsets(ctx, topic)
		return errors.Join(startsErr, endsErr, starts.Error(), ends.Error())
	})
	if err != nil {
		return nil, err
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if s, ok := starts.Lookup(topic, o.Partition); ok && o.Offset > s.Offset {
			left[o.Partition] = o.Offset
		}
	})
	c.AddConsumePartitions(starts.KOffsets())
	var reads []history.Read
	for len(left) > 0 {
		fetches := c.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("read %s: partitions %v were not read to their end: %w", topic, left, ctx.Err())
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
			reads = append(reads, readOf(r))
		})
	}
	return reads, nil
}

// readOf takes a value apart; one that is not ours has a writer that nobody is.
func readOf(r *kgo.Record) history.Read {
	out := history.Read{Place: history.Place{Partition: r.Partition, Offset: r.Offset}, Writer: "?"}
	fields := bytes.SplitN(r.Value, []byte(" "), 3)
	if len(fields) < 3 {
		return out
	}
	n, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err == nil && bytes.Equal(r.Value, numbered(string(fields[0]), n, len(r.Value))) {
		out.Writer, out.Number = string(fields[0]), n
	}
	return out
}
