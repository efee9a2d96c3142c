package chaos

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// responseMax bounds what a response may claim to be: those of the steady writer are small.
const responseMax = 16 << 20

// wire is a Kafka connection with one request under way. Whatever fails on it, it is closed, and the next call dials again.
type wire struct {
	address     string
	conn        net.Conn
	correlation int32
}

var formatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("steady"))

// call sends a request and reads the answer, all within the bound.
func (w *wire) call(ctx context.Context, bound time.Duration, req kmsg.Request, resp kmsg.Response) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	if w.conn == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", w.address)
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		w.conn = conn
	}
	conn := w.conn // the function below may still run when w.conn is gone
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := w.exchange(req, resp)
	if !stop() || err != nil {
		w.close()
	}
	return err
}

func (w *wire) exchange(req kmsg.Request, resp kmsg.Response) error {
	w.correlation++
	if _, err := w.conn.Write(formatter.AppendRequest(nil, req, w.correlation)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	head := make([]byte, 8)
	if _, err := io.ReadFull(w.conn, head); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	size, correlation := int64(binary.BigEndian.Uint32(head)), int32(binary.BigEndian.Uint32(head[4:]))
	if size < 4 || size > responseMax || correlation != w.correlation {
		return fmt.Errorf("receive: %d bytes that answer request %d, not %d", size, correlation, w.correlation)
	}
	body := make([]byte, size-4)
	if _, err := io.ReadFull(w.conn, body); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && len(body) > 0 {
		body = body[1:] // the header's tags; a broker sends none
	}
	if err := resp.ReadFrom(body); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

func (w *wire) close() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batch makes a record batch of an idempotent producer.
func batch(producer int64, epoch int16, sequence int32, values [][]byte) []byte {
	var records []byte
	for i, v := range values {
		body := []byte{0}                               // attributes
		body = binary.AppendVarint(body, 0)             // timestamp delta
		body = binary.AppendVarint(body, int64(i))      // offset delta
		body = binary.AppendVarint(body, -1)            // no key
		body = binary.AppendVarint(body, int64(len(v))) //
		records = binary.AppendVarint(records, int64(len(body)+len(v)+1))
		records = append(append(append(records, body...), v...), 0) // no headers
	}
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		Length: int32(49 + len(records)), PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(len(values) - 1), FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: producer, ProducerEpoch: epoch, FirstSequence: sequence, NumRecords: int32(len(values)), Records: records,
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}
