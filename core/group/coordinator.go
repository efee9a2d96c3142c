package group

import (
	"time"
)

// Config is what a coordinator may decide by. The zero value of a field that has a default is replaced by it.
type Config struct {
	MinSession      time.Duration // group.min.session.timeout.ms, default 6 s
	MaxSession      time.Duration // group.max.session.timeout.ms, default 30 min
	InitialDelay    time.Duration // group.initial.rebalance.delay.ms, default none
	MaxSize         int           // group.max.size, default unbounded
	GroupBytes      int           // metadata and assignments of one group, default 8 MiB: they are one record
	TotalBytes      int           // of all groups and members of one coordinator, default 64 MiB; then no new members are taken
	MetadataBytes   int           // offset.metadata.max.bytes, default 4096
	OffsetRetention time.Duration // offsets.retention.minutes, default 7 days
	NewID           func() string // unique part of a new member's id; must be set
}

// The defaults, of Kafka 4.2 where it has them.
const (
	DefaultMinSession      = 6 * time.Second
	DefaultMaxSession      = 30 * time.Minute
	DefaultGroupBytes      = 8 << 20
	DefaultTotalBytes      = 64 << 20
	DefaultMetadataBytes   = 4096
	DefaultOffsetRetention = 7 * 24 * time.Hour
)

// newMemberJoinTimeout bounds how long a new member may wait for its first generation: it has no
// session yet, and whoever gave up and asked again would otherwise stay for ever. As Kafka.
const newMemberJoinTimeout = 5 * time.Minute

// Coordinator is the state of one partition of __consumer_offsets. It is not safe for concurrent use.
type Coordinator struct {
	config Config
	groups map[string]*group
	timers timers
	stats  Stats
	weight int     // of all members
	handed int     // member ids that were handed out and have not joined yet
	out    Effects // of the step under way
}

// Effects is what a step wants done: the records written in this order, then the answers given.
// An answer may go out only when all records of its group up to and including this step are
// committed, of all groups when Group is empty.
type Effects struct {
	Records []Record
	Answers []Answer
}

// Record is one record for __consumer_offsets. A nil Value is a tombstone.
type Record struct {
	Group   string
	Key     []byte
	Value   []byte
	Joining bool // the group waits for its leader's assignments; kept beside Kafka's own format, see DESIGN.md
}

// Answer is the one answer to the event with this ticket. Response is the event's response type.
type Answer struct {
	Ticket   Ticket
	Group    string
	Response any
}

// Stats counts since the coordinator was made, except Groups, Members and Offsets, which are what it holds now.
type Stats struct {
	Groups     [states]int // by state
	Members    int
	Offsets    int
	Rebalances int64 // generations completed
	Commits    int64 // offsets committed
	Expired    int64 // offsets expired
}

// Add adds other to s.
func (s *Stats) Add(other Stats) {
	for i, n := range other.Groups {
		s.Groups[i] += n
	}
	s.Members += other.Members
	s.Offsets += other.Offsets
	s.Rebalances += other.Rebalances
	s.Commits += other.Commits
	s.Expired += other.Expired
}

// New returns an empty coordinator. Replay the log into it, then step it with Loaded.
func New(c Config) *Coordinator {
	if c.NewID == nil {
		panic("BUG: coordinator without a source of member ids")
	}
	c.MinSession = orDefault(c.MinSession, DefaultMinSession)
	c.MaxSession = orDefault(c.MaxSession, DefaultMaxSession)
	c.GroupBytes = orDefault(c.GroupBytes, DefaultGroupBytes)
	c.TotalBytes = orDefault(c.TotalBytes, DefaultTotalBytes)
	c.MetadataBytes = orDefault(c.MetadataBytes, DefaultMetadataBytes)
	c.OffsetRetention = orDefault(c.OffsetRetention, DefaultOffsetRetention)
	return &Coordinator{config: c, groups: map[string]*group{}}
}

func orDefault[T int | time.Duration](v, other T) T {
	if v == 0 {
		return other
	}
	return v
}

// What groups and members take in memory besides their metadata, roughly.
const (
	groupOverhead  = 1 << 10
	memberOverhead = 512
	handedOverhead = 256
)

// full tells whether bytes more than now would be too much. Whoever opens connections can make groups and members, each with what it likes
// as metadata: without a bound for all of them together that is all memory.
func (c *Coordinator) full(more int) bool {
	return c.weight+len(c.groups)*groupOverhead+c.handed*handedOverhead+more > c.config.TotalBytes
}

// weigh counts a member that is new or has changed.
func (c *Coordinator) weigh(m *member) {
	weight := memberOverhead + len(m.id) + len(m.instanceID) + len(m.clientID) + len(m.clientHost) + metadataBytes(m.protocols)
	c.weight += weight - m.weight
	m.weight = weight
}

// Step applies one event at a time that never goes back and returns its effects, which belong to the caller.
func (c *Coordinator) Step(now time.Time, e Event) Effects {
	e.apply(c, now)
	out := c.out
	c.out = Effects{}
	return out
}

// Next returns the earliest deadline, at which a Tick is due.
func (c *Coordinator) Next() (time.Time, bool) { return c.timers.next() }

// Stats returns the counts.
func (c *Coordinator) Stats() Stats { return c.stats }

func (c *Coordinator) answer(t Ticket, group string, response any) {
	if t != 0 {
		c.out.Answers = append(c.out.Answers, Answer{t, group, response})
	}
}
