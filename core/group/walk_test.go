package group

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// walkGroups, walkClients: few, so that they meet.
const (
	walkGroups  = 2
	walkClients = 5
)

// client is what a client of the walk believes.
type client struct {
	name       string
	group      string
	instance   string
	member     string
	generation int32
	leader     bool
	others     []JoinMember
	waiting    Ticket // of a JoinGroup or SyncGroup
}

// walk is the model beside the machine.
type walk struct {
	t       *rapid.T
	config  Config
	machine *Coordinator
	now     time.Time
	log     []Record
	clients []*client
	ids     int
	ticket  Ticket
	open    map[Ticket]Event
	newest  map[string]int32  // generation by group
	again   *Restatement      // under way
	from    int               // where the log ended when it began
	chosen  map[string]string // protocol by group and generation
	offsets map[string]int64  // what fetch must answer
}

func TestWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWalk(t)
		t.Repeat(map[string]func(*rapid.T){
			"":     func(t *rapid.T) { w.check() },
			"join": func(t *rapid.T) { w.join(w.pick(t), rapid.IntRange(3, 9).Draw(t, "version")) },
			"sync": func(t *rapid.T) { w.sync(w.pick(t)) },
			"meet": func(t *rapid.T) { w.meet(t, w.pick(t).group) },
			"heartbeat": func(t *rapid.T) {
				c := w.pick(t)
				w.ask(Heartbeat{Ticket: w.next(), Group: c.group, Generation: c.generation, MemberID: c.member, InstanceID: c.instance})
			},
			"leave":   func(t *rapid.T) { w.leave(w.pick(t)) },
			"commit":  func(t *rapid.T) { w.commit(w.pick(t), rapid.Int64Range(0, 9).Draw(t, "offset")) },
			"forget":  func(t *rapid.T) { w.pick(t).forget() },
			"advance": func(t *rapid.T) { w.advance(time.Duration(rapid.IntRange(1, 8000).Draw(t, "ms")) * time.Millisecond) },
			"clean":   func(t *rapid.T) { w.act(Clean{}) },
			"delete":  func(t *rapid.T) { w.delete(w.pick(t)) },
			"restart": func(t *rapid.T) { w.restart() },
			"restate": func(t *rapid.T) { w.restate() },
		})
		w.finish()
	})
}

func newWalk(t *rapid.T) *walk {
	w := &walk{
		t: t, now: time.UnixMilli(1_000_000), open: map[Ticket]Event{}, newest: map[string]int32{}, chosen: map[string]string{},
		offsets: map[string]int64{},
	}
	w.config = Config{
		InitialDelay: time.Duration(rapid.IntRange(0, 2).Draw(t, "delay")) * time.Second,
		MaxSize:      rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "max"),
		NewID:        func() string { w.ids++; return fmt.Sprint(w.ids) },
	}
	w.machine = New(w.config)
	for i := range walkClients {
		c := &client{name: string(rune('a' + i)), group: fmt.Sprint("g", i%walkGroups)}
		if rapid.Bool().Draw(t, "static") {
			c.instance = "i" + c.name
		}
		w.clients = append(w.clients, c)
	}
	return w
}

func (w *walk) pick(t *rapid.T) *client { return rapid.SampledFrom(w.clients).Draw(t, "client") }

func (w *walk) next() Ticket { w.ticket++; return w.ticket }

// forget is what a client's restart does.
func (c *client) forget() {
	c.member, c.generation, c.leader, c.waiting, c.others = "", -1, false, 0, nil
}

func (w *walk) join(c *client, version int) {
	if c.waiting != 0 && version%2 == 0 {
		return // a second request while one waits is rare, but comes
	}
	topics := "t"
	if version == 5 {
		topics = "t+u"
	}
	e := Join{
		Ticket: w.next(), Group: c.group, MemberID: c.member, InstanceID: c.instance, ClientID: c.name, ClientHost: "/h",
		ProtocolType: ConsumerProtocol, Protocols: protocols("range:" + topics + ",sticky:t"), Session: 6 * time.Second, Rebalance: 9 * time.Second,
		RequireMemberID: version >= 4, SkipAssignment: version >= 9,
	}
	if version == 7 {
		slices.Reverse(e.Protocols)
	}
	c.waiting = e.Ticket
	w.ask(e)
}

