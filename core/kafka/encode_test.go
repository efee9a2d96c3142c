package kafka

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// bytesPayload is a Payload in memory.
type bytesPayload []byte

func (b bytesPayload) Len() int64 { return int64(len(b)) }

func (b bytesPayload) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b)
	return int64(n), err
}

// join is what a client reads of a streamed response.
func join(t testing.TB, frame []byte, cuts []Cut) []byte {
	t.Helper()
	var out bytes.Buffer
	at := 0
	for _, c := range cuts {
		out.Write(frame[at:c.At])
		at = c.At
		if _, err := c.Payload.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
	}
	out.Write(frame[at:])
	return out.Bytes()
}

func randomFetchResponse(t *rapid.T, version int16) *FetchResponse {
	f := &FetchResponse{FetchResponse: *kmsg.NewPtrFetchResponse()}
	f.Version = version
	f.ThrottleMillis, f.ErrorCode, f.SessionID = rapid.Int32().Draw(t, "throttle"), rapid.Int16().Draw(t, "error"), rapid.Int32().Draw(t, "session")
	for range rapid.IntRange(0, 3).Draw(t, "topics") {
		topic := kmsg.NewFetchResponseTopic()
		if version >= 13 {
			topic.TopicID = [16]byte{byte(rapid.IntRange(0, 255).Draw(t, "id")), 1}
		} else {
			topic.Topic = rapid.StringN(0, 20, 40).Draw(t, "name")
		}
		var records []Payload
		for range rapid.IntRange(0, 3).Draw(t, "partitions") {
			p, r := randomFetchPartition(t, version)
			topic.Partitions, records = append(topic.Partitions, p), append(records, r)
		}
		f.Topics, f.Records = append(f.Topics, topic), append(f.Records, records)
	}
	if version >= 16 && rapid.Bool().Draw(t, "brokers") {
		b := kmsg.NewFetchResponseBroker()
		b.NodeID, b.Host, b.Port, b.Rack = 3, rapid.StringN(0, 200, 300).Draw(t, "host"), 9092, kmsg.StringPtr("rack1")
		f.Brokers = append(f.Brokers, b)
	}
	return f
}

func randomFetchPartition(t *rapid.T, version int16) (kmsg.FetchResponseTopicPartition, Payload) {
	p := kmsg.NewFetchResponseTopicPartition()
	p.Partition, p.ErrorCode = rapid.Int32().Draw(t, "partition"), rapid.Int16().Draw(t, "code")
	p.HighWatermark = rapid.Int64().Draw(t, "hw")
	if version >= 5 {
		p.LastStableOffset, p.LogStartOffset = 7, 8
	}
	if version >= 11 {
		p.PreferredReadReplica = rapid.Int32().Draw(t, "preferred")
	}
	if version >= 12 && rapid.Bool().Draw(t, "diverging") {
		p.DivergingEpoch.Epoch, p.DivergingEpoch.EndOffset = 4, 5
	}
	if version >= 12 && rapid.Bool().Draw(t, "leader") {
		p.CurrentLeader.LeaderID, p.CurrentLeader.LeaderEpoch = 1, 9
	}
	if rapid.Bool().Draw(t, "aborted") {
		a := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
		a.ProducerID, a.FirstOffset = 11, 12
		p.AbortedTransactions = append(p.AbortedTransactions, a)
	}
	p.RecordBatches = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "records")
	if len(p.RecordBatches) == 0 && rapid.Bool().Draw(t, "nil") {
		return p, nil
	}
	return p, bytesPayload(p.RecordBatches)
}

// TestFetchResponseEncodesAsKmsg compares the streamed encoding with the one of kmsg, bytes within.
func TestFetchResponseEncodesAsKmsg(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := randomFetchResponse(t, rapid.Int16Range(4, 18).Draw(t, "version"))
		for i := range f.Topics {
			for j := range f.Topics[i].Partitions {
				if p := &f.Topics[i].Partitions[j]; p.RecordBatches == nil {
					p.RecordBatches = []byte{}
				}
			}
		}
		want := f.FetchResponse.AppendTo(nil)
		frame, cuts := f.AppendStream(nil)
		var got []byte
		at := 0
		for _, c := range cuts {
			got = append(append(got, frame[at:c.At]...), c.Payload.(bytesPayload)...)
			at = c.At
		}
		got = append(got, frame[at:]...)
		if !bytes.Equal(want, got) {
			t.Fatalf("version %d:\nwant %x\ngot  %x", f.Version, want, got)
		}
	})
}

// TestResponseHeaders checks which responses carry tags in their header: flexible ones, except ApiVersions.
func TestResponseHeaders(t *testing.T) {
	for _, c := range []struct {
		resp    kmsg.Response
		version int16
		header  int
	}{
		{kmsg.NewPtrMetadataResponse(), 8, 4}, {kmsg.NewPtrMetadataResponse(), 9, 5},
		{kmsg.NewPtrApiVersionsResponse(), 0, 4}, {kmsg.NewPtrApiVersionsResponse(), 4, 4},
		{kmsg.NewPtrProduceResponse(), 9, 5},
	} {
		c.resp.SetVersion(c.version)
		frame, _, err := appendResponse(nil, 77, c.resp)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(frame)-lengthBytes-len(c.resp.AppendTo(nil)), c.header; got != want {
			t.Errorf("%s v%d: header of %d bytes, want %d", kmsg.NameForKey(c.resp.Key()), c.version, got, want)
		}
	}
}

// TestStreamedFrame checks that the frame's length counts the payloads, and that a client can read it.
func TestStreamedFrame(t *testing.T) {
	f := &FetchResponse{FetchResponse: *kmsg.NewPtrFetchResponse()}
	f.Version = 13
	topic := kmsg.NewFetchResponseTopic()
	topic.TopicID = [16]byte{1}
	p := kmsg.NewFetchResponseTopicPartition()
	topic.Partitions = append(topic.Partitions, p, p)
	f.Topics = append(f.Topics, topic)
	big := make([]byte, 100_000)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	f.Records = [][]Payload{{bytesPayload("small"), bytesPayload(big)}}
	frame, cuts, err := appendResponse(nil, 5, f)
	if err != nil {
		t.Fatal(err)
	}
	whole := join(t, frame, cuts)
	if got, want := int(whole[0])<<24|int(whole[1])<<16|int(whole[2])<<8|int(whole[3]), len(whole)-4; got != want {
		t.Fatalf("length says %d, there are %d", got, want)
	}
	read := kmsg.NewPtrFetchResponse()
	read.Version = 13
	if err := read.ReadFrom(whole[9:]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(big, read.Topics[0].Partitions[1].RecordBatches); diff != "" {
		t.Error(diff)
	}
}
