package broker

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/kafka"
)

// ListGroups (16), versions 0 to 5: the groups that this node coordinates; clients ask all nodes. From 4 on filtered by state (KIP-518),
// from 5 on by type (KIP-848), of which there is one in this release.
func init() { register(16, 0, 5, (*Broker).handleListGroups) }

const groupTypeClassic = "classic"

func (b *Broker) handleListGroups(ctx context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.ListGroupsRequest)
	var questions []*question
	code := group.None
	for _, s := range b.groups().all() {
		current, absent := s.session()
		if current == nil {
			if absent == group.CoordinatorLoadInProgress {
				code = absent
			}
			continue
		}
		questions = append(questions, current.ask(ctx, func(t group.Ticket) group.Event { return group.List{Ticket: t} }))
	}
	return func(ctx context.Context) kafka.Response {
		resp := kmsg.NewPtrListGroupsResponse()
		for _, q := range questions {
			a, refused := q.waitVerified(ctx)
			if refused != group.None {
				continue // another node has these groups now and will list them
			}
			for _, g := range a.(group.ListResponse).Groups {
				if wanted(req, g) {
					resp.Groups = append(resp.Groups, listedGroup(g))
				}
			}
		}
		resp.ErrorCode = int16(code)
		return resp
	}
}

func listedGroup(g group.Listed) kmsg.ListGroupsResponseGroup {
	l := kmsg.NewListGroupsResponseGroup()
	l.Group, l.ProtocolType, l.GroupState, l.GroupType = g.Group, g.ProtocolType, g.State.String(), groupTypeClassic
	return l
}

func wanted(req *kmsg.ListGroupsRequest, g group.Listed) bool {
	return among(req.StatesFilter, g.State.String()) && among(req.TypesFilter, groupTypeClassic)
}

// among tells whether a filter lets the name through; an empty one lets everything.
func among(filter []string, name string) bool {
	return len(filter) == 0 || slices.ContainsFunc(filter, func(s string) bool { return lower(s) == lower(name) })
}
