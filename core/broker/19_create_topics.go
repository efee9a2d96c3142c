package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// CreateTopics v0 to v7. Each topic is answered for itself, when every live broker knows it and its leaders serve it, or why not.
//
// v1: validate_only and error messages. v4: -1 for the default number of partitions and replicas (KIP-464).
// v5: the answer tells partitions, replication factor and all configs (KIP-525). v7: topic ids (KIP-516).
func init() { register(19, 0, 7, (*Broker).handleCreateTopics) }

func (b *Broker) handleCreateTopics(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.CreateTopicsRequest)
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := adminContext(ctx, req.TimeoutMillis)
		defer cancel()
		resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
		resp.Topics = b.createTopics(ctx, req)
		return resp
	}
}

func (b *Broker) createTopics(ctx context.Context, req *kmsg.CreateTopicsRequest) []kmsg.CreateTopicsResponseTopic {
	twice := duplicates(req.Topics, func(t kmsg.CreateTopicsRequestTopic) string { return t.Topic })
	out := make([]kmsg.CreateTopicsResponseTopic, 0, len(req.Topics))
	var wanted []meta.NewTopic
	at := make(map[string]int, len(req.Topics))
	for i := range req.Topics {
		t := &req.Topics[i]
		if _, answered := at[t.Topic]; answered {
			continue // once for a name that was sent twice
		}
		at[t.Topic] = len(out)
		topic, refused := newTopic(t)
		if twice[t.Topic] {
			refused = refuse(codeInvalidRequest, "Duplicate topic name.")
		}
		if refused == nil {
			wanted = append(wanted, topic)
		}
		out = append(out, createdTopic(t.Topic, refused))
	}
	if len(wanted) == 0 {
		return out
	}
	view := b.configView()
	for i, result := range b.ctl.CreateTopics(ctx, wanted, req.ValidateOnly) {
		answer := &out[at[wanted[i].Name]]
		if result.Err != nil {
			refusalOf(result.Err).put(&answer.ErrorCode, &answer.ErrorMessage)
			continue
		}
		answer.TopicID, answer.NumPartitions, answer.ReplicationFactor = result.ID, result.Partitions, result.ReplicationFactor
		answer.Configs = createdConfigs(view.topic(wanted[i].Configs))
	}
	return out
}

// newTopic turns the wire's form into the controller's, as far as the controller cannot see what is wrong with it.
func newTopic(t *kmsg.CreateTopicsRequestTopic) (meta.NewTopic, *refusal) {
	out := meta.NewTopic{Name: t.Topic, Partitions: t.NumPartitions, ReplicationFactor: t.ReplicationFactor, Configs: make(map[string]string, len(t.Configs))}
	for _, a := range t.ReplicaAssignment {
		if out.Assignments == nil {
			out.Assignments = make(map[int32][]meta.NodeID, len(t.ReplicaAssignment))
		}
		if _, twice := out.Assignments[a.Partition]; twice {
			return out, refuse(meta.CodeInvalidReplicaAssignment, "Partition %d is assigned twice.", a.Partition)
		}
		out.Assignments[a.Partition] = nodeIDs(a.Replicas)
	}
	for _, c := range t.Configs {
		if c.Value == nil {
			return out, refuse(codeInvalidConfig, "Null value not supported for topic configs: %s", c.Name)
		}
		if err := meta.ValidateTopicConfig(c.Name, *c.Value); err != nil && meta.ValidateTopicName(t.Topic) == nil {
			return out, refuse(codeInvalidConfig, "%s", err)
		}
		out.Configs[c.Name] = *c.Value
	}
	return out, nil
}

func nodeIDs(ids []int32) []meta.NodeID {
	out := make([]meta.NodeID, len(ids))
	for i, id := range ids {
		out[i] = meta.NodeID(id)
	}
	return out
}

// createdTopic is an answer to be filled in; it has no partitions unless the topic is created.
func createdTopic(name string, refused *refusal) kmsg.CreateTopicsResponseTopic {
	answer := kmsg.NewCreateTopicsResponseTopic()
	answer.Topic, answer.NumPartitions, answer.ReplicationFactor = name, -1, -1
	refused.put(&answer.ErrorCode, &answer.ErrorMessage)
	return answer
}

func createdConfigs(entries []entry) []kmsg.CreateTopicsResponseTopicConfig {
	out := make([]kmsg.CreateTopicsResponseTopicConfig, len(entries))
	for i, e := range entries {
		c := kmsg.NewCreateTopicsResponseTopicConfig()
		c.Name, c.Value, c.Source, c.IsSensitive = e.key.Name, e.value, int8(e.source), e.key.Sensitive
		out[i] = c
	}
	return out
}
