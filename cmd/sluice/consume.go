package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

type consume struct {
	connection
	partitions []int32
	from       string
	group      string
	count      int64
	end        bool
	format     string
	separator  string
	committed  bool
}

func consumeCommand() *cobra.Command {
	var o consume
	c := &cobra.Command{
		Use: "consume TOPIC...", Short: "Print the records of topics as they come", Args: args(cobra.MinimumNArgs(1)),
		Example: "  sluice consume readings --from earliest -e\n" +
			"  sluice consume readings -g pages -f '%T %k=%s\\n'\n" +
			"  sluice consume readings -p 0 --from -10 -o json",
		Long: "Print the records of topics as they come.\n\nThe format knows %t topic, %p partition, %o offset, %k key, %s value, %h headers, %T timestamp in ms,\n" +
			"%K and %S their lengths in bytes (-1 for null), \\n, \\t and %%. With -o json each record is a line.",
		RunE: o.run,
	}
	o.flags(c)
	f := c.Flags()
	f.Int32SliceVarP(&o.partitions, "partition", "p", nil, "only these partitions")
	f.StringVar(&o.from, "from", "", "earliest, latest, an offset, -N records before the end, a time (RFC 3339) or -DURATION (default latest; earliest with a group)")
	f.StringVarP(&o.group, "group", "g", "", "consume as a member of this group, and commit")
	f.Int64VarP(&o.count, "count", "n", 0, "stop after so many records")
	f.BoolVarP(&o.end, "exit", "e", false, "stop at the end the topics have now")
	f.StringVarP(&o.format, "format", "f", "", "how a record is printed (default %s and a line feed)")
	f.StringVarP(&o.separator, "key-separator", "K", "", "print the key and this before the value")
	f.BoolVar(&o.committed, "read-committed", false, "leave records of open and aborted transactions out")
	return c
}

func (o *consume) run(c *cobra.Command, topics []string) error {
	from, err := o.position()
	if err != nil {
		return usage(c, err)
	}
	if o.group != "" && len(o.partitions) > 0 {
		return usage(c, errors.New("--group and --partition exclude each other: a group shares the partitions out itself"))
	}
	format := o.format
	if format == "" {
		format = `%s\n`
		if o.separator != "" {
			format = `%k` + strings.ReplaceAll(o.separator, "%", "%%") + `%s\n`
		}
	}
	ends, starts, err := o.bounds(c, topics, from)
	if err != nil {
		return err
	}
	client, err := o.client(c, o.options(topics, from, starts)...)
	if err != nil {
		return err
	}
	defer client.Close()
	out := &recordPrinter{w: bufio.NewWriter(c.OutOrStdout()), format: format, json: wantsJSON(c)}
	err = o.poll(c.Context(), client, out, ends)
	if o.group != "" && err == nil {
		err = o.leave(c, client)
	}
	return errors.Join(err, out.w.Flush())
}

func (o *consume) position() (position, error) {
	switch {
	case o.from != "":
		p, err := parsePosition(o.from)
		if err != nil {
			err = fmt.Errorf("--from %w", err)
		}
		return p, err
	case o.group != "":
		return position{kind: atStart}, nil
	}
	return position{kind: atEnd}, nil
}

func (o *consume) options(topics []string, from position, starts map[string]map[int32]kgo.Offset) []kgo.Opt {
	isolation := kgo.ReadUncommitted()
	if o.committed {
		isolation = kgo.ReadCommitted()
	}
	// Control records carry nothing to print, but the last one of a partition is where --exit ends.
	options := []kgo.Opt{kgo.FetchIsolationLevel(isolation), kgo.FetchMaxWait(500 * time.Millisecond), kgo.KeepControlRecords()}
	if o.group != "" {
		return append(options, kgo.ConsumerGroup(o.group), kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(from.kgo()),
			kgo.AutoCommitMarks(), kgo.SessionTimeout(10*time.Second), kgo.HeartbeatInterval(3*time.Second))
	}
	if starts != nil {
		return append(options, kgo.ConsumePartitions(starts))
	}
	return append(options, kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(from.kgo()))
}

