package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// FindCoordinator (10), versions 0 to 6: who has a group. From 4 on for many at once (KIP-699). Transactions (type 1) and share groups
// (type 2, from 6 on) have no coordinators in this release, and that is said; nothing else of them is advertised either.
func init() { register(10, 0, 6, (*Broker).handleFindCoordinator) }

// coordinatorGroup is the type of coordinator that is for groups.
const coordinatorGroup = 0

func (b *Broker) handleFindCoordinator(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.FindCoordinatorRequest)
	return func(ctx context.Context) kafka.Response {
		resp := kmsg.NewPtrFindCoordinatorResponse()
		if r.Version >= 4 {
			for _, key := range req.CoordinatorKeys {
				resp.Coordinators = append(resp.Coordinators, b.findCoordinator(ctx, req.CoordinatorType, key))
			}
			return resp
		}
		c := b.findCoordinator(ctx, req.CoordinatorType, req.CoordinatorKey)
		resp.ErrorCode, resp.ErrorMessage, resp.NodeID, resp.Host, resp.Port = c.ErrorCode, c.ErrorMessage, c.NodeID, c.Host, c.Port
		return resp
	}
}

func (b *Broker) findCoordinator(ctx context.Context, kind int8, key string) kmsg.FindCoordinatorResponseCoordinator {
	c := kmsg.NewFindCoordinatorResponseCoordinator()
	c.Key, c.NodeID, c.Port = key, int32(meta.NoNode), -1
	refuse := func(code int16, why string) kmsg.FindCoordinatorResponseCoordinator {
		c.ErrorCode, c.ErrorMessage = code, &why
		return c
	}
	if kind != coordinatorGroup {
		return refuse(kerr.InvalidRequest.Code, "Transactions and share groups are not available in this release; use consumer groups.")
	}
	topic, err := b.groups().ensureTopic(ctx)
	if err != nil {
		return refuse(int16(group.CoordinatorNotAvailable), err.Error())
	}
	p := topic.Partitions[coordinatorPartition(key, len(topic.Partitions))]
	id, _, ok := b.ctl.LeaderOf(p.Shard)
	node, known := b.ctl.Image().Node(id)
	if !ok || !known {
		return refuse(int16(group.CoordinatorNotAvailable), "The group's partition of __consumer_offsets has no leader now.")
	}
	c.NodeID, c.Host, c.Port = int32(id), node.KafkaHost, node.KafkaPort
	return c
}