// meet has most clients of a group do what well-behaved clients do, in some order, so that walks get to groups that are stable and well attended.
func (w *walk) meet(t *rapid.T, group string) {
	for range 3 {
		for _, i := range rapid.Permutation([]int{0, 1, 2, 3, 4}).Draw(t, "order") {
			c := w.clients[i]
			g := w.machine.groups[group]
			switch {
			case c.group != group || c.waiting != 0 || rapid.IntRange(0, 9).Draw(t, "absent") == 0:
			case g == nil || c.member == "" || g.byID[c.member] == nil || g.state == PreparingRebalance || c.generation != g.generation:
				w.join(c, rapid.IntRange(3, 9).Draw(t, "version"))
			case g.state == CompletingRebalance:
				w.sync(c)
			}
		}
	}
}

// sync brings an assignment for everybody when the client takes itself for the leader.
func (w *walk) sync(c *client) {
	e := Sync{Ticket: w.next(), Group: c.group, Generation: c.generation, MemberID: c.member, InstanceID: c.instance, Assignments: map[string][]byte{}}
	if c.leader {
		for _, m := range c.others {
			e.Assignments[m.MemberID] = fmt.Appendf(nil, "gen %d", c.generation)
		}
	}
	c.waiting = e.Ticket
	w.ask(e)
}

func (w *walk) leave(c *client) {
	w.ask(Leave{Ticket: w.next(), Group: c.group, Members: []LeaveMember{{c.member, c.instance}}})
	c.forget()
}

func (w *walk) commit(c *client, offset int64) {
	e := Commit{
		Ticket: w.next(), Group: c.group, Generation: c.generation, MemberID: c.member, InstanceID: c.instance, Retention: -1,
		Offsets: []CommitOffset{{Partition: Partition{"t", 0}, Offset: offset}}, NotFoundCode: GroupIDNotFound,
	}
	w.ask(e)
}

func (w *walk) delete(c *client) { w.ask(Delete{w.next(), c.group}) }

// ask steps the machine with an event that must be answered, act with one that is not.
func (w *walk) ask(e Event) {
	w.open[w.ticket] = e
	w.act(e)
}

func (w *walk) act(e Event) {
	effects := w.machine.Step(w.now, e)
	w.log = append(w.log, effects.Records...)
	for _, a := range effects.Answers {
		w.learn(a)
	}
	w.bury()
}

// bury forgets what the model knows of groups that are gone: one of the same name begins anew.
func (w *walk) bury() {
	for id := range w.newest {
		if w.machine.groups[id] == nil {
			delete(w.newest, id)
			maps.DeleteFunc(w.chosen, func(k, _ string) bool { return strings.HasPrefix(k, id+"/") })
		}
	}
}

func (w *walk) learn(a Answer) {
	e, ok := w.open[a.Ticket]
	if !ok {
		w.t.Fatalf("ticket %d is answered twice, now %+v", a.Ticket, a.Response)
	}
	delete(w.open, a.Ticket)
	var c *client
	for _, other := range w.clients {
		if other.waiting == a.Ticket {
			c = other
			c.waiting = 0
		}
	}
	switch r := a.Response.(type) {
	case JoinResponse:
		w.joined(e.(Join), r, c)
	case SyncResponse:
		w.synced(e.(Sync), r)
	case CommitResponse:
		if r.Code == None && r.Codes[0] == None {
			w.offsets[a.Group] = e.(Commit).Offsets[0].Offset
		}
	case DeleteResponse:
		if r.Code == None {
			delete(w.offsets, a.Group)
		}
	}
}

