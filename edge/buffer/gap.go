package buffer

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"sluice/core/record"
)

// gapDevicesMax bounds how many devices one dropped segment is told apart by; the rest share one gap record.
const gapDevicesMax = 4096

// Gap is the value of a gap record, in JSON under "gap": which messages of which device never reach the core, and why.
type Gap struct {
	Device      string `json:"device"` // header mqtt.client of the messages, else their key; "" for many
	Cause       string `json:"cause"`
	Count       int64  `json:"count"`
	FirstOffset int64  `json:"first_offset"` // in the gateway's buffer
	LastOffset  int64  `json:"last_offset"`
	FirstTimeMs int64  `json:"first_time_ms"`
	LastTimeMs  int64  `json:"last_time_ms"`
}

type gapKey struct{ topic, device string }

// dropOldest gives segments up until the budget is kept again, oldest first, never one of an open round.
func (b *Buffer) dropOldest(ctx context.Context) {
	for b.overBudget() && ctx.Err() == nil {
		if !b.dropFirst(ctx, "buffer full") {
			return
		}
	}
}

// dropAged gives up segments whose newest message is older than the budget of age.
func (b *Buffer) dropAged(ctx context.Context, now time.Time) {
	limit := now.Add(-b.o.BudgetAge).UnixMilli()
	for ctx.Err() == nil {
		segments := b.log.Segments()
		if len(segments) < 2 || segments[0].MaxTimestamp >= limit || !b.dropFirst(ctx, "too old") {
			return
		}
	}
}

// dropFirst removes the first segment after its gap records are on disk. A crash in between leaves both the records and the
// messages: the same gap may then be told twice, with the same offsets.
func (b *Buffer) dropFirst(ctx context.Context, cause string) bool {
	b.dropping.Lock()
	defer b.dropping.Unlock()
	segments := b.log.Segments()
	if len(segments) < 2 || segments[0].Next > b.held.Load() || segments[0].Next > b.floor() {
		return false
	}
	first := segments[0]
	gaps, err := b.gaps(max(first.Base, b.confirmed.Load()), first.Next, cause)
	if err == nil {
		err = b.tellGaps(ctx, gaps)
	}
	if err != nil {
		b.o.Logger.Error("cannot drop the oldest messages", "error", err)
		return false
	}
	b.Confirm(first.Next) // dropped is done with, too
	b.removeBelow(first.Next)
	var lost int64
	for _, g := range gaps {
		lost += g.Count
	}
	b.metrics.dropped.Add(int(lost))
	b.o.Logger.Warn("dropped the oldest messages", "cause", cause, "messages", lost, "devices", len(gaps))
	return true
}

// gaps counts the messages of [from, to) by core topic and device. A gap record among them is told again as part of the new one.
func (b *Buffer) gaps(from, to int64, cause string) (map[gapKey]*Gap, error) {
	gaps := map[gapKey]*Gap{}
	err := b.scan(from, to, func(offset, timestampMs int64, r record.Record) error {
		topic, ok := coreTopic(r)
		if !ok {
			return nil
		}
		one, err := gapOf(r, offset, timestampMs)
		if err != nil {
			return fmt.Errorf("gap record at offset %d: %w", offset, err)
		}
		k := gapKey{topic, one.Device}
		if gaps[k] == nil && len(gaps) >= gapDevicesMax {
			k.device, one.Device = "", ""
		}
		if gaps[k] == nil {
			one.Cause = cause
			gaps[k] = &one
			return nil
		}
		gaps[k].add(one)
		return nil
	})
	return gaps, err
}

// gapOf is what is missing when r is: one message, or those that it tells of.
func gapOf(r record.Record, offset, timestampMs int64) (Gap, error) {
	if len(r.Headers) < 2 || r.Headers[1].Key != HeaderGap {
		return Gap{Device: device(r), Count: 1, FirstOffset: offset, LastOffset: offset, FirstTimeMs: timestampMs, LastTimeMs: timestampMs}, nil
	}
	var v struct{ Gap Gap }
	err := json.Unmarshal(r.Value, &v)
	return v.Gap, err
}

func (g *Gap) add(o Gap) {
	g.Count += o.Count
	g.FirstOffset, g.LastOffset = min(g.FirstOffset, o.FirstOffset), max(g.LastOffset, o.LastOffset)
	g.FirstTimeMs, g.LastTimeMs = min(g.FirstTimeMs, o.FirstTimeMs), max(g.LastTimeMs, o.LastTimeMs)
}

// coreTopic is the topic that a record goes to; false for the gateway's own records.
func coreTopic(r record.Record) (string, bool) {
	if len(r.Headers) == 0 || r.Headers[0].Key != HeaderTo {
		return "", false
	}
	return string(r.Headers[0].Value), true
}

func device(r record.Record) string {
	for _, h := range r.Headers {
		if h.Key == "mqtt.client" {
			return string(h.Value)
		}
	}
	return string(r.Key)
}

func (b *Buffer) tellGaps(ctx context.Context, gaps map[gapKey]*Gap) error {
	var messages []Message
	for k, g := range gaps {
		value, err := json.Marshal(map[string]*Gap{"gap": g})
		if err != nil {
			return fmt.Errorf("encode gap: %w", err)
		}
		messages = append(messages, Message{
			Topic: []byte(k.topic), Key: []byte(k.device), Value: value, TimestampMs: time.Now().UnixMilli(),
			Headers: []record.Header{{Key: HeaderGap, Value: []byte(g.Cause)}},
		})
	}
	if len(messages) == 0 {
		return nil
	}
	// What tells of a loss is written even when the budget is used up.
	t := &Ticket{done: make(chan struct{})}
	e := Entry{Messages: messages, Owner: NewOwner(func(_ []Tag, err error) { t.err = err; close(t.done) })}
	if err := b.put(&e); err != nil {
		return err
	}
	return t.Wait(ctx)
}
