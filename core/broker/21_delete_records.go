package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

// DeleteRecords v0 to v2 (KIP-107). The log of a partition starts at the offset from then on, for every reader and after every restart; the files go later.
// Offset -1 is the high watermark, one past it is OFFSET_OUT_OF_RANGE. One entry per shard carries all its partitions of the request.
func init() { register(21, 0, 2, (*Broker).handleDeleteRecords) }

func (b *Broker) handleDeleteRecords(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DeleteRecordsRequest)
	resp := req.ResponseKind().(*kmsg.DeleteRecordsResponse)
	cuts := make(map[*shard.Group][]cut)
	for _, t := range req.Topics {
		topic, code := b.topic(t.Topic, meta.TopicID{})
		if t.Topic == "" {
			topic, code = nil, codeUnknownTopicOrPartition
		}
		answer := kmsg.NewDeleteRecordsResponseTopic()
		answer.Topic = t.Topic
		answer.Partitions = make([]kmsg.DeleteRecordsResponseTopicPartition, len(t.Partitions))
		for i, p := range t.Partitions {
			a := &answer.Partitions[i]
			a.Partition, a.LowWatermark, a.ErrorCode = p.Partition, -1, code
			if code == codeNone {
				b.addCut(cuts, topic, p, a)
			}
		}
		resp.Topics = append(resp.Topics, answer)
	}
	waits := make([]func(ctx context.Context), 0, len(cuts))
	for group, list := range cuts {
		waits = append(waits, b.proposeCuts(group, list))
	}
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := adminContext(ctx, req.TimeoutMillis)
		defer cancel()
		for _, wait := range waits {
			wait(ctx)
		}
		return resp
	}
}

// cut is one partition whose log shall start later.
type cut struct {
	part   *partition.Partition
	offset int64
	answer *kmsg.DeleteRecordsResponseTopicPartition
}

// addCut checks one partition of the request, and answers it at once when it is refused.
func (b *Broker) addCut(cuts map[*shard.Group][]cut, topic *meta.Topic, p kmsg.DeleteRecordsRequestTopicPartition, a *kmsg.DeleteRecordsResponseTopicPartition) {
	part, group, code := b.leaderFor(topic, p.Partition)
	if code == codeNone {
		code = b.mayCut(topic, part, p.Offset)
	}
	if code != codeNone {
		a.ErrorCode = code
		return
	}
	offset := p.Offset
	if offset == -1 {
		offset = part.End()
	}
	cuts[group] = append(cuts[group], cut{part, offset, a})
}

func (b *Broker) mayCut(topic *meta.Topic, part *partition.Partition, offset int64) int16 {
	settings := b.ctl.Image().TopicSettings(topic)
	switch {
	case topic.Internal:
		return codeInvalidTopic
	case settings.Compact && !settings.Delete:
		return codePolicyViolation
	case offset < -1 || offset > part.End():
		return codeOffsetOutOfRange
	}
	return codeNone
}

// proposeCuts sends the entry of one shard on its way and returns what waits for it.
func (b *Broker) proposeCuts(group *shard.Group, list []cut) func(ctx context.Context) {
	starts := make([]partition.Start, len(list))
	for i, c := range list {
		starts[i] = partition.Start{Key: c.part.Key(), Offset: c.offset}
	}
	future := group.Propose(partition.EncodeStart(starts))
	return func(ctx context.Context) {
		result, err := future.Wait(ctx)
		if refused, ok := result.(error); ok && err == nil {
			err = refused
		}
		results, _ := result.([]partition.StartResult)
		for i, c := range list {
			refused := err
			if err == nil && i < len(results) {
				refused = results[i].Err
			}
			if c.answer.ErrorCode = errorCode(refused); refused == nil {
				c.answer.LowWatermark = c.part.Start()
			}
		}
	}
}
