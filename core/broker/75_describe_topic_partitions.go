package broker

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// DescribeTopicPartitions v0 (KIP-966): topics by name with their partitions, a bounded number of them; the cursor of the answer is sent with the next
// request. There are no eligible leader replicas: any replica that Raft elects has every acknowledged record.
func init() { register(75, 0, 0, (*Broker).handleDescribeTopicPartitions) }

// describedPartitionsMax bounds one answer, as max.request.partition.size.limit says.
const describedPartitionsMax = 2000

func (b *Broker) handleDescribeTopicPartitions(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DescribeTopicPartitionsRequest)
	return func(context.Context) kafka.Response { return b.describeTopicPartitions(req) }
}

func (b *Broker) describeTopicPartitions(req *kmsg.DescribeTopicPartitionsRequest) *kmsg.DescribeTopicPartitionsResponse {
	resp := req.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	image := b.ctl.Image()
	names, from := describedTopics(image, req), int32(0)
	left := int(min(max(req.ResponsePartitionLimit, 1), describedPartitionsMax))
	for i, name := range names {
		if from = 0; req.Cursor != nil && i == 0 && name == req.Cursor.Topic {
			from = max(req.Cursor.Partition, 0)
		}
		topic := image.Topic(name)
		if topic == nil {
			resp.Topics = append(resp.Topics, missingTopic(name))
			continue
		}
		if left == 0 {
			resp.NextCursor = cursor(name, 0)
			break
		}
		answer, next := b.describeTopic(image, topic, from, left)
		resp.Topics = append(resp.Topics, answer)
		if left -= len(answer.Partitions); int(next) < len(topic.Partitions) {
			resp.NextCursor = cursor(name, next)
			break
		}
	}
	return resp
}

// describedTopics lists the names in their order from the cursor's on: all when the request names none.
func describedTopics(image *meta.Image, req *kmsg.DescribeTopicPartitionsRequest) []string {
	begin := ""
	if req.Cursor != nil {
		begin = req.Cursor.Topic
	}
	var names []string
	if len(req.Topics) == 0 {
		for t := range image.TopicsFrom(begin) {
			if names = append(names, t.Name); len(names) > describedPartitionsMax {
				break // each has a partition at least
			}
		}
		return names
	}
	for _, t := range req.Topics {
		if t.Topic >= begin {
			names = append(names, t.Topic)
		}
	}
	slices.SortFunc(names, strings.Compare)
	return slices.Compact(names)
}

func cursor(topic string, partition int32) *kmsg.DescribeTopicPartitionsResponseNextCursor {
	c := kmsg.NewDescribeTopicPartitionsResponseNextCursor()
	c.Topic, c.Partition = topic, partition
	return &c
}

func missingTopic(name string) kmsg.DescribeTopicPartitionsResponseTopic {
	answer := kmsg.NewDescribeTopicPartitionsResponseTopic()
	answer.Topic, answer.AuthorizedOperations = kmsg.StringPtr(name), operationsUnknown
	answer.ErrorCode = codeUnknownTopicOrPartition
	if meta.ValidateTopicName(name) != nil {
		answer.ErrorCode = codeInvalidTopic
	}
	return answer
}

// describeTopic describes at most limit partitions and returns the first that it left out.
func (b *Broker) describeTopic(image *meta.Image, t *meta.Topic, from int32, limit int) (kmsg.DescribeTopicPartitionsResponseTopic, int32) {
	answer := kmsg.NewDescribeTopicPartitionsResponseTopic()
	answer.Topic, answer.TopicID, answer.IsInternal = kmsg.StringPtr(t.Name), t.ID, t.Internal
	answer.AuthorizedOperations = topicOperations
	next, known := from, views{b: b, image: image}
	for ; int(next) < len(t.Partitions) && len(answer.Partitions) < limit; next++ {
		answer.Partitions = append(answer.Partitions, describePartition(&known, &t.Partitions[next]))
	}
	return answer, next
}

func describePartition(known *views, p *meta.Partition) kmsg.DescribeTopicPartitionsResponseTopicPartition {
	out := kmsg.NewDescribeTopicPartitionsResponseTopicPartition()
	out.Partition = p.Index
	v := known.of(p)
	out.LeaderID, out.LeaderEpoch = int32(v.leader), v.epoch
	out.Replicas, out.ISR, out.OfflineReplicas = v.replicas, v.isr, v.offline
	if v.leader == meta.NoNode {
		out.ErrorCode = codeLeaderNotAvailable
	}
	out.EligibleLeaderReplicas, out.LastKnownELR = []int32{}, []int32{}
	return out
}
