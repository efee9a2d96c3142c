package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// LeaveGroup (13), versions 0 to 5: members leave. From 3 on many at once, static ones also by their instance id alone (KIP-345).
func init() { register(13, 0, 5, (*Broker).handleLeaveGroup) }

func (b *Broker) handleLeaveGroup(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.LeaveGroupRequest)
	members := leavers(r.Version, req)
	q := b.groups().ask(ctx, req.Group, func(t group.Ticket) group.Event {
		return group.Leave{Ticket: t, Group: req.Group, Members: members}
	})
	return func(ctx context.Context) kafka.Response {
		a := waitFor(ctx, q, func(code group.Code) group.LeaveResponse { return group.LeaveResponse{Code: code} })
		return leaveResponse(r.Version, members, a)
	}
}

func leavers(version int16, req *kmsg.LeaveGroupRequest) []group.LeaveMember {
	if version < 3 {
		return []group.LeaveMember{{MemberID: req.MemberID}}
	}
	members := make([]group.LeaveMember, 0, len(req.Members))
	for _, m := range req.Members {
		members = append(members, group.LeaveMember{MemberID: m.MemberID, InstanceID: text(m.InstanceID)})
	}
	return members
}

func leaveResponse(version int16, members []group.LeaveMember, a group.LeaveResponse) *kmsg.LeaveGroupResponse {
	resp := kmsg.NewPtrLeaveGroupResponse()
	resp.ErrorCode = int16(a.Code)
	if a.Code != group.None {
		return resp
	}
	if version < 3 {
		resp.ErrorCode = int16(a.Codes[0])
		return resp
	}
	for i, m := range members {
		member := kmsg.NewLeaveGroupResponseMember()
		member.MemberID, member.InstanceID, member.ErrorCode = m.MemberID, textOrNull(m.InstanceID), int16(a.Codes[i])
		resp.Members = append(resp.Members, member)
	}
	return resp
}
