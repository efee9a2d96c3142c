package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// OffsetFetch (9), versions 0 to 10: a group's committed positions. From 2 on also all of them, from 7 on only stable ones on demand
// (KIP-447; without transactions all are), from 8 on for many groups at once (KIP-709), from 10 on by topic id (KIP-848). Answered only
// by a coordinator that has just verified that it is it: a committed offset never goes back.
func init() { register(9, 0, 10, (*Broker).handleOffsetFetch) }

func (b *Broker) handleOffsetFetch(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.OffsetFetchRequest)
	if r.Version < 8 {
		f := b.askOffsets(ctx, oneGroup(r.Version, req))
		return func(ctx context.Context) kafka.Response { return oneGroupResponse(r.Version, req, f.wait(ctx)) }
	}
	fetches := make([]*offsetFetch, len(req.Groups))
	for i := range req.Groups {
		fetches[i] = b.askOffsets(ctx, &req.Groups[i])
	}
	return func(ctx context.Context) kafka.Response {
		resp := kmsg.NewPtrOffsetFetchResponse()
		for _, f := range fetches {
			g := f.wait(ctx)
			if r.Version >= 10 && f.req.Topics == nil {
				g.Topics = withIDs(g.Topics)
			}
			resp.Groups = append(resp.Groups, g)
		}
		return resp
	}
}

// oneGroup is a request before version 8 as one of its groups since.
func oneGroup(version int16, req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchRequestGroup {
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = req.Group
	if version < 2 || req.Topics != nil {
		g.Topics = []kmsg.OffsetFetchRequestGroupTopic{}
	}
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetFetchRequestGroupTopic()
		topic.Topic, topic.Partitions = t.Topic, t.Partitions
		g.Topics = append(g.Topics, topic)
	}
	return &g
}

// oneGroupResponse is the answer in the shape before version 8. Before version 2 there is no place for a code but with the partitions.
func oneGroupResponse(version int16, req *kmsg.OffsetFetchRequest, g kmsg.OffsetFetchResponseGroup) *kmsg.OffsetFetchResponse {
	resp := kmsg.NewPtrOffsetFetchResponse()
	resp.ErrorCode = g.ErrorCode
	if g.ErrorCode != codeNone && version < 2 {
		g.Topics = refusedTopics(req, g.ErrorCode)
	}
	for _, t := range g.Topics {
		topic := kmsg.NewOffsetFetchResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			partition := kmsg.NewOffsetFetchResponseTopicPartition()
			partition.Partition, partition.Offset, partition.LeaderEpoch = p.Partition, p.Offset, p.LeaderEpoch
			partition.Metadata, partition.ErrorCode = p.Metadata, p.ErrorCode
			topic.Partitions = append(topic.Partitions, partition)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

func refusedTopics(req *kmsg.OffsetFetchRequest, code int16) []kmsg.OffsetFetchResponseGroupTopic {
	var topics []kmsg.OffsetFetchResponseGroupTopic
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetFetchResponseGroupTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			topic.Partitions = append(topic.Partitions, fetchedPartition(p, nothingCommitted, code))
		}
		topics = append(topics, topic)
	}
	return topics
}

// nothingCommitted is the answer where there is no offset.
var nothingCommitted = group.Offset{Offset: -1, LeaderEpoch: -1}

// offsetFetch is the question for one group's offsets.
type offsetFetch struct {
	b      *Broker
	req    *kmsg.OffsetFetchRequestGroup
	topics []*meta.Topic // to each topic of the request; nil: there is none
	q      *question
}

// askOffsets asks the group's coordinator. Topics named by an id that does not exist are not asked for.
func (b *Broker) askOffsets(ctx context.Context, req *kmsg.OffsetFetchRequestGroup) *offsetFetch {
	f := &offsetFetch{b: b, req: req, topics: make([]*meta.Topic, len(req.Topics))}
	var partitions []group.Partition
	for i, t := range req.Topics {
		f.topics[i], _ = b.topic(t.Topic, meta.TopicID(t.TopicID))
		name := f.name(i)
		if name == "" {
			continue
		}
		for _, p := range t.Partitions {
			partitions = append(partitions, group.Partition{Topic: name, Index: p})
		}
	}
	f.q = b.groups().ask(ctx, req.Group, func(t group.Ticket) group.Event {
		return group.FetchOffsets{Ticket: t, Group: req.Group, All: req.Topics == nil, Partitions: partitions}
	})
	return f
}

