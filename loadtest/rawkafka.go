package loadtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// rawConn is a Kafka connection without manners: it sends what it is told, and reads only when it is told.
type rawConn struct {
	net.Conn
	br   *bufio.Reader
	next atomic.Int32
}

const (
	rawDialTimeout = 10 * time.Second
	// rawResponseMax is what a response may claim before it is taken for nonsense.
	rawResponseMax = math.MaxInt32
)

func dialRaw(ctx context.Context, addr string) (*rawConn, error) {
	d := net.Dialer{Timeout: rawDialTimeout}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	context.AfterFunc(ctx, func() { c.Close() })
	return &rawConn{Conn: c, br: bufio.NewReaderSize(c, 4<<10)}, nil
}

var rawFormatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("overload"))

// frameOf is the frame of a request, length and header included.
func frameOf(req kmsg.Request, correlation int32) []byte {
	return rawFormatter.AppendRequest(nil, req, correlation)
}

// send writes a request.
func (c *rawConn) send(req kmsg.Request) error {
	_, err := c.Write(frameOf(req, c.next.Add(1)))
	return err
}

// receive reads one response into resp; nil discards it. It returns its size.
func (c *rawConn) receive(resp kmsg.Response) (int64, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n < 4 || n > rawResponseMax {
		return 0, fmt.Errorf("response claims %d bytes", n)
	}
	if resp == nil {
		_, err := io.CopyN(io.Discard, c.br, n)
		return n, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.br, body); err != nil {
		return n, err
	}
	body = body[4:]
	if resp.IsFlexible() && resp.Key() != 18 {
		body = body[1:]
	}
	return n, resp.ReadFrom(body)
}

// call sends a request and reads its response.
func (c *rawConn) call(req kmsg.Request, resp kmsg.Response) (int64, error) {
	if err := c.send(req); err != nil {
		return 0, err
	}
	if resp != nil {
		resp.SetVersion(req.GetVersion())
	}
	return c.receive(resp)
}

// apiVersions is the smallest request.
func apiVersions() kmsg.Request {
	req := kmsg.NewPtrApiVersionsRequest()
	req.Version, req.ClientSoftwareName, req.ClientSoftwareVersion = 3, "loadtest", "1"
	return req
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchOf builds a record batch of n records with random values of size bytes. kmsg encodes the batch, but leaves records and checksum to its user.
func batchOf(n, size int) []byte {
	value := make([]byte, size)
	r := rand.NewChaCha8([32]byte{2})
	_, _ = r.Read(value) // never fails
	var records []byte
	for i := range n {
		body := []byte{0}                                   // attributes
		body = binary.AppendVarint(body, 0)                 // timestamp delta
		body = binary.AppendVarint(body, int64(i))          // offset delta
		body = binary.AppendVarint(body, -1)                // no key
		body = binary.AppendVarint(body, int64(len(value))) //
		body = append(append(body, value...), 0)            // no headers
		records = binary.AppendVarint(records, int64(len(body)))
		records = append(records, body...)
	}
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		Length: int32(49 + len(records)), PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(n - 1), FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(n), Records: records,
	}
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	return raw
}

// produceOf is a Produce request of the same records for some partitions of a topic.
func produceOf(topic string, acks int16, records []byte, partitions ...int32) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 9, acks, 30000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	for _, p := range partitions {
		part := kmsg.NewProduceRequestTopicPartition()
		part.Partition, part.Records = p, records
		t.Partitions = append(t.Partitions, part)
	}
	req.Topics = append(req.Topics, t)
	return req
}

// fetchOf asks for everything that may be had of some partitions.
func fetchOf(topic string, maxBytes int32, wait time.Duration, partitions ...int32) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxBytes, req.MinBytes, req.MaxWaitMillis = 12, maxBytes, 1, int32(wait.Milliseconds())
	req.SessionEpoch = -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic = topic
	for _, p := range partitions {
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.PartitionMaxBytes, part.CurrentLeaderEpoch = p, maxBytes, -1
		t.Partitions = append(t.Partitions, part)
	}
	req.Topics = append(req.Topics, t)
	return req
}

// ending names why a connection ended, for counting.
func ending(err error) string {
	var refused *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isReset(err):
		return "closed by the server"
	case errors.As(err, &refused) && refused.Op == "dial":
		return "not connected"
	case errors.As(err, &refused) && refused.Timeout():
		return "timed out"
	}
	return "failed: " + err.Error()
}

func errorName(code int16) string {
	if e := kerr.TypedErrorForCode(code); e != nil {
		return e.Message
	}
	return fmt.Sprintf("error %d", code)
}
