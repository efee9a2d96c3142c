package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sluice/core/record"
)

// batchBytesMax bounds a batch that is read into memory: no door of the house takes larger ones.
const batchBytesMax = 256 << 20

type logDump struct {
	records bool
	offset  int64
	count   int64
}

func logDumpCommand() *cobra.Command {
	var o logDump
	c := &cobra.Command{
		Use: "dump PATH...", Short: "Print and check the batches of segment files: of a core's partition or a gateway's buffer", Args: args(cobra.MinimumNArgs(1)),
		Long: "Print and check the batches of segment files: of a core's partition or a gateway's buffer.\n\nA path is a segment (*.log) or a directory of them. Nothing is changed, " +
			"and the log may be in use. Every checksum is compared; what does not fit is reported with its place, and the exit code is 1.",
		Example: "  sluice log dump data/readings-0\n  sluice log dump --records -o json edge/buffer",
		RunE:    o.run,
	}
	c.Flags().BoolVarP(&o.records, "records", "r", false, "also the records: offset, time, key, value, headers")
	c.Flags().Int64Var(&o.offset, "from", 0, "only batches that reach this offset")
	c.Flags().Int64VarP(&o.count, "count", "n", 0, "stop after so many batches")
	return c
}

// dumpedBatch is one line of `log dump -o json`.
type dumpedBatch struct {
	File          string         `json:"file"`
	Position      int64          `json:"position"`
	Bytes         int            `json:"bytes"`
	BaseOffset    int64          `json:"baseOffset"`
	LastOffset    int64          `json:"lastOffset"`
	Count         int32          `json:"count"`
	LeaderEpoch   int32          `json:"leaderEpoch"`
	Codec         string         `json:"codec"`
	MaxTimestamp  int64          `json:"maxTimestamp"`
	LogAppendTime bool           `json:"logAppendTime,omitempty"`
	ProducerID    int64          `json:"producerId"`
	ProducerEpoch int16          `json:"producerEpoch"`
	BaseSequence  int32          `json:"baseSequence"`
	Transactional bool           `json:"transactional,omitempty"`
	Control       bool           `json:"control,omitempty"`
	CRC           uint32         `json:"crc"`
	Error         string         `json:"error,omitempty"`
	Records       []dumpedRecord `json:"records,omitempty"`
}

type dumpedRecord struct {
	Offset    int64        `json:"offset"`
	Timestamp int64        `json:"timestamp"`
	Key       *string      `json:"key"`
	KeyB64    []byte       `json:"keyBase64,omitempty"`
	Value     *string      `json:"value"`
	ValueB64  []byte       `json:"valueBase64,omitempty"`
	Headers   []jsonHeader `json:"headers,omitempty"`
}

func (o *logDump) run(c *cobra.Command, paths []string) error {
	var files []string
	for _, path := range paths {
		found, err := segmentsIn(path)
		if err != nil {
			return err
		}
		files = append(files, found...)
	}
	out := bufio.NewWriter(c.OutOrStdout())
	var errs []error
	for _, name := range files {
		if err := o.file(c, out, name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, out.Flush())...)
}

func segmentsIn(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	found, err := filepath.Glob(filepath.Join(path, "*.log"))
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, hint(fmt.Errorf("%s holds no segment (*.log)", path), "name a partition's directory, DATA/TOPIC-PARTITION, or a gateway's DATA/buffer")
	}
	slices.Sort(found)
	return found, nil
}

func (o *logDump) file(c *cobra.Command, out *bufio.Writer, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 1<<20)
	var position, n int64
	for {
		batch, err := readBatch(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: position %d: %w", name, position, err)
		}
		d, err := o.dump(name, position, batch)
		if position += int64(len(batch)); batch.LastOffset() >= o.offset || err != nil {
			o.print(c, out, d)
			n++
		}
		if err != nil {
			return fmt.Errorf("%s: position %d: %w", name, d.Position, err)
		}
		if n == o.count && o.count > 0 {
			return nil
		}
	}
}

