package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// DeleteGroups (42), versions 0 to 2: groups without members go, with their offsets (KIP-229).
func init() { register(42, 0, 2, (*Broker).handleDeleteGroups) }

func (b *Broker) handleDeleteGroups(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DeleteGroupsRequest)
	questions := make([]*question, len(req.Groups))
	for i, id := range req.Groups {
		questions[i] = b.groups().ask(ctx, id, func(t group.Ticket) group.Event { return group.Delete{Ticket: t, Group: id} })
	}
	return func(ctx context.Context) kafka.Response {
		resp := kmsg.NewPtrDeleteGroupsResponse()
		for i, q := range questions {
			a := waitForVerified(ctx, q, func(code group.Code) group.DeleteResponse { return group.DeleteResponse{Code: code} })
			g := kmsg.NewDeleteGroupsResponseGroup()
			g.Group, g.ErrorCode = req.Groups[i], int16(a.Code)
			resp.Groups = append(resp.Groups, g)
		}
		return resp
	}
}
