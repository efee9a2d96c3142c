package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// CreatePartitions v0 to v3 (KIP-195): count is how many partitions the topic shall have in all. Every topic of the request is answered.
func init() { register(37, 0, 3, (*Broker).handleCreatePartitions) }

func (b *Broker) handleCreatePartitions(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.CreatePartitionsRequest)
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := adminContext(ctx, req.TimeoutMillis)
		defer cancel()
		resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
		twice := duplicates(req.Topics, func(t kmsg.CreatePartitionsRequestTopic) string { return t.Topic })
		answered := make(map[string]bool, len(req.Topics))
		for _, t := range req.Topics {
			if answered[t.Topic] {
				continue
			}
			answered[t.Topic] = true
			answer := kmsg.NewCreatePartitionsResponseTopic()
			answer.Topic = t.Topic
			refused := refuse(codeInvalidRequest, "Duplicate topic in request.")
			if !twice[t.Topic] {
				refused = refusalOf(b.ctl.CreatePartitions(ctx, t.Topic, t.Count, newAssignments(t.Assignment), req.ValidateOnly))
			}
			refused.put(&answer.ErrorCode, &answer.ErrorMessage)
			resp.Topics = append(resp.Topics, answer)
		}
		return resp
	}
}

func newAssignments(list []kmsg.CreatePartitionsRequestTopicAssignment) [][]meta.NodeID {
	if list == nil {
		return nil
	}
	out := make([][]meta.NodeID, len(list))
	for i, a := range list {
		out[i] = nodeIDs(a.Replicas)
	}
	return out
}