// bounds asks for the partitions that there are: where reading begins, and where it ends with --exit. A group's own
// offsets decide where it begins.
func (o *consume) bounds(c *cobra.Command, topics []string, from position) (ends map[string]map[int32]int64, starts map[string]map[int32]kgo.Offset, err error) {
	err = o.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
		if !o.end && len(o.partitions) == 0 {
			return nil
		}
		ends, starts = make(map[string]map[int32]int64), make(map[string]map[int32]kgo.Offset)
		for _, topic := range topics {
			if err := o.boundsOf(ctx, admin, topic, from, ends, starts); err != nil {
				return fmt.Errorf("consume %s: %w", topic, err)
			}
		}
		return nil
	})
	if !o.end {
		ends = nil
	}
	return ends, starts, err
}

func (o *consume) boundsOf(ctx context.Context, admin *kadm.Client, topic string, from position, ends map[string]map[int32]int64, starts map[string]map[int32]kgo.Offset) error {
	begin, err := o.beginOf(ctx, admin, topic, from)
	if err != nil {
		return err
	}
	until, err := position{kind: atEnd}.list(ctx, admin, topic)
	if err != nil {
		return err
	}
	ends[topic], starts[topic] = make(map[int32]int64), make(map[int32]kgo.Offset)
	for _, u := range until {
		if len(o.partitions) > 0 && !slices.Contains(o.partitions, u.Partition) {
			continue
		}
		starts[topic][u.Partition] = kgo.NewOffset().At(begin[u.Partition])
		if begin[u.Partition] < u.Offset {
			ends[topic][u.Partition] = u.Offset
		}
	}
	return nil
}

func (o *consume) beginOf(ctx context.Context, admin *kadm.Client, topic string, from position) (map[int32]int64, error) {
	list, err := from.list(ctx, admin, topic)
	if err != nil {
		return nil, err
	}
	begin := make(map[int32]int64, len(list))
	for _, l := range list {
		begin[l.Partition] = l.Offset
	}
	if o.group == "" {
		return begin, nil
	}
	committed, err := admin.FetchOffsetsForTopics(ctx, o.group, topic)
	if err != nil {
		return nil, err
	}
	for p, commit := range committed[topic] {
		if commit.Err == nil && commit.At >= 0 {
			begin[p] = commit.At
		}
	}
	return begin, nil
}

// poll prints until there is enough, the ends are reached, or the context is done.
func (o *consume) poll(ctx context.Context, client *kgo.Client, out *recordPrinter, ends map[string]map[int32]int64) error {
	var printed int64
	for ends == nil || left(ends) > 0 {
		fetches := client.PollRecords(ctx, 10_000)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return nil
		}
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("consume: %w", err)
		}
		for _, e := range fetches.Errors() {
			return fmt.Errorf("consume %s partition %d: %w", e.Topic, e.Partition, e.Err)
		}
		for r := range fetches.RecordsAll() {
			if ends != nil && past(ends, r) {
				continue
			}
			client.MarkCommitRecords(r)
			if r.Attrs.IsControl() {
				continue
			}
			out.print(r)
			if printed++; printed == o.count {
				return nil
			}
		}
		if err := out.w.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// left counts the partitions that are not read to their end.
func left(ends map[string]map[int32]int64) int {
	n := 0
	for _, partitions := range ends {
		n += len(partitions)
	}
	return n
}

// past tells whether a record lies beyond the end that its partition had, and takes partitions that are done off the list.
func past(ends map[string]map[int32]int64, r *kgo.Record) bool {
	end, open := ends[r.Topic][r.Partition]
	if !open || r.Offset >= end {
		delete(ends[r.Topic], r.Partition)
		return true
	}
	if r.Offset == end-1 {
		delete(ends[r.Topic], r.Partition)
	}
	return false
}

