package broker

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/record"
)

// rawConn speaks the protocol in chosen versions and looks at every answer as it came.
type rawConn struct {
	t    testing.TB
	nc   net.Conn
	br   *bufio.Reader
	next int32
}

func dialRaw(t testing.TB, addr string) *rawConn {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(testTimeout))
	return &rawConn{t: t, nc: nc, br: bufio.NewReader(nc)}
}

// send writes a request and returns its correlation id.
func (c *rawConn) send(req kmsg.Request) int32 {
	c.t.Helper()
	c.next++
	b := kmsg.NewRequestFormatter(kmsg.FormatterClientID("raw")).AppendRequest(nil, req, c.next)
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("send %s: %v", kmsg.NameForKey(req.Key()), err)
	}
	return c.next
}

// receive reads the answer to a request.
func (c *rawConn) receive(req kmsg.Request, id int32) kmsg.Response {
	c.t.Helper()
	resp, err := c.tryReceive(req, id)
	if err != nil {
		c.t.Fatalf("receive %s v%d: %v", kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	return resp
}

func (c *rawConn) tryReceive(req kmsg.Request, id int32) (kmsg.Response, error) {
	var head [8]byte
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		return nil, err
	}
	if got := int32(binary.BigEndian.Uint32(head[4:])); got != id {
		return nil, fmt.Errorf("correlation id %d, want %d", got, id)
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:])-4)
	if _, err := io.ReadFull(c.br, body); err != nil {
		return nil, err
	}
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && resp.Key() != 18 {
		body = body[1:]
	}
	return resp, resp.ReadFrom(body)
}

// ask sends a request and returns its answer.
func ask[R kmsg.Response](c *rawConn, req kmsg.Request) R {
	c.t.Helper()
	resp, ok := c.receive(req, c.send(req)).(R)
	if !ok {
		c.t.Fatalf("answer to %s has another type", kmsg.NameForKey(req.Key()))
	}
	return resp
}

// topicID asks for a topic's id.
func (c *rawConn) topicID(topic string) [16]byte {
	c.t.Helper()
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 13
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, mt)
	resp := ask[*kmsg.MetadataResponse](c, req)
	if len(resp.Topics) != 1 || resp.Topics[0].ErrorCode != 0 {
		c.t.Fatalf("metadata of %s: %+v", topic, resp.Topics)
	}
	return resp.Topics[0].TopicID
}

// produceRequest is a request with one partition's records.
func produceRequest(version int16, topic string, id [16]byte, partition int32, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = version, -1, 30_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.TopicID = topic, id
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, records
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// produce sends one partition's records and returns the answer for it.
func (c *rawConn) produce(req *kmsg.ProduceRequest) kmsg.ProduceResponseTopicPartition {
	c.t.Helper()
	resp := ask[*kmsg.ProduceResponse](c, req)
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		c.t.Fatalf("produce answered %+v", resp)
	}
	return resp.Topics[0].Partitions[0]
}

// fetchOne is a request for one partition.
func fetchOne(version int16, topic string, id [16]byte, partition int32, offset int64) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MinBytes, req.MaxBytes, req.MaxWaitMillis, req.SessionEpoch = version, 1, 1<<20, 0, -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = topic, id
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = partition, offset, 1<<20, -1
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return req
}

// fetch asks for one partition and returns the answer for it.
func (c *rawConn) fetch(req *kmsg.FetchRequest) kmsg.FetchResponseTopicPartition {
	c.t.Helper()
	resp := ask[*kmsg.FetchResponse](c, req)
	if resp.ErrorCode != 0 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		c.t.Fatalf("fetch answered %+v", resp)
	}
	return resp.Topics[0].Partitions[0]
}

// sequenced builds a batch of an idempotent producer with n records.
func sequenced(producer int64, epoch int16, sequence int32, n int) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{ProducerID: producer, ProducerEpoch: epoch, BaseSequence: sequence})
	for i := range n {
		b.Add(time.Now().UnixMilli(), []byte("key"), fmt.Appendf(nil, "%d", int(sequence)+i), nil)
	}
	return b.Build(nil)
}

// partitionOf returns the only partition of an answer to Produce.
func partitionOf(resp kmsg.Response) kmsg.ProduceResponseTopicPartition {
	return resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
}

func brokersOf(resp kmsg.Response) []kmsg.ProduceResponseBroker {
	return resp.(*kmsg.ProduceResponse).Brokers
}

// leaderOf waits until a partition has a leader and returns it.
func (c *testCluster) leaderOf(topic string, partition int32) int32 {
	c.t.Helper()
	for deadline := time.After(testTimeout); ; {
		for _, n := range c.nodes {
			if n.down {
				continue
			}
			changed := n.ctl.Changed()
			if t := n.ctl.Image().Topic(topic); t != nil && int(partition) < len(t.Partitions) {
				if id, _, ok := n.ctl.LeaderOf(t.Partitions[partition].Shard); ok {
					return int32(id)
				}
			}
			select {
			case <-changed:
			case <-time.After(20 * time.Millisecond):
			case <-deadline:
				c.t.Fatalf("%s/%d has no leader", topic, partition)
			}
		}
	}
}
