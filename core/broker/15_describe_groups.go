package broker

import (
	"context"
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// DescribeGroups (15), versions 0 to 6: state and members of groups. An unknown group is Dead, from 6 on with GROUP_ID_NOT_FOUND (KIP-1043).
func init() { register(15, 0, 6, (*Broker).handleDescribeGroups) }

// groupOperations is what may be done with a group, as bits of Kafka's AclOperation: read, delete, describe, describe and alter its configuration.
const groupOperations = 1<<3 | 1<<6 | 1<<8 | 1<<10 | 1<<11

func (b *Broker) handleDescribeGroups(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DescribeGroupsRequest)
	questions := make([]*question, len(req.Groups))
	for i, id := range req.Groups {
		questions[i] = b.groups().ask(ctx, id, func(t group.Ticket) group.Event { return group.Describe{Ticket: t, Group: id} })
	}
	return func(ctx context.Context) kafka.Response {
		resp := kmsg.NewPtrDescribeGroupsResponse()
		for i, q := range questions {
			a := waitForVerified(ctx, q, func(code group.Code) group.DescribeResponse {
				return group.DescribeResponse{Code: code, State: group.Dead}
			})
			resp.Groups = append(resp.Groups, describedGroup(r.Version, req, i, a))
		}
		return resp
	}
}

func describedGroup(version int16, req *kmsg.DescribeGroupsRequest, i int, a group.DescribeResponse) kmsg.DescribeGroupsResponseGroup {
	g := kmsg.NewDescribeGroupsResponseGroup()
	g.Group, g.ErrorCode, g.AuthorizedOperations = req.Groups[i], int16(a.Code), math.MinInt32
	switch {
	case a.Code == group.GroupIDNotFound && version < 6:
		g.ErrorCode = 0
		g.State = a.State.String()
	case a.Code == group.GroupIDNotFound:
		why := fmt.Sprintf("Group %s not found.", req.Groups[i])
		g.ErrorMessage, g.State = &why, a.State.String()
	case a.Code == group.None:
		g.State = a.State.String()
	}
	if req.IncludeAuthorizedOperations && g.ErrorCode == 0 {
		g.AuthorizedOperations = groupOperations
	}
	g.ProtocolType, g.Protocol = a.ProtocolType, a.Protocol
	for _, m := range a.Members {
		member := kmsg.NewDescribeGroupsResponseGroupMember()
		member.MemberID, member.InstanceID, member.ClientID, member.ClientHost = m.MemberID, textOrNull(m.InstanceID), m.ClientID, m.ClientHost
		member.ProtocolMetadata, member.MemberAssignment = m.Metadata, m.Assignment
		g.Members = append(g.Members, member)
	}
	return g
}
