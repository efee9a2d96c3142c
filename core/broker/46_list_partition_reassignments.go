package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// ListPartitionReassignments v0 (KIP-455): the partitions that are being moved, those named or all. A partition that stays where it is, or that there
// is not, is left out.
func init() { register(46, 0, 0, (*Broker).handleListReassignments) }

func (b *Broker) handleListReassignments(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.ListPartitionReassignmentsRequest)
	resp := req.ResponseKind().(*kmsg.ListPartitionReassignmentsResponse)
	image := b.ctl.Image()
	if req.Topics == nil {
		for t := range image.Topics() {
			resp.Topics = appendMoves(resp.Topics, image, t, allPartitions(t))
		}
	}
	for _, wanted := range req.Topics {
		if t := image.Topic(wanted.Topic); t != nil {
			resp.Topics = appendMoves(resp.Topics, image, t, wanted.Partitions)
		}
	}
	return reply(resp)
}

// appendMoves adds a topic with those of its partitions that move, if there are any.
func appendMoves(list []kmsg.ListPartitionReassignmentsResponseTopic, image *meta.Image, t *meta.Topic, indexes []int32) []kmsg.ListPartitionReassignmentsResponseTopic {
	topic := kmsg.NewListPartitionReassignmentsResponseTopic()
	topic.Topic = t.Name
	for _, index := range indexes {
		p := image.Partition(t.ID, index)
		if p == nil || p.Move == nil {
			continue
		}
		from, to := image.Shard(p.Shard).Voters, image.Shard(p.Move.To).Voters
		out := kmsg.NewListPartitionReassignmentsResponseTopicPartition()
		out.Partition, out.Replicas = index, serverIDs(replicasOf(image, p))
		out.AddingReplicas, out.RemovingReplicas = serverIDs(without(to, from)), serverIDs(without(from, to))
		topic.Partitions = append(topic.Partitions, out)
	}
	if len(topic.Partitions) == 0 {
		return list
	}
	return append(list, topic)
}

func serverIDs(list []meta.Server) []int32 {
	out := make([]int32, len(list))
	for i, s := range list {
		out[i] = int32(s.Node)
	}
	return out
}
