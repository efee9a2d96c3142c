package group

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// transcript drives one coordinator by the commands of testdata and remembers the log.
type transcript struct {
	t       *testing.T
	config  Config
	machine *Coordinator
	now     time.Time
	ticket  Ticket
	ids     int
	log     []Record
}

func (s *transcript) reset() {
	s.machine = New(s.config)
	s.ticket, s.log = 0, nil
}

func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		s := &transcript{t: t, now: time.UnixMilli(1_000_000)}
		s.config.NewID = func() string {
			s.ids++
			return strconv.Itoa(s.ids)
		}
		s.reset()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t = t
			return s.run(d)
		})
	})
}

// arg returns an argument of a command, or what it is otherwise.
func arg(d *datadriven.TestData, key, other string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return other
}

func (s *transcript) duration(d *datadriven.TestData, key, other string) time.Duration {
	v, err := time.ParseDuration(arg(d, key, other))
	if err != nil {
		d.Fatalf(s.t, "%s: %v", key, err)
	}
	return v
}

func (s *transcript) number(d *datadriven.TestData, key, other string) int {
	v, err := strconv.Atoi(arg(d, key, other))
	if err != nil {
		d.Fatalf(s.t, "%s: %v", key, err)
	}
	return v
}

func (s *transcript) run(d *datadriven.TestData) string {
	switch d.Cmd {
	case "config":
		s.config.InitialDelay = s.duration(d, "delay", "0s")
		s.config.MaxSize = s.number(d, "max-size", "0")
		s.config.GroupBytes = s.number(d, "group-bytes", "0")
		s.reset()
		return ""
	case "advance":
		return s.advance(s.duration(d, "by", "0s"))
	case "restart":
		s.config.MaxSize = s.number(d, "max-size", strconv.Itoa(s.config.MaxSize))
		return s.restart()
	}
	s.ticket++
	return fmt.Sprintf("#%d\n", s.ticket) + s.step(s.event(d))
}

// advance lets time pass, deadline by deadline.
func (s *transcript) advance(by time.Duration) string {
	end := s.now.Add(by)
	var out strings.Builder
	for {
		at, ok := s.machine.Next()
		if !ok || at.After(end) {
			break
		}
		s.now = at
		if effects := s.step(Tick{}); effects != "" {
			fmt.Fprintf(&out, "after %v\n%s", by-end.Sub(at), effects)
		}
	}
	s.now = end
	return out.String()
}

// restart replays the log into a new coordinator, as after a failover.
func (s *transcript) restart() string {
	s.machine = New(s.config)
	replay(s.t, s.machine, s.log)
	return s.step(Loaded{})
}

func replay(t fatal, c *Coordinator, log []Record) {
	for _, r := range log {
		if err := c.Replay(r.Key, r.Value, r.Joining); err != nil {
			t.Fatalf("replay: %v", err)
		}
	}
}

type fatal interface {
	Fatalf(format string, args ...any)
}

func (s *transcript) step(e Event) string {
	effects := s.machine.Step(s.now, e)
	s.log = append(s.log, effects.Records...)
	var out strings.Builder
	for _, r := range effects.Records {
		fmt.Fprintf(&out, "write %s\n", describeRecord(r))
	}
	for _, a := range effects.Answers {
		fmt.Fprintf(&out, "#%d %s\n", a.Ticket, describeResponse(a.Response))
	}
	return out.String()
}

func (s *transcript) event(d *datadriven.TestData) Event {
	g, member, instance := arg(d, "group", "g"), arg(d, "member", ""), arg(d, "instance", "")
	switch d.Cmd {
	case "join":
		version := s.number(d, "v", "9")
		return Join{
			Ticket: s.ticket, Group: g, MemberID: member, InstanceID: instance, ClientID: arg(d, "client", "c"), ClientHost: "/h",
			ProtocolType: arg(d, "type", "consumer"), Protocols: protocols(arg(d, "protocols", "range:t")),
			Session: s.duration(d, "session", "10s"), Rebalance: s.duration(d, "rebalance", "60s"),
			RequireMemberID: version >= 4, SkipAssignment: version >= 9,
		}
	case "sync":
		return Sync{
			Ticket: s.ticket, Group: g, Generation: int32(s.number(d, "gen", "1")), MemberID: member, InstanceID: instance,
			ProtocolType: arg(d, "type", ""), Protocol: arg(d, "protocol", ""), Assignments: assignments(arg(d, "assign", "")),
		}
	case "heartbeat":
		return Heartbeat{Ticket: s.ticket, Group: g, Generation: int32(s.number(d, "gen", "1")), MemberID: member, InstanceID: instance}
	case "leave":
		e := Leave{Ticket: s.ticket, Group: g}
		for _, m := range strings.Split(arg(d, "members", ""), ",") {
			id, instance, _ := strings.Cut(m, "/")
			e.Members = append(e.Members, LeaveMember{id, instance})
		}
		return e
	case "commit":
		e := Commit{
			Ticket: s.ticket, Group: g, Generation: int32(s.number(d, "gen", "-1")), MemberID: member, InstanceID: instance,
			Retention: s.duration(d, "retention", "-1s"), NotFoundCode: GroupIDNotFound,
		}
		e.Offsets = []CommitOffset{{
			Partition: Partition{arg(d, "topic", "t"), int32(s.number(d, "partition", "0"))}, Offset: int64(s.number(d, "offset", "0")),
			LeaderEpoch: -1, Metadata: arg(d, "metadata", ""),
		}}
		return e
	case "fetch":
		return FetchOffsets{Ticket: s.ticket, Group: g, All: arg(d, "topic", "") == "", Partitions: []Partition{{arg(d, "topic", ""), 0}}}
	case "delete-offsets":
		return DeleteOffsets{Ticket: s.ticket, Group: g, Partitions: []Partition{{arg(d, "topic", "t"), int32(s.number(d, "partition", "0"))}}}
	case "delete":
		return Delete{s.ticket, g}
	case "describe":
		return Describe{s.ticket, g}
	case "list":
		return List{s.ticket}
	case "clean":
		return Clean{}
	case "forget":
		return ForgetTopics{func(topic string, _ TopicID) bool { return topic == arg(d, "topic", "t") }}
	}
	d.Fatalf(s.t, "unknown command %q", d.Cmd)
	return nil
}