func (w *walk) joined(e Join, r JoinResponse, c *client) {
	switch r.Code {
	case None:
	case MemberIDRequired:
		if c != nil {
			c.member = r.MemberID
		}
		return
	case UnknownMemberID, FencedInstanceID, GroupMaxSizeReached:
		if c != nil {
			c.forget()
		}
		return
	default:
		return
	}
	if r.Generation < w.newest[e.Group] {
		w.t.Fatalf("group %s: generation %d after %d", e.Group, r.Generation, w.newest[e.Group])
	}
	w.newest[e.Group] = r.Generation
	key := fmt.Sprint(e.Group, "/", r.Generation)
	if was, ok := w.chosen[key]; ok && was != r.Protocol {
		w.t.Fatalf("generation %s has protocols %s and %s", key, was, r.Protocol)
	}
	w.chosen[key] = r.Protocol
	if c != nil {
		c.member, c.generation, c.others = r.MemberID, r.Generation, r.Members
		c.leader = r.Leader == r.MemberID
	}
	if r.Leader == r.MemberID && len(r.Members) == 0 {
		w.t.Fatalf("leader %s does not learn the members of %s", r.Leader, key)
	}
}

func (w *walk) synced(e Sync, r SyncResponse) {
	if r.Code == None && len(r.Assignment) == 0 {
		w.t.Fatalf("member %s of %s gets an empty assignment in generation %d", e.MemberID, e.Group, e.Generation)
	}
	if r.Code == None && string(r.Assignment) != fmt.Sprintf("gen %d", e.Generation) {
		w.t.Fatalf("member %s of %s gets %q in generation %d", e.MemberID, e.Group, r.Assignment, e.Generation)
	}
}

func (w *walk) advance(by time.Duration) {
	end := w.now.Add(by)
	for at, ok := w.machine.Next(); ok && !at.After(end); at, ok = w.machine.Next() {
		w.now = at
		w.act(Tick{})
	}
	w.now = end
}

// restate takes one step of saying everything again, and cuts the log when that is done.
func (w *walk) restate() {
	if w.again == nil {
		w.again, w.from = w.machine.NewRestatement(), len(w.log)
		return
	}
	w.log = append(w.log, w.machine.Restate(w.again, 1)...)
	if w.machine.Restated(w.again) {
		w.log, w.again = w.log[w.from:], nil
	}
}

// restart is a failover: what waited gets no answer here, and the log says what is so.
func (w *walk) restart() {
	w.machine = New(w.config)
	w.again = nil
	replay(w.t, w.machine, w.log)
	clear(w.open)
	for _, c := range w.clients {
		c.waiting = 0
	}
	w.act(Loaded{})
}

// finish lets everybody fall silent: nobody may wait for ever.
func (w *walk) finish() {
	w.advance(time.Hour)
	if len(w.open) > 0 {
		w.t.Fatalf("never answered: %v", w.open)
	}
	for _, g := range w.machine.groups {
		if g.state != Empty {
			w.t.Fatalf("group %s is %v an hour after the last word", g.id, g.state)
		}
	}
	w.check()
}

// check holds after every step: the log says what the machine knows, nothing is counted wrong, no timer is lost or left behind.
func (w *walk) check() {
	replayed := New(w.config)
	replay(w.t, replayed, w.log)
	if d := gocmp.Diff(durable(replayed, w.machine), durable(w.machine, w.machine)); d != "" {
		w.t.Fatalf("replay (-) and live (+) differ:\n%s", d)
	}
	timers, members, offsets := 0, 0, 0
	weight, handed := 0, 0
	var states [states]int
	for _, g := range w.machine.groups {
		states[g.state]++
		members += len(g.members)
		handed += len(g.pending)
		for _, m := range g.members {
			weight += m.weight
		}
		for _, of := range g.offsets {
			offsets += len(of)
		}
		timers += armed(g)
		w.checkGroup(g)
	}
	stats := w.machine.Stats()
	if stats.Groups != states || stats.Members != members || stats.Offsets != offsets {
		w.t.Fatalf("stats %+v, counted groups %v, members %d, offsets %d", stats, states, members, offsets)
	}
	if weight != w.machine.weight || handed != w.machine.handed {
		w.t.Fatalf("weight %d and %d ids handed out, counted %d and %d", w.machine.weight, w.machine.handed, weight, handed)
	}
	if timers != len(w.machine.timers.heap) {
		w.t.Fatalf("%d timers of groups, %d armed", timers, len(w.machine.timers.heap))
	}
	for id, want := range w.offsets {
		if g := w.machine.groups[id]; g == nil || g.offsets["t"][0].Offset != want {
			w.t.Fatalf("group %s: offset %d was committed and is not there", id, want)
		}
	}
}

