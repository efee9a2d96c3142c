package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// offsetsPatience is how long a tool waits for a leader before it says that there is none, an election being over in two seconds, and
// offsetsPause lies between two questions.
const (
	offsetsPatience = 10 * time.Second
	offsetsPause    = 200 * time.Millisecond
)

// position is a place in a partition as people name it.
type position struct {
	kind   positionKind
	offset int64 // atOffset: the offset; fromEnd: how many records before the end
	time   time.Time
}

type positionKind int

const (
	atStart positionKind = iota
	atEnd
	atOffset
	fromEnd
	atTime
)

// parsePosition reads earliest, latest, an offset, a time, -DURATION (as long ago), or -N (records before the end).
func parsePosition(text string) (position, error) {
	switch text {
	case "earliest", "beginning", "start":
		return position{kind: atStart}, nil
	case "latest", "end":
		return position{kind: atEnd}, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n < 0 {
			return position{kind: fromEnd, offset: -n}, nil
		}
		return position{kind: atOffset, offset: n}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d < 0 {
		return position{kind: atTime, time: time.Now().Add(d)}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return position{kind: atTime, time: t}, nil
	}
	return position{}, fmt.Errorf("%q: must be earliest, latest, an offset, -N records before the end, a time (2026-01-31T12:00:00Z) or -DURATION (-15m)", text)
}

// kgo is where a consumer begins.
func (p position) kgo() kgo.Offset {
	switch p.kind {
	case atEnd:
		return kgo.NewOffset().AtEnd()
	case atOffset:
		return kgo.NewOffset().At(p.offset)
	case fromEnd:
		return kgo.NewOffset().AtEnd().Relative(-p.offset)
	case atTime:
		return kgo.NewOffset().AfterMilli(p.time.UnixMilli())
	}
	return kgo.NewOffset().AtStart()
}

// list finds the offsets of the position in every partition of a topic, kept between start and end.
func (p position) list(ctx context.Context, admin *kadm.Client, topic string) ([]kadm.ListedOffset, error) {
	starts, err := listed(ctx, func() (kadm.ListedOffsets, error) { return admin.ListStartOffsets(ctx, topic) })
	if err != nil {
		return nil, err
	}
	ends, err := listed(ctx, func() (kadm.ListedOffsets, error) { return admin.ListEndOffsets(ctx, topic) })
	if err != nil {
		return nil, err
	}
	found := ends
	if p.kind == atTime {
		found, err = listed(ctx, func() (kadm.ListedOffsets, error) { return admin.ListOffsetsAfterMilli(ctx, p.time.UnixMilli(), topic) })
		if err != nil {
			return nil, err
		}
	}
	var out []kadm.ListedOffset
	for partition, start := range starts[topic] {
		at, end := found[topic][partition], ends[topic][partition].Offset
		switch p.kind {
		case atStart:
			at.Offset = start.Offset
		case atOffset:
			at.Offset = p.offset
		case fromEnd:
			at.Offset = end - p.offset
		}
		at.Topic, at.Partition, at.Offset = topic, partition, min(max(at.Offset, start.Offset), end)
		out = append(out, at)
	}
	sortOffsets(out)
	return out, nil
}

// listed asks for offsets, again while the leader of a partition is being elected, for at most offsetsPatience.
func listed(ctx context.Context, ask func() (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
	for deadline := time.Now().Add(offsetsPatience); ; {
		found, err := ask()
		if err == nil {
			err = found.Error()
		}
		if !errors.Is(err, kerr.LeaderNotAvailable) && !errors.Is(err, kerr.NotLeaderForPartition) || time.Now().After(deadline) {
			return found, err
		}
		select {
		case <-time.After(offsetsPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func sortOffsets(list []kadm.ListedOffset) {
	slices.SortFunc(list, func(a, b kadm.ListedOffset) int { return int(a.Partition) - int(b.Partition) })
}
