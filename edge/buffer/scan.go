package buffer

import (
	"fmt"

	"sluice/core/record"
)

// scanBytes is how much of the log is in memory while it is scanned.
const scanBytes = 1 << 20

// Replay calls fn for the gateway's own records from offset on, in order; key and value are fn's only while it runs. Call it
// between Open and Run.
func (b *Buffer) Replay(offset int64, fn func(offset int64, key string, value []byte) error) error {
	return b.scan(max(offset, b.log.Start()), b.log.End(), func(at, _ int64, r record.Record) error {
		if _, ok := coreTopic(r); ok {
			return nil
		}
		return fn(at, string(r.Key), r.Value)
	})
}

// scan calls fn for every record of [from, to).
func (b *Buffer) scan(from, to int64, fn func(offset, timestampMs int64, r record.Record) error) error {
	for from < to {
		next, err := b.scanChunk(from, to, fn)
		if err != nil {
			return fmt.Errorf("scan the buffer at offset %d: %w", from, err)
		}
		if next <= from {
			panic("BUG: a read of the buffer made no progress")
		}
		from = next
	}
	return nil
}

func (b *Buffer) scanChunk(from, to int64, fn func(offset, timestampMs int64, r record.Record) error) (int64, error) {
	chunk, err := b.log.Read(from, scanBytes, b.log.End()) // whole batches: to may lie within one
	if err != nil {
		return 0, err
	}
	defer chunk.Release()
	buf, err := chunk.Bytes()
	if err != nil {
		return 0, err
	}
	for len(buf) > 0 {
		batch, rest, err := record.Next(buf)
		if err != nil {
			return 0, err
		}
		base, first := batch.BaseOffset(), batch.FirstTimestamp()
		err = batch.Each(func(r record.Record) error {
			offset := base + int64(r.OffsetDelta)
			if offset < from || offset >= to {
				return nil
			}
			return fn(offset, first+r.TimestampDelta, r)
		})
		if err != nil {
			return 0, err
		}
		buf = rest
	}
	return chunk.Next(), nil
}
