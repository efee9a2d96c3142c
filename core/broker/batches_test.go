package broker

import (
	"bytes"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/record"
)

// batch builds a batch of records with the given keys; "" is no key.
func batch(codec record.Codec, keys ...string) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{Codec: codec, ProducerID: record.NoProducer})
	for i, k := range keys {
		var key []byte
		if k != "" {
			key = []byte(k)
		}
		b.Add(1_000_000+int64(i), key, bytes.Repeat([]byte("value "), 50), nil)
	}
	return b.Build(nil)
}

func rules(change func(*meta.TopicSettings)) *batchRules {
	s := meta.NewTopicSettings(nil, nil)
	if change != nil {
		change(&s)
	}
	return &batchRules{settings: &s, version: 9, now: 2_000_000}
}

func TestBatchesAreTakenAsTheyCame(t *testing.T) {
	for codec := range record.Zstd + 1 {
		in := append(batch(codec, "a", "b"), batch(codec, "c")...)
		out, why := rules(nil).check(in)
		if why.code != codeNone || &out[0] != &in[0] || len(out) != len(in) {
			t.Errorf("%v: %+v, copied or cut", codec, why)
		}
	}
}

func TestBatchesAreRefused(t *testing.T) {
	good := batch(record.None, "a", "")
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	control := record.NewBuilder(record.BuilderOptions{ProducerID: 5, Control: true})
	control.Add(1, []byte{0, 0, 0, 0}, nil, nil)
	transactional := record.NewBuilder(record.BuilderOptions{ProducerID: 5, Transactional: true})
	transactional.Add(1, []byte("k"), nil, nil)
	unsequenced := record.NewBuilder(record.BuilderOptions{ProducerID: 5, BaseSequence: -1})
	unsequenced.Add(1, []byte("k"), nil, nil)
	magic1 := bytes.Clone(good)
	magic1[16] = 1
	small := func(s *meta.TopicSettings) { s.MaxMessageBytes = int64(len(good)) - 1 }
	for name, c := range map[string]struct {
		in     []byte
		change func(*meta.TopicSettings)
		code   int16
	}{
		"empty":         {nil, nil, codeInvalidRecord},
		"flipped":       {flipped, nil, codeCorruptMessage},
		"cut":           {good[:len(good)-1], nil, codeCorruptMessage},
		"short":         {good[:7], nil, codeCorruptMessage},
		"trailing":      {append(bytes.Clone(good), 1, 2, 3), nil, codeCorruptMessage},
		"old format":    {magic1, nil, codeInvalidRecord},
		"large":         {good, small, codeMessageTooLarge},
		"control":       {control.Build(nil), nil, codeInvalidRecord},
		"transactional": {transactional.Build(nil), nil, codeInvalidTxnState},
		"no sequence":   {unsequenced.Build(nil), nil, codeInvalidRecord},
		"keyless":       {good, func(s *meta.TopicSettings) { s.Compact = true }, codeInvalidRecord},
		"too early":     {good, func(s *meta.TopicSettings) { s.TimestampBeforeMaxMs = 1000 }, codeInvalidTimestamp},
		"too late":      {futureBatch(), nil, codeInvalidTimestamp},
	} {
		if _, why := rules(c.change).check(c.in); why.code != c.code || why.message == "" {
			t.Errorf("%s: code %d %q, want %d", name, why.code, why.message, c.code)
		}
	}
}

func futureBatch() record.Batch {
	b := record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer})
	b.Add(2_000_000+2*time.Hour.Milliseconds(), []byte("k"), nil, nil)
	return b.Build(nil)
}

func TestKeylessRecordsAreNamed(t *testing.T) {
	_, why := rules(func(s *meta.TopicSettings) { s.Compact = true }).check(batch(record.Zstd, "a", "", "c", ""))
	if len(why.records) != 2 || why.records[0].RelativeOffset != 1 || why.records[1].RelativeOffset != 3 {
		t.Errorf("named %+v", why.records)
	}
}

func TestBatchesAreRecompressed(t *testing.T) {
	for name, want := range codecs {
		for from := range record.Zstd + 1 {
			in := append(batch(from, "a", "b"), batch(want, "c")...)
			r := rules(func(s *meta.TopicSettings) { s.CompressionType = name })
			out, why := r.check(in)
			if why.code != codeNone {
				t.Fatalf("%v to %s: %+v", from, name, why)
			}
			if wantCount := 1; from == want && r.recompressed != 0 || from != want && r.recompressed != wantCount {
				t.Errorf("%v to %s: %d batches were recompressed", from, name, r.recompressed)
			}
			if got := keysOf(t, out, want); got != "a b c" {
				t.Errorf("%v to %s: keys %s", from, name, got)
			}
		}
	}
}

// keysOf reads the keys of all batches and checks their codec.
func keysOf(t *testing.T, batches []byte, codec record.Codec) string {
	t.Helper()
	var keys [][]byte
	for len(batches) > 0 {
		b, rest, err := record.Next(batches)
		if err != nil {
			t.Fatal(err)
		}
		if b.Codec() != codec {
			t.Errorf("codec %v, want %v", b.Codec(), codec)
		}
		if err := b.Each(func(r record.Record) error { keys = append(keys, bytes.Clone(r.Key)); return nil }); err != nil {
			t.Fatal(err)
		}
		batches = rest
	}
	return string(bytes.Join(keys, []byte(" ")))
}

func TestTimes(t *testing.T) {
	b := batch(record.None, "a")
	out, why := rules(func(s *meta.TopicSettings) { s.LogAppendTime = true }).check(b)
	if got := record.Batch(out); why.code != codeNone || got.TimestampType() != 1 || got.MaxTimestamp() != 2_000_000 || got.Validate() != nil {
		t.Errorf("log append time: %+v type %d max %d %v", why, got.TimestampType(), got.MaxTimestamp(), got.Validate())
	}
	// The same batch to a topic with create times: the producer's bit goes.
	out, why = rules(nil).check(out)
	if got := record.Batch(out); why.code != codeNone || got.TimestampType() != 0 || got.Validate() != nil {
		t.Errorf("create time: %+v type %d %v", why, got.TimestampType(), got.Validate())
	}
}

func TestMessageSetsAreConverted(t *testing.T) {
	r := rules(nil)
	r.version = 2
	if _, why := r.check([]byte("no message set at all, but long enough for one")); why.code == codeNone {
		t.Error("garbage was taken")
	}
}
