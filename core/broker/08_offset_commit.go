package broker

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// OffsetCommit (8), versions 0 to 10: a group's positions. To 4 with a retention of the client's choice (KIP-211), from 6 on with leader
// epochs (KIP-320), from 7 on by static members (KIP-345), from 10 on by topic id (KIP-848). Topics must exist; offsets may be any number.
func init() { register(8, 0, 10, (*Broker).handleOffsetCommit) }

func (b *Broker) handleOffsetCommit(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.OffsetCommitRequest)
	resp, e, places := b.offsetCommit(r.Version, req)
	if len(e.Offsets) == 0 {
		return reply(resp)
	}
	q := b.groups().askToKeep(ctx, req.Group, func(t group.Ticket) group.Event {
		e.Ticket = t
		return e
	})
	return func(ctx context.Context) kafka.Response {
		a := waitFor(ctx, q, func(code group.Code) group.CommitResponse { return group.CommitResponse{Code: code} })
		for i, at := range places {
			code := a.Code
			if code == group.None {
				code = a.Codes[i]
			}
			resp.Topics[at.topic].Partitions[at.partition].ErrorCode = int16(code)
		}
		return resp
	}
}

// place is where the answer for one offset belongs.
type place struct{ topic, partition int }

// offsetCommit returns the response with the codes of what is not even asked, the event for the rest, and where the rest's codes belong.
func (b *Broker) offsetCommit(version int16, req *kmsg.OffsetCommitRequest) (*kmsg.OffsetCommitResponse, group.Commit, []place) {
	resp := kmsg.NewPtrOffsetCommitResponse()
	e := group.Commit{
		Group: req.Group, Generation: req.Generation, MemberID: req.MemberID, InstanceID: text(req.InstanceID),
		Retention: -1, NotFoundCode: group.IllegalGeneration,
	}
	if version >= 9 {
		e.NotFoundCode = group.GroupIDNotFound
	}
	if version >= 2 && version <= 4 && req.RetentionTimeMillis >= 0 {
		e.Retention = time.Duration(min(req.RetentionTimeMillis, retentionMsMax)) * time.Millisecond
	}
	var places []place
	for _, t := range req.Topics {
		topic, code := b.topic(t.Topic, meta.TopicID(t.TopicID))
		out := kmsg.NewOffsetCommitResponseTopic()
		out.Topic, out.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewOffsetCommitResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, code
			switch {
			case code != codeNone:
			case p.Partition < 0 || int(p.Partition) >= len(topic.Partitions):
				partition.ErrorCode = codeUnknownTopicOrPartition
			default:
				places = append(places, place{len(resp.Topics), len(out.Partitions)})
				e.Offsets = append(e.Offsets, commitOffset(topic, &p))
			}
			out.Partitions = append(out.Partitions, partition)
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp, e, places
}

// retentionMsMax keeps a client's retention within what a time.Duration can hold: a hundred years.
const retentionMsMax = 100 * 365 * 24 * 3600 * 1000

func commitOffset(topic *meta.Topic, p *kmsg.OffsetCommitRequestTopicPartition) group.CommitOffset {
	return group.CommitOffset{
		Partition: group.Partition{Topic: topic.Name, Index: p.Partition}, TopicID: group.TopicID(topic.ID),
		Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Metadata: text(p.Metadata),
	}
}