// name returns the name of the topic that the request has at i; empty when it is known by an id only, and nobody has that.
func (f *offsetFetch) name(i int) string {
	if f.topics[i] != nil {
		return f.topics[i].Name
	}
	return f.req.Topics[i].Topic
}

func (f *offsetFetch) wait(ctx context.Context) kmsg.OffsetFetchResponseGroup {
	g := kmsg.NewOffsetFetchResponseGroup()
	g.Group = f.req.Group
	a, code := f.q.waitVerified(ctx)
	if code != group.None {
		g.ErrorCode = int16(code)
		return g
	}
	fetched := a.(group.FetchOffsetsResponse)
	if f.req.Topics == nil {
		g.Topics = f.everything(fetched)
	} else {
		g.Topics = f.asked(fetched)
	}
	return g
}

// asked lays the offsets beside the request's partitions.
func (f *offsetFetch) asked(a group.FetchOffsetsResponse) []kmsg.OffsetFetchResponseGroupTopic {
	next := 0
	topics := make([]kmsg.OffsetFetchResponseGroupTopic, 0, len(f.req.Topics))
	for i, t := range f.req.Topics {
		topic := kmsg.NewOffsetFetchResponseGroupTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			if f.name(i) == "" {
				topic.Partitions = append(topic.Partitions, fetchedPartition(p, nothingCommitted, codeUnknownTopicID))
				continue
			}
			topic.Partitions = append(topic.Partitions, fetchedPartition(p, ofTopic(f.topics[i], a.Offsets[next]), codeNone))
			next++
		}
		topics = append(topics, topic)
	}
	return topics
}

// everything returns all offsets of the group by topic, as they come: in order. Those of a topic that was deleted are left out.
func (f *offsetFetch) everything(a group.FetchOffsetsResponse) []kmsg.OffsetFetchResponseGroupTopic {
	topics := []kmsg.OffsetFetchResponseGroupTopic{}
	image := f.b.ctl.Image()
	for i, p := range a.Partitions {
		known := image.Topic(p.Topic)
		o := ofTopic(known, a.Offsets[i])
		if o == nothingCommitted {
			continue
		}
		if n := len(topics); n == 0 || topics[n-1].Topic != p.Topic {
			topic := kmsg.NewOffsetFetchResponseGroupTopic()
			topic.Topic = p.Topic
			if known != nil {
				topic.TopicID = known.ID
			}
			topics = append(topics, topic)
		}
		last := &topics[len(topics)-1]
		last.Partitions = append(last.Partitions, fetchedPartition(p.Index, o, codeNone))
	}
	return topics
}

// withIDs leaves out topics that have no id, which version 10 has no other name for.
func withIDs(topics []kmsg.OffsetFetchResponseGroupTopic) []kmsg.OffsetFetchResponseGroupTopic {
	kept := topics[:0]
	for _, t := range topics {
		if t.TopicID != [16]byte{} {
			kept = append(kept, t)
		}
	}
	return kept
}

// ofTopic returns the offset unless it was committed for an earlier topic of this name, which is gone.
func ofTopic(t *meta.Topic, o group.Offset) group.Offset {
	if t != nil && o.TopicID != (group.TopicID{}) && meta.TopicID(o.TopicID) != t.ID {
		return nothingCommitted
	}
	return o
}

func fetchedPartition(index int32, o group.Offset, code int16) kmsg.OffsetFetchResponseGroupTopicPartition {
	p := kmsg.NewOffsetFetchResponseGroupTopicPartition()
	p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode = index, o.Offset, o.LeaderEpoch, &o.Metadata, code
	return p
}
