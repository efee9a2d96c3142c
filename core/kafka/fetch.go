package kafka

import (
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FetchResponse is a Fetch response whose records are streamed: the RecordBatches of its partitions are not encoded, Records are.
type FetchResponse struct {
	kmsg.FetchResponse
	// Records holds the records of Topics[i].Partitions[j] at [i][j]; nil where there are none. Both dimensions are as long as the response's.
	Records [][]Payload
	// OnRelease is called once when the response is written or given up; it may be nil.
	OnRelease func()
}

// Release calls OnRelease.
func (f *FetchResponse) Release() {
	if f.OnRelease != nil {
		f.OnRelease()
		f.OnRelease = nil
	}
}

// AppendStream encodes as kmsg does (a test compares them), but leaves the records out.
func (f *FetchResponse) AppendStream(dst []byte) ([]byte, []Cut) {
	e := fetchEncoder{dst: dst, version: f.Version, flexible: f.Version >= 12}
	if f.Version >= 1 {
		e.dst = kbin.AppendInt32(e.dst, f.ThrottleMillis)
	}
	if f.Version >= 7 {
		e.dst = kbin.AppendInt16(e.dst, f.ErrorCode)
		e.dst = kbin.AppendInt32(e.dst, f.SessionID)
	}
	e.arrayLen(len(f.Topics))
	for i := range f.Topics {
		e.topic(&f.Topics[i], f.Records[i])
	}
	if e.flexible {
		e.brokers(f.Brokers)
	}
	return e.dst, e.cuts
}

type fetchEncoder struct {
	dst      []byte
	cuts     []Cut
	version  int16
	flexible bool
}

func (e *fetchEncoder) arrayLen(n int) {
	if e.flexible {
		e.dst = kbin.AppendCompactArrayLen(e.dst, n)
	} else {
		e.dst = kbin.AppendArrayLen(e.dst, n)
	}
}

func (e *fetchEncoder) noTags() {
	if e.flexible {
		e.dst = append(e.dst, 0)
	}
}

func (e *fetchEncoder) topic(t *kmsg.FetchResponseTopic, records []Payload) {
	switch {
	case e.version >= 13:
		e.dst = kbin.AppendUuid(e.dst, t.TopicID)
	case e.flexible:
		e.dst = kbin.AppendCompactString(e.dst, t.Topic)
	default:
		e.dst = kbin.AppendString(e.dst, t.Topic)
	}
	e.arrayLen(len(t.Partitions))
	for i := range t.Partitions {
		e.partition(&t.Partitions[i], records[i])
	}
	e.noTags()
}

func (e *fetchEncoder) partition(p *kmsg.FetchResponseTopicPartition, records Payload) {
	e.dst = kbin.AppendInt32(e.dst, p.Partition)
	e.dst = kbin.AppendInt16(e.dst, p.ErrorCode)
	e.dst = kbin.AppendInt64(e.dst, p.HighWatermark)
	if e.version >= 4 {
		e.dst = kbin.AppendInt64(e.dst, p.LastStableOffset)
	}
	if e.version >= 5 {
		e.dst = kbin.AppendInt64(e.dst, p.LogStartOffset)
	}
	if e.version >= 4 {
		e.aborted(p.AbortedTransactions)
	}
	if e.version >= 11 {
		e.dst = kbin.AppendInt32(e.dst, p.PreferredReadReplica)
	}
	e.records(records)
	if e.flexible {
		e.partitionTags(p)
	}
}

func (e *fetchEncoder) aborted(list []kmsg.FetchResponseTopicPartitionAbortedTransaction) {
	if e.flexible {
		e.dst = kbin.AppendCompactNullableArrayLen(e.dst, len(list), list == nil)
	} else {
		e.dst = kbin.AppendNullableArrayLen(e.dst, len(list), list == nil)
	}
	for i := range list {
		e.dst = kbin.AppendInt64(e.dst, list[i].ProducerID)
		e.dst = kbin.AppendInt64(e.dst, list[i].FirstOffset)
		e.noTags()
	}
}

// records writes the length of the records; no records are an empty array and never null, which some clients do not take.
func (e *fetchEncoder) records(p Payload) {
	n := int64(0)
	if p != nil {
		n = p.Len()
	}
	if e.flexible {
		e.dst = kbin.AppendUvarint(e.dst, uint32(n)+1)
	} else {
		e.dst = kbin.AppendInt32(e.dst, int32(n))
	}
	if n > 0 {
		e.cuts = append(e.cuts, Cut{At: len(e.dst), Payload: p})
	}
}

func (e *fetchEncoder) partitionTags(p *kmsg.FetchResponseTopicPartition) {
	diverging := p.DivergingEpoch.Epoch != -1 || p.DivergingEpoch.EndOffset != -1
	leader := p.CurrentLeader.LeaderID != -1 || p.CurrentLeader.LeaderEpoch != -1
	n := byte(0)
	if diverging {
		n++
	}
	if leader {
		n++
	}
	e.dst = append(e.dst, n)
	if diverging {
		e.dst = append(e.dst, 0, 4+8+1)
		e.dst = kbin.AppendInt32(e.dst, p.DivergingEpoch.Epoch)
		e.dst = kbin.AppendInt64(e.dst, p.DivergingEpoch.EndOffset)
		e.dst = append(e.dst, 0)
	}
	if leader {
		e.dst = append(e.dst, 1, 4+4+1)
		e.dst = kbin.AppendInt32(e.dst, p.CurrentLeader.LeaderID)
		e.dst = kbin.AppendInt32(e.dst, p.CurrentLeader.LeaderEpoch)
		e.dst = append(e.dst, 0)
	}
}

// brokers writes the response's own tags: the endpoints of the leaders that its partitions name (KIP-951, from version 16 on).
func (e *fetchEncoder) brokers(list []kmsg.FetchResponseBroker) {
	if len(list) == 0 || e.version < 16 {
		e.dst = append(e.dst, 0)
		return
	}
	var body []byte
	body = kbin.AppendCompactArrayLen(body, len(list))
	for i := range list {
		b := &list[i]
		body = kbin.AppendInt32(body, b.NodeID)
		body = kbin.AppendCompactString(body, b.Host)
		body = kbin.AppendInt32(body, b.Port)
		body = kbin.AppendCompactNullableString(body, b.Rack)
		body = append(body, 0)
	}
	e.dst = append(e.dst, 1, 0)
	e.dst = kbin.AppendUvarint(e.dst, uint32(len(body)))
	e.dst = append(e.dst, body...)
}
