package commitlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"sluice/core/record"
	"sluice/core/vfs"
)

// BatchAt is a batch and where it lies in its file.
type BatchAt struct {
	Position int64
	Batch    record.Batch // valid until the next step
	Err      error        // wraps ErrCorrupt when the CRC is wrong
}

// Batches walks the batches of a segment file, whoever wrote it. A batch with
// a wrong CRC is yielded with Err set, and the walk goes on; where there is no
// batch at all, it ends with an error that wraps ErrCorrupt.
func Batches(fsys vfs.FS, path string) iter.Seq2[BatchAt, error] {
	return func(yield func(BatchAt, error) bool) {
		if err := walk(fsys, path, func(b BatchAt) bool { return yield(b, nil) }); err != nil {
			yield(BatchAt{}, err)
		}
	}
}

func walk(fsys vfs.FS, path string, yield func(BatchAt) bool) error {
	file, err := fsys.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return err
	}
	scan := scanner{file: file, limit: size}
	for {
		_, n, err := scan.header()
		if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
			return nil
		}
		if err != nil {
			return err
		}
		whole, err := scan.bytes(n)
		if err != nil {
			return scan.failed(err)
		}
		at := BatchAt{Position: scan.pos, Batch: whole}
		if err := at.Batch.CheckCRC(); err != nil {
			at.Err = scan.corrupt(err)
		}
		if !yield(at) {
			return nil
		}
		scan.skip(n)
	}
}

// DumpOptions say what Dump writes.
type DumpOptions struct {
	Records bool // also the records
	JSON    bool // one JSON object a line, for each batch
}

// DumpBatch is what Dump says of a batch. Timestamps are in milliseconds.
type DumpBatch struct {
	BaseOffset    int64        `json:"baseOffset"`
	LastOffset    int64        `json:"lastOffset"`
	Count         int32        `json:"count"`
	BaseSequence  int32        `json:"baseSequence"`
	LastSequence  int32        `json:"lastSequence"`
	ProducerID    int64        `json:"producerId"`
	ProducerEpoch int16        `json:"producerEpoch"`
	LeaderEpoch   int32        `json:"partitionLeaderEpoch"`
	Transactional bool         `json:"isTransactional"`
	Control       bool         `json:"isControl"`
	Position      int64        `json:"position"`
	TimestampType string       `json:"timestampType"`
	First         int64        `json:"firstTimestamp"`
	Max           int64        `json:"maxTimestamp"`
	Size          int          `json:"size"`
	Codec         string       `json:"compressCodec"`
	CRC           uint32       `json:"crc"`
	Valid         bool         `json:"isValid"`
	DeleteHorizon *int64       `json:"deleteHorizonMs,omitempty"` // when tombstones go, once compaction has said so
	Records       []DumpRecord `json:"records,omitempty"`
}

// DumpRecord is what Dump says of a record; nil key and value are null.
type DumpRecord struct {
	Offset    int64        `json:"offset"`
	Timestamp int64        `json:"timestamp"`
	Key       *string      `json:"key"`
	Value     *string      `json:"value"`
	Headers   []DumpHeader `json:"headers,omitempty"`
}

// DumpHeader is what Dump says of a header.
type DumpHeader struct {
	Key   string  `json:"key"`
	Value *string `json:"value"`
}

// ErrDamaged is returned by Dump when it has shown all batches and some were
// not valid.
var ErrDamaged = fmt.Errorf("%w: not all batches are valid", ErrCorrupt)

// Dump writes what is in a segment file, one line for each batch and record,
// in the words of Kafka's dump tool. Damage is shown as far as it can be
// walked over; then the error wraps ErrCorrupt.
func Dump(w io.Writer, fsys vfs.FS, path string, o DumpOptions) error {
	damaged := false
	for at, err := range Batches(fsys, path) {
		if err != nil {
			return err
		}
		damaged = damaged || at.Err != nil
		d, err := Describe(at, o.Records && at.Err == nil)
		if err != nil {
			damaged, d.Valid = true, false
		}
		if err := d.write(w, o.JSON); err != nil {
			return err
		}
	}
	if damaged {
		return ErrDamaged
	}
	return nil
}