// protocols reads range:t1+t2,sticky:t1: names with the topics that the metadata subscribes to. Metadata that begins with ! is taken as it is.
func protocols(s string) []Protocol {
	var list []Protocol
	for _, p := range strings.Split(s, ",") {
		name, topics, _ := strings.Cut(p, ":")
		if raw, ok := strings.CutPrefix(topics, "!"); ok {
			list = append(list, Protocol{name, []byte(raw)})
			continue
		}
		subscription := kmsg.NewConsumerMemberMetadata()
		subscription.Version = 3
		subscription.Topics = strings.Split(topics, "+")
		list = append(list, Protocol{name, subscription.AppendTo(nil)})
	}
	return list
}

func assignments(s string) map[string][]byte {
	all := map[string][]byte{}
	for _, a := range strings.Split(s, ",") {
		if id, what, ok := strings.Cut(a, ":"); ok {
			all[id] = []byte(what)
		}
	}
	return all
}

func describeRecord(r Record) string {
	var k kmsg.OffsetCommitKey
	if r.Key[1] == offsetKeyVersion {
		_ = k.ReadFrom(r.Key)
		if r.Value == nil {
			return fmt.Sprintf("offset %s %s-%d tombstone", k.Group, k.Topic, k.Partition)
		}
		v := kmsg.NewOffsetCommitValue()
		_ = v.ReadFrom(r.Value)
		return fmt.Sprintf("offset %s %s-%d v%d offset=%d metadata=%q", k.Group, k.Topic, k.Partition, v.Version, v.Offset, v.Metadata)
	}
	var gk kmsg.GroupMetadataKey
	_ = gk.ReadFrom(r.Key)
	if r.Value == nil {
		return fmt.Sprintf("group %s tombstone", gk.Group)
	}
	v := kmsg.NewGroupMetadataValue()
	_ = v.ReadFrom(r.Value)
	var members []string
	for _, m := range v.Members {
		members = append(members, fmt.Sprintf("%s=%s", m.MemberID, m.Assignment))
	}
	joining := ""
	if r.Joining {
		joining = " joining"
	}
	return fmt.Sprintf("group %s v%d gen=%d protocol=%s leader=%s members=%v%s", gk.Group, v.Version, v.Generation,
		fromNullable(v.Protocol), fromNullable(v.Leader), members, joining)
}

func describeResponse(response any) string {
	switch r := response.(type) {
	case JoinResponse:
		out := fmt.Sprintf("join %v gen=%d member=%s leader=%s protocol=%s", r.Code, r.Generation, r.MemberID, r.Leader, r.Protocol)
		if r.SkipAssignment {
			out += " skip"
		}
		var ids []string
		for _, m := range r.Members {
			ids = append(ids, m.MemberID)
		}
		if len(ids) > 0 {
			out += fmt.Sprintf(" members=%v", ids)
		}
		return out
	case SyncResponse:
		return fmt.Sprintf("sync %v protocol=%s assignment=%s", r.Code, r.Protocol, r.Assignment)
	case HeartbeatResponse:
		return "heartbeat " + r.Code.String()
	case LeaveResponse:
		return fmt.Sprintf("leave %v %v", r.Code, r.Codes)
	case CommitResponse:
		return fmt.Sprintf("commit %v %v", r.Code, r.Codes)
	case FetchOffsetsResponse:
		var all []string
		for i, p := range r.Partitions {
			all = append(all, fmt.Sprintf("%s-%d=%d%q", p.Topic, p.Index, r.Offsets[i].Offset, r.Offsets[i].Metadata))
		}
		return fmt.Sprintf("fetch %v", all)
	case DeleteOffsetsResponse:
		return fmt.Sprintf("delete-offsets %v %v", r.Code, r.Codes)
	case DeleteResponse:
		return "delete " + r.Code.String()
	case DescribeResponse:
		out := fmt.Sprintf("describe %v %v gen=%d type=%s protocol=%s", r.Code, r.State, r.Generation, r.ProtocolType, r.Protocol)
		for _, m := range r.Members {
			out += fmt.Sprintf("\n   %s/%s %s %s assignment=%s", m.MemberID, m.InstanceID, m.ClientID, m.ClientHost, m.Assignment)
		}
		return out
	case ListResponse:
		var all []string
		for _, g := range r.Groups {
			all = append(all, fmt.Sprintf("%s:%s:%v", g.Group, g.ProtocolType, g.State))
		}
		sort.Strings(all)
		return fmt.Sprintf("list %v", all)
	}
	return fmt.Sprintf("%T", response)
}
