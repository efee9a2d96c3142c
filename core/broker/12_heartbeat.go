package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// Heartbeat (12), versions 0 to 4: a member lives. While the coordinator reads its log every heartbeat is good: sessions begin when it is done.
func init() { register(12, 0, 4, (*Broker).handleHeartbeat) }

func (b *Broker) handleHeartbeat(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.HeartbeatRequest)
	q := b.groups().ask(ctx, req.Group, func(t group.Ticket) group.Event {
		return group.Heartbeat{
			Ticket: t, Group: req.Group, Generation: req.Generation, MemberID: req.MemberID, InstanceID: text(req.InstanceID),
		}
	})
	return func(ctx context.Context) kafka.Response {
		a := waitFor(ctx, q, func(code group.Code) group.HeartbeatResponse { return group.HeartbeatResponse{Code: code} })
		if a.Code == group.CoordinatorLoadInProgress {
			a.Code = group.None
		}
		resp := kmsg.NewPtrHeartbeatResponse()
		resp.ErrorCode = int16(a.Code)
		return resp
	}
}