// Describe returns what Dump says of a batch. With records, the error is that
// of reading them; what could be read is there.
func Describe(at BatchAt, records bool) (DumpBatch, error) {
	b := at.Batch
	d := DumpBatch{
		BaseOffset: b.BaseOffset(), LastOffset: b.LastOffset(), Count: b.Count(),
		BaseSequence: b.BaseSequence(), LastSequence: b.LastSequence(),
		ProducerID: b.ProducerID(), ProducerEpoch: b.ProducerEpoch(), LeaderEpoch: b.LeaderEpoch(),
		Transactional: b.IsTransactional(), Control: b.IsControl(), Position: at.Position,
		TimestampType: "CreateTime", First: b.FirstTimestamp(), Max: b.MaxTimestamp(),
		Size: len(b), Codec: b.Codec().String(), CRC: b.CRC(), Valid: at.Err == nil,
	}
	if b.TimestampType() == record.LogAppendTime {
		d.TimestampType = "LogAppendTime"
	}
	if ms, ok := b.DeleteHorizon(); ok {
		d.DeleteHorizon = &ms
	}
	if !records {
		return d, nil
	}
	err := b.Each(func(r record.Record) error {
		d.Records = append(d.Records, describeRecord(b, r))
		return nil
	})
	return d, err
}

func describeRecord(b record.Batch, r record.Record) DumpRecord {
	d := DumpRecord{
		Offset: b.BaseOffset() + int64(r.OffsetDelta), Timestamp: b.Timestamp(r),
		Key: text(r.Key), Value: text(r.Value),
	}
	for _, h := range r.Headers {
		d.Headers = append(d.Headers, DumpHeader{Key: h.Key, Value: text(h.Value)})
	}
	return d
}

func text(p []byte) *string {
	if p == nil {
		return nil
	}
	s := string(p)
	return &s
}

func (d DumpBatch) write(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(d)
	}
	_, err := fmt.Fprintf(w, "baseOffset: %d lastOffset: %d count: %d baseSequence: %d lastSequence: %d producerId: %d producerEpoch: %d "+
		"partitionLeaderEpoch: %d isTransactional: %t isControl: %t position: %d %s: %d size: %d magic: 2 compresscodec: %s crc: %d isvalid: %t",
		d.BaseOffset, d.LastOffset, d.Count, d.BaseSequence, d.LastSequence, d.ProducerID, d.ProducerEpoch,
		d.LeaderEpoch, d.Transactional, d.Control, d.Position, d.TimestampType, d.Max, d.Size, d.Codec, d.CRC, d.Valid)
	if d.DeleteHorizon != nil {
		_, horizonErr := fmt.Fprintf(w, " deleteHorizonMs: %d", *d.DeleteHorizon)
		err = errors.Join(err, horizonErr)
	}
	_, lineErr := fmt.Fprintln(w)
	err = errors.Join(err, lineErr)
	for _, r := range d.Records {
		err = errors.Join(err, r.write(w, d.TimestampType))
	}
	return err
}

func (r DumpRecord) write(w io.Writer, timestampType string) error {
	headers := make([]string, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = h.Key + "=" + orNull(h.Value)
	}
	_, err := fmt.Fprintf(w, "| offset: %d %s: %d key: %s value: %s headers: %q\n",
		r.Offset, timestampType, r.Timestamp, orNull(r.Key), orNull(r.Value), headers)
	return err
}

// orNull quotes what is not printable: records come from strangers, and a
// terminal obeys escape sequences.
func orNull(s *string) string {
	if s == nil {
		return "null"
	}
	return fmt.Sprintf("%q", *s)
}