// leave commits what was printed and leaves the group at once, so that the next member need not wait.
func (o *consume) leave(c *cobra.Command, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), o.timeout)
	defer cancel()
	if err := client.CommitMarkedOffsets(ctx); err != nil {
		return fmt.Errorf("commit offsets: %w", err)
	}
	return client.LeaveGroupContext(ctx)
}

type recordPrinter struct {
	w      *bufio.Writer
	format string
	json   bool
}

func (p *recordPrinter) print(r *kgo.Record) {
	if p.json {
		p.printJSON(r)
		return
	}
	for i := 0; i < len(p.format); i++ {
		ch := p.format[i]
		if (ch != '%' && ch != '\\') || i+1 == len(p.format) {
			p.w.WriteByte(ch)
			continue
		}
		i++
		if ch == '\\' {
			p.escape(p.format[i])
		} else {
			p.field(p.format[i], r)
		}
	}
}

func (p *recordPrinter) escape(ch byte) {
	switch ch {
	case 'n':
		p.w.WriteByte('\n')
	case 't':
		p.w.WriteByte('\t')
	default:
		p.w.WriteByte(ch)
	}
}

func (p *recordPrinter) field(ch byte, r *kgo.Record) {
	switch ch {
	case 't':
		p.w.WriteString(r.Topic)
	case 'p':
		fmt.Fprint(p.w, r.Partition)
	case 'o':
		fmt.Fprint(p.w, r.Offset)
	case 'k':
		p.w.Write(r.Key)
	case 's':
		p.w.Write(r.Value)
	case 'T':
		fmt.Fprint(p.w, r.Timestamp.UnixMilli())
	case 'K':
		fmt.Fprint(p.w, length(r.Key))
	case 'S':
		fmt.Fprint(p.w, length(r.Value))
	case 'h':
		for i, h := range r.Headers {
			if i > 0 {
				p.w.WriteByte(',')
			}
			fmt.Fprintf(p.w, "%s=%s", h.Key, h.Value)
		}
	case '%':
		p.w.WriteByte('%')
	default:
		p.w.Write([]byte{'%', ch})
	}
}

func length(b []byte) int {
	if b == nil {
		return -1
	}
	return len(b)
}

// jsonOut is one line of `consume -o json`. A null key or value is null, one that is no text is base64 in the other field.
type jsonOut struct {
	Topic     string       `json:"topic"`
	Partition int32        `json:"partition"`
	Offset    int64        `json:"offset"`
	Timestamp time.Time    `json:"timestamp"`
	Key       *string      `json:"key"`
	KeyB64    []byte       `json:"keyBase64,omitempty"`
	Value     *string      `json:"value"`
	ValueB64  []byte       `json:"valueBase64,omitempty"`
	Headers   []jsonHeader `json:"headers,omitempty"`
}

type jsonHeader struct {
	Name     string  `json:"name"`
	Value    *string `json:"value"`
	ValueB64 []byte  `json:"valueBase64,omitempty"`
}

func (p *recordPrinter) printJSON(r *kgo.Record) {
	out := jsonOut{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UTC()}
	out.Key, out.KeyB64 = textOrBytes(r.Key)
	out.Value, out.ValueB64 = textOrBytes(r.Value)
	for _, h := range r.Headers {
		j := jsonHeader{Name: h.Key}
		j.Value, j.ValueB64 = textOrBytes(h.Value)
		out.Headers = append(out.Headers, j)
	}
	line, err := json.Marshal(out)
	if err != nil {
		panic("BUG: a record is no JSON: " + err.Error())
	}
	p.w.Write(append(line, '\n'))
}

func textOrBytes(b []byte) (*string, []byte) {
	if b == nil {
		return nil, nil
	}
	if !utf8.Valid(b) {
		return nil, b
	}
	text := string(b)
	return &text, nil
}
