package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lineBytesMax is the longest line that produce reads: the largest batch a topic can take is smaller.
const lineBytesMax = 100 << 20

type produce struct {
	connection
	partition int32
	key       string
	separator string
	headers   []string
	codec     string
	acks      string
	json      bool
	null      bool
	whole     bool
}

func produceCommand() *cobra.Command {
	var o produce
	c := &cobra.Command{
		Use: "produce TOPIC [FILE...]", Short: "Send lines of standard input, or files, as records", Args: args(cobra.MinimumNArgs(1)),
		Example: "  echo 21.5 | sluice produce readings -k sensor-7\n" +
			"  printf 'a:1\\nb:2\\n' | sluice produce readings -K :\n" +
			`  echo '{"key":"a","value":"1","headers":{"unit":"C"}}' | sluice produce readings --json`,
		RunE: o.run,
	}
	o.flags(c)
	f := c.Flags()
	f.Int32VarP(&o.partition, "partition", "p", -1, "partition; -1 lets the key decide")
	f.StringVarP(&o.key, "key", "k", "", "key of all records")
	f.StringVarP(&o.separator, "key-separator", "K", "", "what stands between key and value in a line")
	f.StringArrayVarP(&o.headers, "header", "H", nil, "a header of all records, name=value; can be given many times")
	f.StringVarP(&o.codec, "compression", "z", "none", "none, gzip, snappy, lz4 or zstd")
	f.StringVar(&o.acks, "acks", "all", "what to wait for: all, 1 (the same here) or 0 (nothing)")
	f.BoolVar(&o.json, "json", false, `lines are objects like {"key":"k","value":"v","headers":{"h":"x"},"partition":0,"timestamp":"2026-01-31T12:00:00Z"}`)
	f.BoolVarP(&o.null, "null", "Z", false, "an empty value is null (a tombstone)")
	f.BoolVar(&o.whole, "whole", false, "each file is one record")
	return c
}