func (w *walk) checkGroup(g *group) {
	joining := 0
	for _, m := range g.members {
		if m.join != 0 {
			joining++
		}
		if m.sync != 0 && g.state != CompletingRebalance {
			w.t.Fatalf("member %s waits for its assignment while the group is %v", m.id, g.state)
		}
		if m.join != 0 && g.state != PreparingRebalance {
			w.t.Fatalf("member %s waits for a generation while the group is %v", m.id, g.state)
		}
		if (m.timer == nil || m.timer.index < 0) && m.join == 0 && m.sync == 0 {
			w.t.Fatalf("member %s has no session and waits for nothing", m.id)
		}
	}
	if joining != g.joining {
		w.t.Fatalf("group %s counts %d joining members, has %d", g.id, g.joining, joining)
	}
	if (g.state == Empty) != (len(g.members) == 0) && g.state != PreparingRebalance {
		w.t.Fatalf("group %s is %v with %d members", g.id, g.state, len(g.members))
	}
	if len(g.members) > 0 && g.byID[g.leader] == nil {
		w.t.Fatalf("group %s is led by %q, which is not a member", g.id, g.leader)
	}
}

func armed(g *group) int {
	n := len(g.pending)
	for _, m := range g.members {
		n += isArmed(m.timer)
	}
	return n + isArmed(g.joinTimer) + isArmed(g.syncTimer)
}

func isArmed(t *timer) int {
	if t != nil && t.index >= 0 {
		return 1
	}
	return 0
}

// durableGroup is what of a group must survive a failover.
type durableGroup struct {
	State              State
	Type, Protocol     string
	Generation         int32
	Leader             string
	SinceMs            int64
	Members            []durableMember
	Offsets            map[string]map[int32]Offset
	Subscribed, Static []string
}

type durableMember struct {
	ID, Instance, Client, Host, Metadata, Assignment string
	Session, Rebalance                               time.Duration
}

// durable returns what c knows of groups whose state is settled in live; of the others only the offsets.
func durable(c, live *Coordinator) map[string]durableGroup {
	all := map[string]durableGroup{}
	for id, g := range c.groups {
		d := durableGroup{Offsets: g.offsets}
		l := live.groups[id]
		if l == nil || l.state == PreparingRebalance || !l.recorded {
			if len(g.offsets) > 0 {
				all[id] = d
			}
			continue
		}
		d.State, d.Type, d.Protocol, d.Generation, d.Leader = g.state, g.protocolType, g.protocol, g.generation, g.leader
		d.SinceMs = g.since.UnixMilli()
		d.Subscribed = slices.Sorted(maps.Keys(g.subscribed))
		d.Static = slices.Sorted(maps.Keys(g.static))
		for _, m := range g.members {
			metadata, _ := m.metadata(g.protocol)
			d.Members = append(d.Members, durableMember{
				m.id, m.instanceID, m.clientID, m.clientHost, string(metadata), string(m.assignment), m.session, m.rebalance,
			})
		}
		slices.SortFunc(d.Members, func(a, b durableMember) int { return cmp.Compare(a.ID, b.ID) })
		all[id] = d
	}
	return all
}
