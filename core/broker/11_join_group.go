package broker

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// JoinGroup (11), versions 0 to 9: become or stay a member. From 4 on a new dynamic member is told its id first (KIP-394), from 5 on there
// are static members (KIP-345), from 9 on a static leader that comes back is told to skip the assignment (KIP-814).
func init() { register(11, 0, 9, (*Broker).handleJoinGroup) }

func (b *Broker) handleJoinGroup(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.JoinGroupRequest)
	q := b.groups().askToKeep(ctx, req.Group, func(t group.Ticket) group.Event { return joinEvent(t, r, req) })
	return func(ctx context.Context) kafka.Response {
		a := waitFor(ctx, q, func(code group.Code) group.JoinResponse {
			return group.JoinResponse{Code: code, Generation: -1, MemberID: req.MemberID}
		})
		return joinResponse(r.Version, a)
	}
}

// joinEvent copies what the group keeps: the request's bytes belong to its frame, which may be large.
func joinEvent(t group.Ticket, r *kafka.Request, req *kmsg.JoinGroupRequest) group.Event {
	e := group.Join{
		Ticket: t, Group: req.Group, MemberID: req.MemberID, InstanceID: text(req.InstanceID),
		ClientID: strings.Clone(r.ClientID), ClientHost: "/" + r.Conn.Host(), ProtocolType: req.ProtocolType,
		Session: milliseconds(req.SessionTimeoutMillis), Rebalance: milliseconds(req.RebalanceTimeoutMillis),
		RequireMemberID: r.Version >= 4, SkipAssignment: r.Version >= 9,
	}
	for _, p := range req.Protocols {
		e.Protocols = append(e.Protocols, group.Protocol{Name: p.Name, Metadata: bytes.Clone(p.Metadata)})
	}
	return e
}

func joinResponse(version int16, a group.JoinResponse) *kmsg.JoinGroupResponse {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.ErrorCode, resp.Generation, resp.LeaderID, resp.MemberID = int16(a.Code), a.Generation, a.Leader, a.MemberID
	resp.ProtocolType, resp.Protocol, resp.SkipAssignment = textOrNull(a.ProtocolType), textOrNull(a.Protocol), a.SkipAssignment
	if version < 7 {
		resp.Protocol = &a.Protocol
	}
	for _, m := range a.Members {
		member := kmsg.NewJoinGroupResponseMember()
		member.MemberID, member.InstanceID, member.ProtocolMetadata = m.MemberID, textOrNull(m.InstanceID), m.Metadata
		resp.Members = append(resp.Members, member)
	}
	return resp
}

func milliseconds(n int32) time.Duration { return time.Duration(n) * time.Millisecond }

// text and textOrNull turn Kafka's nullable strings into plain ones, where nobody says an empty one, and back.
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
