package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// DeleteTopics v0 to v6. A topic that does not exist is UNKNOWN_TOPIC_OR_PARTITION, or UNKNOWN_TOPIC_ID when it was named by id.
//
// v5: error messages. v6: topics by id (KIP-516), name and id exclude each other.
func init() { register(20, 0, 6, (*Broker).handleDeleteTopics) }

func (b *Broker) handleDeleteTopics(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DeleteTopicsRequest)
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := adminContext(ctx, req.TimeoutMillis)
		defer cancel()
		resp := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
		resp.Topics = b.deleteTopics(ctx, wantedDeletes(req))
		return resp
	}
}

// wantedDeletes gives the older versions, which know names only, the newer form.
func wantedDeletes(req *kmsg.DeleteTopicsRequest) []kmsg.DeleteTopicsRequestTopic {
	if req.Version >= 6 {
		return req.Topics
	}
	out := make([]kmsg.DeleteTopicsRequestTopic, len(req.TopicNames))
	for i := range req.TopicNames {
		out[i].Topic = &req.TopicNames[i]
	}
	return out
}

func (b *Broker) deleteTopics(ctx context.Context, wanted []kmsg.DeleteTopicsRequestTopic) []kmsg.DeleteTopicsResponseTopic {
	out := make([]kmsg.DeleteTopicsResponseTopic, len(wanted))
	var ids []meta.TopicID
	var at []int
	named := make(map[meta.TopicID]bool, len(wanted))
	for i, w := range wanted {
		topic, refused := b.topicToDelete(w)
		if refused == nil && named[topic.ID] {
			refused = refuse(codeInvalidRequest, "Duplicate topic in the request.")
		}
		out[i] = kmsg.NewDeleteTopicsResponseTopic()
		out[i].Topic, out[i].TopicID = w.Topic, w.TopicID
		if refused != nil {
			refused.put(&out[i].ErrorCode, &out[i].ErrorMessage)
			continue
		}
		out[i].Topic, out[i].TopicID = &topic.Name, topic.ID
		named[topic.ID] = true
		ids, at = append(ids, topic.ID), append(at, i)
	}
	if len(ids) == 0 {
		return out
	}
	for i, err := range b.ctl.DeleteTopics(ctx, ids) {
		refusalOf(err).put(&out[at[i]].ErrorCode, &out[at[i]].ErrorMessage)
	}
	return out
}

func (b *Broker) topicToDelete(w kmsg.DeleteTopicsRequestTopic) (*meta.Topic, *refusal) {
	name := ""
	switch id := meta.TopicID(w.TopicID); {
	case w.Topic != nil && !id.IsZero():
		return nil, refuse(codeInvalidRequest, "A topic is named by its name or its id, not by both.")
	case w.Topic == nil && id.IsZero():
		return nil, refuse(codeInvalidRequest, "Neither topic name nor id were specified.")
	case w.Topic != nil:
		name = *w.Topic
		if name == "" {
			return nil, refuse(codeUnknownTopicOrPartition, "This server does not host this topic-partition.")
		}
	}
	topic, code := b.topic(name, w.TopicID)
	switch code {
	case codeNone:
		return topic, nil
	case codeUnknownTopicID:
		return nil, refuse(code, "This server does not host this topic ID.")
	}
	return nil, refuse(code, "This server does not host this topic-partition.")
}
