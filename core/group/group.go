// Package group is the group coordinator of one partition of __consumer_offsets as a pure state
// machine: the classic group protocol (joining, syncing, heartbeats, leaving, static members,
// cooperative and opaque protocols) and the committed offsets of groups.
//
// It guarantees that equal events at equal times give equal effects, that every joining or syncing
// member is answered once, that the generation of a group never goes back, and that replaying the
// records it asked to be written gives the state that it answered from.
//
// It does not read a clock, start a goroutine, touch a disk or a socket, and it does not know
// whether its records were committed: the loop that feeds it (core/broker) writes them, holds
// answers back until they are committed, and rebuilds the machine from the log when a write fails.
package group

import (
	"time"
)

// State is the state of a classic group, in Kafka's words.
type State int8

// The states of a group. Dead is only ever described: a dead group is forgotten at once.
const (
	Empty State = iota
	PreparingRebalance
	CompletingRebalance
	Stable
	Dead
	states
)

// String returns the name that DescribeGroups and ListGroups show.
func (s State) String() string {
	switch s {
	case Empty:
		return "Empty"
	case PreparingRebalance:
		return "PreparingRebalance"
	case CompletingRebalance:
		return "CompletingRebalance"
	case Stable:
		return "Stable"
	case Dead:
		return "Dead"
	}
	panic("BUG: unknown group state")
}

// ConsumerProtocol is the protocol type of groups whose subscriptions the coordinator can read.
const ConsumerProtocol = "consumer"

// group is one group: its members if it has any, and its committed offsets.
type group struct {
	id       string
	state    State
	previous State
	since    time.Time // of the state, written with the group's record

	protocolType string // empty: a simple group, that only stores offsets
	protocol     string // of the present generation; empty: none chosen
	generation   int32
	leader       string // member id, empty: none
	recorded     bool   // the log holds a record of the group's metadata

	members     []*member // in the order of joining
	byID        map[string]*member
	static      map[string]string // instance id to member id
	pending     map[string]*timer // member ids that were handed out and have not joined yet
	joining     int               // members whose JoinGroup waits
	syncPending map[string]struct{}
	grew        bool // a member joined since the initial delay was last extended

	joinTimer *timer
	syncTimer *timer
	delay     initialDelay

	subscribed map[string]struct{} // topics of all members; nil: not known
	offsets    map[string]map[int32]Offset
}

// initialDelay is what remains of the wait for further members of an empty group.
type initialDelay struct{ step, remaining time.Duration }

// member is one member of a group.
type member struct {
	id         string
	instanceID string
	clientID   string
	clientHost string
	session    time.Duration
	rebalance  time.Duration
	protocols  []Protocol // in the member's order of preference
	assignment []byte
	weight     int // as counted by its coordinator

	isNew bool // has not got its first JoinGroup answer yet
	join  Ticket
	sync  Ticket
	timer *timer
}

func newGroup(id string, now time.Time) *group {
	return &group{
		id: id, since: now,
		byID:        map[string]*member{},
		static:      map[string]string{},
		pending:     map[string]*timer{},
		syncPending: map[string]struct{}{},
		offsets:     map[string]map[int32]Offset{},
	}
}

// idle tells whether nothing is left that makes the group worth remembering.
func (g *group) idle() bool {
	return g.state == Empty && len(g.pending) == 0 && len(g.offsets) == 0
}

// code checks who speaks: a member by its id, a static member also by its instance id (KIP-345).
func (g *group) identify(memberID, instanceID string) (*member, Code) {
	if instanceID != "" {
		id, ok := g.static[instanceID]
		if !ok {
			return nil, UnknownMemberID
		}
		if id != memberID {
			return nil, FencedInstanceID
		}
	}
	m, ok := g.byID[memberID]
	if !ok {
		return nil, UnknownMemberID
	}
	return m, None
}

// allJoined tells whether nobody is missing for the next generation.
func (g *group) allJoined() bool {
	return g.joining == len(g.members) && len(g.pending) == 0
}

// rebalanceTimeout is the longest that any member asked for.
func (g *group) rebalanceTimeout() time.Duration {
	var longest time.Duration
	for _, m := range g.members {
		longest = max(longest, m.rebalance)
	}
	return longest
}

// supports tells whether a member with these protocols may be in the group: the same type, and
// at least one protocol that all present members know.
func (g *group) supports(protocolType string, protocols []Protocol) bool {
	if g.state == Empty {
		return protocolType != "" && len(protocols) > 0
	}
	if g.protocolType != protocolType {
		return false
	}
	for _, p := range protocols {
		if g.allKnow(p.Name) {
			return true
		}
	}
	return false
}

func (g *group) allKnow(protocol string) bool {
	for _, m := range g.members {
		if _, ok := m.metadata(protocol); !ok {
			return false
		}
	}
	return true
}

// choose returns the protocol of the next generation: of those that all members know the one with
// the most votes, each member voting for its first; the earlier candidate wins a tie.
func (g *group) choose() string {
	var candidates []string
	for _, p := range g.members[0].protocols {
		if g.allKnow(p.Name) {
			candidates = append(candidates, p.Name)
		}
	}
	if len(candidates) == 0 {
		panic("BUG: members of a group without a common protocol")
	}
	votes := map[string]int{}
	for _, m := range g.members {
		votes[m.vote(candidates)]++
	}
	best := candidates[0]
	for _, c := range candidates[1:] {
		if votes[c] > votes[best] {
			best = c
		}
	}
	return best
}

// metadata returns what the member said under this protocol.
func (m *member) metadata(protocol string) ([]byte, bool) {
	for _, p := range m.protocols {
		if p.Name == protocol {
			return p.Metadata, true
		}
	}
	return nil, false
}

// vote returns the first of the member's protocols that is a candidate.
func (m *member) vote(candidates []string) string {
	for _, p := range m.protocols {
		for _, c := range candidates {
			if p.Name == c {
				return c
			}
		}
	}
	panic("BUG: member knows none of the candidates")
}

// matches tells whether the member says again what it said before.
func (m *member) matches(protocols []Protocol) bool {
	if len(m.protocols) != len(protocols) {
		return false
	}
	for i, p := range m.protocols {
		if p.Name != protocols[i].Name || string(p.Metadata) != string(protocols[i].Metadata) {
			return false
		}
	}
	return true
}

// insert adds a member that is not in the group yet.
func (g *group) insert(m *member, protocolType string) {
	if _, ok := g.byID[m.id]; ok {
		panic("BUG: member is in the group already")
	}
	if len(g.members) == 0 {
		g.protocolType = protocolType
	}
	if g.leader == "" {
		g.leader = m.id
	}
	g.members = append(g.members, m)
	g.byID[m.id] = m
	if m.instanceID != "" {
		g.static[m.instanceID] = m.id
	}
}
