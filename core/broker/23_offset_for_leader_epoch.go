package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
)

// OffsetForLeaderEpoch (23), versions 2 to 4.
//
// Tells where the records of a leader epoch end, so that a client can find out whether its log was cut (KIP-279, KIP-320). Here none ever is: the answer comes from
// the leader after it has verified that it leads, and is never below an offset that was acknowledged in that epoch.
func init() { register(23, 2, 4, (*Broker).handleOffsetForLeaderEpoch) }

func (b *Broker) handleOffsetForLeaderEpoch(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.OffsetForLeaderEpochRequest)
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := context.WithTimeout(ctx, listOffsetsTimeout)
		defer cancel()
		resp, v := kmsg.NewPtrOffsetForLeaderEpochResponse(), newVerified()
		for i := range req.Topics {
			out := kmsg.NewOffsetForLeaderEpochResponseTopic()
			out.Topic = req.Topics[i].Topic
			for j := range req.Topics[i].Partitions {
				out.Partitions = append(out.Partitions, b.epochEnd(ctx, v, out.Topic, &req.Topics[i].Partitions[j]))
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp
	}
}

func (b *Broker) epochEnd(ctx context.Context, v verified, name string, in *kmsg.OffsetForLeaderEpochRequestTopicPartition) kmsg.OffsetForLeaderEpochResponseTopicPartition {
	out := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
	out.Partition, out.LeaderEpoch, out.EndOffset = in.Partition, -1, -1
	p, epoch, code := b.verifiedLeader(ctx, v, name, in.Partition, in.CurrentLeaderEpoch)
	out.ErrorCode = code
	b.metrics.failed("OffsetForLeaderEpoch", code)
	switch {
	case code != codeNone || in.LeaderEpoch < 0 || in.LeaderEpoch > epoch:
	case in.LeaderEpoch == epoch:
		out.LeaderEpoch, out.EndOffset = epoch, p.End()
	default:
		out.LeaderEpoch, out.EndOffset = p.EpochEnd(in.LeaderEpoch)
	}
	return out
}
