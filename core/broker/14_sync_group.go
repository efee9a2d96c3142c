package broker

import (
	"bytes"
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// SyncGroup (14), versions 0 to 5: the leader brings everybody's assignment, each member takes its own. From 5 on type and name of the
// protocol are checked (KIP-559).
func init() { register(14, 0, 5, (*Broker).handleSyncGroup) }

func (b *Broker) handleSyncGroup(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.SyncGroupRequest)
	q := b.groups().ask(ctx, req.Group, func(t group.Ticket) group.Event { return syncEvent(t, req) })
	return func(ctx context.Context) kafka.Response {
		a := waitForVerified(ctx, q, func(code group.Code) group.SyncResponse { return group.SyncResponse{Code: code} })
		resp := kmsg.NewPtrSyncGroupResponse()
		resp.ErrorCode, resp.MemberAssignment = int16(a.Code), a.Assignment
		resp.ProtocolType, resp.Protocol = textOrNull(a.ProtocolType), textOrNull(a.Protocol)
		return resp
	}
}

// syncEvent copies the assignments: the request's bytes belong to its frame.
func syncEvent(t group.Ticket, req *kmsg.SyncGroupRequest) group.Event {
	e := group.Sync{
		Ticket: t, Group: req.Group, Generation: req.Generation, MemberID: req.MemberID, InstanceID: text(req.InstanceID),
		ProtocolType: text(req.ProtocolType), Protocol: text(req.Protocol), Assignments: make(map[string][]byte, len(req.GroupAssignment)),
	}
	for _, a := range req.GroupAssignment {
		e.Assignments[a.MemberID] = bytes.Clone(a.MemberAssignment)
	}
	return e
}
