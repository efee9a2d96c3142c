package group

import (
	"fmt"
	"testing"
	"time"
)

// TestMembersAreBoundedTogether lets clients make groups and members without end: from some point on they are turned away, and whoever is in stays in and
// may join again; when members leave there is room again.
func TestMembersAreBoundedTogether(t *testing.T) {
	ids := 0
	c := New(Config{TotalBytes: 1 << 20, NewID: func() string { ids++; return fmt.Sprint(ids) }})
	now := time.Unix(1000, 0)
	c.Step(now, Loaded{})
	join := func(group, member string, bytes int) JoinResponse {
		out := c.Step(now, Join{
			Ticket: 1, Group: group, MemberID: member, ClientID: "c", ProtocolType: ConsumerProtocol, Session: 10 * time.Second,
			Protocols: []Protocol{{Name: "range", Metadata: make([]byte, bytes)}},
		})
		for _, a := range out.Answers {
			if r, ok := a.Response.(JoinResponse); ok {
				return r
			}
		}
		return JoinResponse{Code: None}
	}
	first := join("g0", "", 1000)
	if first.Code != None {
		t.Fatalf("the first join is answered %d", first.Code)
	}
	taken := 1
	for ; taken < 10_000; taken++ {
		if join(fmt.Sprintf("g%d", taken), "", 10_000).Code == GroupMaxSizeReached {
			break
		}
	}
	if taken < 50 || taken > 1<<20/10_000 {
		t.Fatalf("%d members were taken", taken)
	}
	groups := len(c.groups)
	for i := range 100 {
		join(fmt.Sprintf("late%d", i), "", 10_000)
	}
	if len(c.groups) != groups {
		t.Errorf("%d groups are left of members that were turned away", len(c.groups)-groups)
	}
	if code := join("g0", first.MemberID, 1000).Code; code == GroupMaxSizeReached {
		t.Error("a member that is in was turned away")
	}
	for i := range taken {
		c.Step(now, Leave{Ticket: 2, Group: fmt.Sprintf("g%d", i), Members: []LeaveMember{{MemberID: fmt.Sprintf("c-%d", i+1)}}})
	}
	if c.weight != 0 || c.stats.Members != 0 {
		t.Errorf("%d members weigh %d after all have left", c.stats.Members, c.weight)
	}
	if code := join("again", "", 10_000).Code; code != None {
		t.Errorf("join is answered %d though there is room", code)
	}
}

// TestHandedOutIDsAreBounded asks for member ids without ever using one.
func TestHandedOutIDsAreBounded(t *testing.T) {
	ids := 0
	c := New(Config{TotalBytes: 100 << 10, NewID: func() string { ids++; return fmt.Sprint(ids) }})
	now := time.Unix(1000, 0)
	c.Step(now, Loaded{})
	for range 10_000 {
		c.Step(now, Join{
			Ticket: 1, Group: "g", ClientID: "c", ProtocolType: ConsumerProtocol, Session: 10 * time.Second, RequireMemberID: true,
			Protocols: []Protocol{{Name: "range"}},
		})
	}
	if c.handed == 0 || c.handed > 100<<10/handedOverhead {
		t.Errorf("%d ids are handed out", c.handed)
	}
	c.Step(now.Add(time.Minute), Tick{})
	if c.handed != 0 || len(c.groups) != 0 {
		t.Errorf("%d ids and %d groups are left after their time", c.handed, len(c.groups))
	}
}