// readBatch reads one batch; io.EOF at the end of the file. A file in use may end in the middle of one.
func readBatch(in *bufio.Reader) (record.Batch, error) {
	head, err := in.Peek(record.HeaderBytes)
	if err != nil {
		if len(head) == 0 {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%d bytes behind the last batch: a write that did not finish, or is under way", len(head))
	}
	size, err := record.Size(head)
	switch {
	case err != nil:
		return nil, err
	case size > batchBytesMax:
		return nil, fmt.Errorf("batch of %d bytes: %w", size, record.ErrCorrupt)
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(in, buf); err != nil {
		return nil, fmt.Errorf("batch of %d bytes is cut: %w", size, io.ErrUnexpectedEOF)
	}
	return record.Batch(buf), nil
}

func (o *logDump) dump(name string, position int64, b record.Batch) (dumpedBatch, error) {
	d := dumpedBatch{
		File: name, Position: position, Bytes: len(b), BaseOffset: b.BaseOffset(), LastOffset: b.LastOffset(), Count: b.Count(), LeaderEpoch: b.LeaderEpoch(),
		Codec: b.Codec().String(), MaxTimestamp: b.MaxTimestamp(), LogAppendTime: b.TimestampType() == 1, ProducerID: b.ProducerID(), ProducerEpoch: b.ProducerEpoch(),
		BaseSequence: b.BaseSequence(), Transactional: b.IsTransactional(), Control: b.IsControl(), CRC: b.CRC(),
	}
	err := b.Validate()
	if err == nil && o.records {
		err = b.Each(func(r record.Record) error {
			d.Records = append(d.Records, dumpRecord(b, r))
			return nil
		})
	}
	if err != nil {
		d.Error = err.Error()
	}
	return d, err
}

func dumpRecord(b record.Batch, r record.Record) dumpedRecord {
	out := dumpedRecord{Offset: b.BaseOffset() + int64(r.OffsetDelta), Timestamp: b.FirstTimestamp() + r.TimestampDelta}
	out.Key, out.KeyB64 = textOrBytes(slices.Clone(r.Key))
	out.Value, out.ValueB64 = textOrBytes(slices.Clone(r.Value))
	for _, h := range r.Headers {
		j := jsonHeader{Name: strings.Clone(h.Key)}
		j.Value, j.ValueB64 = textOrBytes(slices.Clone(h.Value))
		out.Headers = append(out.Headers, j)
	}
	return out
}

func (o *logDump) print(c *cobra.Command, out *bufio.Writer, d dumpedBatch) {
	if wantsJSON(c) {
		line, err := json.Marshal(d)
		if err != nil {
			panic("BUG: a batch is no JSON: " + err.Error())
		}
		out.Write(append(line, '\n'))
		return
	}
	fmt.Fprintf(out, "%s position %d bytes %d offsets %d-%d count %d epoch %d codec %s maxTimestamp %d producer %d/%d sequence %d crc %08x",
		filepath.Base(d.File), d.Position, d.Bytes, d.BaseOffset, d.LastOffset, d.Count, d.LeaderEpoch, d.Codec, d.MaxTimestamp, d.ProducerID, d.ProducerEpoch, d.BaseSequence, d.CRC)
	for _, flag := range []struct {
		on   bool
		text string
	}{{d.LogAppendTime, " logAppendTime"}, {d.Transactional, " transactional"}, {d.Control, " control"}, {d.Error != "", " ERROR " + d.Error}} {
		if flag.on {
			out.WriteString(flag.text)
		}
	}
	out.WriteByte('\n')
	for _, r := range d.Records {
		fmt.Fprintf(out, "  %d %d key %s value %s%s\n", r.Offset, r.Timestamp, shown(r.Key, r.KeyB64), shown(r.Value, r.ValueB64), shownHeaders(r.Headers))
	}
}

func shown(text *string, raw []byte) string {
	switch {
	case text != nil:
		return fmt.Sprintf("%q", *text)
	case raw != nil:
		return fmt.Sprintf("0x%x", raw)
	}
	return "null"
}

func shownHeaders(list []jsonHeader) string {
	var text strings.Builder
	for _, h := range list {
		fmt.Fprintf(&text, " %s=%s", h.Name, shown(h.Value, h.ValueB64))
	}
	return text.String()
}
