package broker

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/controller"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// AlterPartitionReassignments v0 to v1 (KIP-455). A partition is put into the shard with exactly the replicas asked for, which is made when there is
// none; null replicas cancel what is under way. The answer comes when the move has begun: ListPartitionReassignments tells when it is over.
//
// v1: allow_replication_factor_change (KIP-860).
func init() { register(45, 0, 1, (*Broker).handleAlterReassignments) }

func (b *Broker) handleAlterReassignments(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.AlterPartitionAssignmentsRequest)
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := adminContext(ctx, req.TimeoutMillis)
		defer cancel()
		resp := req.ResponseKind().(*kmsg.AlterPartitionAssignmentsResponse)
		allow := req.Version < 1 || req.AllowReplicationFactorChange
		resp.AllowReplicationFactorChange = allow
		errs := b.ctl.Reassign(ctx, reassignments(req), !allow)
		for _, t := range req.Topics {
			topic := kmsg.NewAlterPartitionAssignmentsResponseTopic()
			topic.Topic = t.Topic
			for _, p := range t.Partitions {
				answer := kmsg.NewAlterPartitionAssignmentsResponseTopicPartition()
				answer.Partition = p.Partition
				refusalOf(errs[0]).put(&answer.ErrorCode, &answer.ErrorMessage)
				b.metrics.failed("AlterPartitionReassignments", answer.ErrorCode)
				errs = errs[1:]
				topic.Partitions = append(topic.Partitions, answer)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp
	}
}

// reassignments lists what a request asks for, in its order.
func reassignments(req *kmsg.AlterPartitionAssignmentsRequest) []controller.Reassignment {
	var out []controller.Reassignment
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			out = append(out, controller.Reassignment{
				Topic: t.Topic, Index: p.Partition, Replicas: nodeIDs(p.Replicas), Cancel: p.Replicas == nil,
			})
		}
	}
	return out
}

// replicasOf returns the replicas that clients are told: while a partition moves, those it will have and then those that it will no longer have.
func replicasOf(image *meta.Image, p *meta.Partition) []meta.Server {
	var here, to []meta.Server
	if s := image.Shard(p.Shard); s != nil {
		here = s.Voters
	}
	if p.Move == nil {
		return here
	}
	if s := image.Shard(p.Move.To); s != nil {
		to = s.Voters
	}
	return append(slices.Clone(to), without(here, to)...)
}

// without returns the servers of a list whose nodes are not in another.
func without(list, other []meta.Server) []meta.Server {
	return slices.DeleteFunc(slices.Clone(list), func(s meta.Server) bool {
		return slices.ContainsFunc(other, func(o meta.Server) bool { return o.Node == s.Node })
	})
}