// produced is what `produce -o json` prints.
type produced struct {
	Topic   string `json:"topic"`
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`
}

func (o *produce) run(c *cobra.Command, list []string) error {
	options, err := o.options(c)
	if err != nil {
		return err
	}
	headers, err := pairs(c, "header", o.headers)
	if err != nil {
		return err
	}
	client, err := o.client(c, options...)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	err = o.reach(ctx, client)
	cancel()
	if err != nil {
		return err
	}
	sent := produced{Topic: list[0]}
	if err := o.send(c, client, &sent, headers, list[1:]); err != nil {
		return fmt.Errorf("produce to %s: %w", list[0], err)
	}
	if wantsJSON(c) {
		return printJSON(c, sent)
	}
	return nil
}

func (o *produce) options(c *cobra.Command) ([]kgo.Opt, error) {
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	codec, ok := codecs[o.codec]
	if !ok {
		return nil, usage(c, fmt.Errorf("--compression %q: must be none, gzip, snappy, lz4 or zstd", o.codec))
	}
	options := []kgo.Opt{kgo.ProducerBatchCompression(codec), kgo.AllowAutoTopicCreation(), kgo.ProducerBatchMaxBytes(lineBytesMax), kgo.BrokerMaxWriteBytes(lineBytesMax + 1<<20), kgo.UnknownTopicRetries(4)}
	switch o.acks {
	case "all", "-1":
	case "1":
		options = append(options, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	case "0":
		options = append(options, kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	default:
		return nil, usage(c, fmt.Errorf("--acks %q: must be all, 1 or 0", o.acks))
	}
	if o.partition >= 0 {
		options = append(options, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	} else {
		options = append(options, kgo.RecordPartitioner(orManual{kgo.StickyKeyPartitioner(nil)}))
	}
	if o.whole && o.json {
		return nil, usage(c, errors.New("--whole and --json exclude each other"))
	}
	return options, nil
}

// send reads all input and waits until everything is acknowledged. It stops at the first failure.
func (o *produce) send(c *cobra.Command, client *kgo.Client, sent *produced, headers map[string]string, files []string) error {
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	acks := &acknowledged{timeout: o.timeout, stalled: func() { cancel(fmt.Errorf("no acknowledgement for %v: %w", o.timeout, context.DeadlineExceeded)) }}
	each := func(r *kgo.Record) error {
		r.Topic = sent.Topic
		for _, name := range sortedKeys(headers) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(headers[name])})
		}
		acks.sending()
		client.Produce(ctx, r, func(r *kgo.Record, err error) {
			if err != nil {
				cancel(err)
			}
			acks.done(r, err)
		})
		return context.Cause(ctx)
	}
	err := o.read(c, files, each)
	if flushed := client.Flush(ctx); err == nil {
		err = flushed
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	sent.Records, sent.Bytes = acks.total()
	return err
}

// acknowledged counts what the cluster has confirmed, and calls stalled when records wait and none was confirmed for the timeout. (The
// client's own timeout counts from a record's timestamp, which may lie in the past.)
type acknowledged struct {
	timeout time.Duration
	stalled func()

	mu struct {
		sync.Mutex
		timer          *time.Timer
		waiting        int64
		records, bytes int64
	}
}

func (a *acknowledged) sending() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.waiting++; a.mu.waiting == 1 {
		a.mu.timer = time.AfterFunc(a.timeout, a.stalled)
	}
}

func (a *acknowledged) done(r *kgo.Record, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.mu.records++
		a.mu.bytes += int64(len(r.Key) + len(r.Value))
	}
	a.mu.timer.Stop()
	if a.mu.waiting--; a.mu.waiting > 0 {
		a.mu.timer.Reset(a.timeout)
	}
}

func (a *acknowledged) total() (records, size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.records, a.mu.bytes
}

func (o *produce) read(c *cobra.Command, files []string, each func(*kgo.Record) error) error {
	if len(files) == 0 {
		return o.readOne(c.InOrStdin(), each)
	}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		err = o.readOne(file, each)
		file.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *produce) readOne(in io.Reader, each func(*kgo.Record) error) error {
	if o.whole {
		all, err := io.ReadAll(io.LimitReader(in, lineBytesMax))
		if err != nil {
			return err
		}
		return each(o.record(all))
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), lineBytesMax)
	for n := 1; lines.Scan(); n++ {
		r := o.record(bytes.Clone(lines.Bytes()))
		if o.json {
			var err error
			if r, err = jsonRecord(lines.Bytes()); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			if r.Partition < 0 {
				r.Partition = o.partition
			}
		}
		if err := each(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

// record makes a record of one line.
func (o *produce) record(line []byte) *kgo.Record {
	r := &kgo.Record{Value: line, Partition: o.partition}
	if o.key != "" {
		r.Key = []byte(o.key)
	}
	if o.separator != "" {
		if key, value, ok := bytes.Cut(line, []byte(o.separator)); ok {
			r.Key, r.Value = key, value
		}
	}
	if o.null && len(r.Value) == 0 {
		r.Value = nil
	}
	return r
}

// jsonIn is one line of `produce --json`, and what `consume -o json` prints. Values that are not
// UTF-8 are base64 in the second field.
type jsonIn struct {
	Key       *string           `json:"key"`
	KeyB64    []byte            `json:"keyBase64"`
	Value     *json.RawMessage  `json:"value"`
	ValueB64  []byte            `json:"valueBase64"`
	Headers   map[string]string `json:"headers"`
	Partition *int32            `json:"partition"`
	Timestamp *time.Time        `json:"timestamp"`
}

func jsonRecord(line []byte) (*kgo.Record, error) {
	var in jsonIn
	if err := json.Unmarshal(line, &in); err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	r := &kgo.Record{Key: in.KeyB64, Value: in.ValueB64, Partition: -1}
	if in.Key != nil {
		r.Key = []byte(*in.Key)
	}
	if in.Value != nil {
		r.Value = jsonValue(*in.Value)
	}
	for _, name := range sortedKeys(in.Headers) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(in.Headers[name])})
	}
	if in.Partition != nil {
		r.Partition = *in.Partition
	}
	if in.Timestamp != nil {
		r.Timestamp = *in.Timestamp
	}
	return r, nil
}

// jsonValue takes a string for its text, and anything else as the JSON that it is.
func jsonValue(raw json.RawMessage) []byte {
	var text string
	if err := json.Unmarshal(raw, &text); err == nil && strings.HasPrefix(strings.TrimSpace(string(raw)), `"`) {
		return []byte(text)
	}
	return raw
}

// orManual takes the record's own partition when it names one.
type orManual struct{ kgo.Partitioner }

func (p orManual) ForTopic(topic string) kgo.TopicPartitioner {
	return orManualTopic{p.Partitioner.ForTopic(topic)}
}

type orManualTopic struct{ kgo.TopicPartitioner }

func (p orManualTopic) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition >= 0 || p.TopicPartitioner.RequiresConsistency(r)
}

func (p orManualTopic) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		return int(r.Partition)
	}
	return p.TopicPartitioner.Partition(r, n)
}
