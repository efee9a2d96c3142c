package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// OffsetDelete (47), version 0: committed offsets of topics that the group does not read go (KIP-496).
func init() { register(47, 0, 0, (*Broker).handleOffsetDelete) }

func (b *Broker) handleOffsetDelete(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.OffsetDeleteRequest)
	var partitions []group.Partition // those that exist, in the order of the request
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			if b.exists(t.Topic, p.Partition) {
				partitions = append(partitions, group.Partition{Topic: t.Topic, Index: p.Partition})
			}
		}
	}
	q := b.groups().ask(ctx, req.Group, func(t group.Ticket) group.Event {
		return group.DeleteOffsets{Ticket: t, Group: req.Group, Partitions: partitions}
	})
	return func(ctx context.Context) kafka.Response {
		a := waitForVerified(ctx, q, func(code group.Code) group.DeleteOffsetsResponse { return group.DeleteOffsetsResponse{Code: code} })
		return offsetDeleteResponse(req, partitions, a)
	}
}

// exists tells whether the metadata has the partition.
func (b *Broker) exists(topic string, index int32) bool {
	t, code := b.topic(topic, meta.TopicID{})
	return code == codeNone && index >= 0 && int(index) < len(t.Partitions)
}

// offsetDeleteResponse lays the codes of the partitions that exist beside those of the request.
func offsetDeleteResponse(req *kmsg.OffsetDeleteRequest, partitions []group.Partition, a group.DeleteOffsetsResponse) *kmsg.OffsetDeleteResponse {
	resp := kmsg.NewPtrOffsetDeleteResponse()
	if resp.ErrorCode = int16(a.Code); a.Code != group.None {
		return resp
	}
	next := 0
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetDeleteResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			partition := kmsg.NewOffsetDeleteResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, codeUnknownTopicOrPartition
			if next < len(partitions) && partitions[next] == (group.Partition{Topic: t.Topic, Index: p.Partition}) {
				partition.ErrorCode = int16(a.Codes[next])
				next++
			}
			topic.Partitions = append(topic.Partitions, partition)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}
