package group

import "time"

// Ticket names a request that waits for its answer; zero names none.
type Ticket uint64

// TopicID is a topic's id; zero where a client committed by name and none is known.
type TopicID [16]byte

// Event is one input of the state machine.
type Event interface {
	apply(c *Coordinator, now time.Time)
}

// Protocol is one way of assigning partitions that a member offers, with the member's metadata.
type Protocol struct {
	Name     string
	Metadata []byte
}

// Join asks to become or stay a member (JoinGroup). Answered by JoinResponse when the
// generation it takes part in is complete.
type Join struct {
	Ticket     Ticket
	Group      string
	MemberID   string // empty: none yet
	InstanceID string // empty: a dynamic member
	ClientID   string
	ClientHost string

	ProtocolType string
	Protocols    []Protocol
	Session      time.Duration
	Rebalance    time.Duration // zero or less: as Session

	RequireMemberID bool // version 4 and later: a new dynamic member is told its id first (KIP-394)
	SkipAssignment  bool // version 9 and later: a rejoining static leader can be told to skip (KIP-814)
}

// JoinResponse answers Join.
type JoinResponse struct {
	Code           Code
	Generation     int32
	ProtocolType   string // empty: none
	Protocol       string // empty: none
	Leader         string
	MemberID       string
	SkipAssignment bool
	Members        []JoinMember // for the leader only
}

// JoinMember is what the leader learns about a member.
type JoinMember struct {
	MemberID, InstanceID string
	Metadata             []byte
}

// Sync brings the leader's assignments and waits for the member's own (SyncGroup). Answered by SyncResponse.
type Sync struct {
	Ticket       Ticket
	Group        string
	Generation   int32
	MemberID     string
	InstanceID   string
	ProtocolType string // empty: not said
	Protocol     string // empty: not said
	Assignments  map[string][]byte
}

// SyncResponse answers Sync.
type SyncResponse struct {
	Code         Code
	ProtocolType string
	Protocol     string
	Assignment   []byte
}

// Heartbeat says that a member lives. Answered by HeartbeatResponse at once.
type Heartbeat struct {
	Ticket     Ticket
	Group      string
	Generation int32
	MemberID   string
	InstanceID string
}

// HeartbeatResponse answers Heartbeat.
type HeartbeatResponse struct{ Code Code }

// Leave takes members out of the group (LeaveGroup); a static one may be named by its instance id alone.
// Answered by LeaveResponse.
type Leave struct {
	Ticket  Ticket
	Group   string
	Members []LeaveMember
}

// LeaveMember names one member that leaves.
type LeaveMember struct{ MemberID, InstanceID string }

// LeaveResponse answers Leave, with one code for each member in the order of the request.
type LeaveResponse struct {
	Code  Code
	Codes []Code
}

// Partition is a partition by its topic's name.
type Partition struct {
	Topic string
	Index int32
}

// Offset is a committed offset.
type Offset struct {
	Offset      int64
	LeaderEpoch int32 // -1: not known
	Metadata    string
	TopicID     TopicID
	CommitMs    int64 // when it was committed, Unix time
	ExpireMs    int64 // when it expires by the client's own wish (OffsetCommit before version 5), else -1
}

// Commit stores offsets (OffsetCommit). Answered by CommitResponse.
type Commit struct {
	Ticket       Ticket
	Group        string
	Generation   int32 // negative: not by a member
	MemberID     string
	InstanceID   string
	Retention    time.Duration // negative: the coordinator's
	NotFoundCode Code          // for an unknown group: GroupIDNotFound from version 9, before IllegalGeneration
	Offsets      []CommitOffset
}

// CommitOffset is one offset to commit.
type CommitOffset struct {
	Partition   Partition
	TopicID     TopicID
	Offset      int64 // negative offsets are stored as they are: KafkaJS resets so
	LeaderEpoch int32
	Metadata    string
}

// CommitResponse answers Commit: a code for all, or one for each offset in the order of the request.
type CommitResponse struct {
	Code  Code
	Codes []Code
}

// FetchOffsets asks for committed offsets (OffsetFetch). Answered by FetchOffsetsResponse.
type FetchOffsets struct {
	Ticket     Ticket
	Group      string
	All        bool
	Partitions []Partition // unless All
}

// FetchOffsetsResponse answers FetchOffsets.
type FetchOffsetsResponse struct {
	Partitions []Partition // as asked, or all in order of topic and partition
	Offsets    []Offset    // to each partition; Offset -1 where nothing is committed
}

// DeleteOffsets forgets committed offsets (OffsetDelete). Answered by DeleteOffsetsResponse.
type DeleteOffsets struct {
	Ticket     Ticket
	Group      string
	Partitions []Partition
}

// DeleteOffsetsResponse answers DeleteOffsets: a code for all, or one for each partition in the order of the request.
type DeleteOffsetsResponse struct {
	Code  Code
	Codes []Code
}

// Delete forgets a group and its offsets (DeleteGroups). Answered by DeleteResponse.
type Delete struct {
	Ticket Ticket
	Group  string
}

// DeleteResponse answers Delete.
type DeleteResponse struct{ Code Code }

// Describe asks for one group (DescribeGroups). Answered by DescribeResponse.
type Describe struct {
	Ticket Ticket
	Group  string
}

// DescribeResponse answers Describe. An unknown group is Dead with code GroupIDNotFound.
type DescribeResponse struct {
	Code         Code
	State        State
	ProtocolType string
	Protocol     string
	Generation   int32
	Members      []DescribeMember
}

// DescribeMember is a member as shown to administrators. Metadata and assignment are set in state Stable only.
type DescribeMember struct {
	MemberID, InstanceID, ClientID, ClientHost string
	Metadata, Assignment                       []byte
}

// List asks for all groups of this coordinator (ListGroups). Answered by ListResponse.
type List struct{ Ticket Ticket }

// ListResponse answers List, in order of group id.
type ListResponse struct{ Groups []Listed }

// Listed is one group of a list.
type Listed struct {
	Group        string
	ProtocolType string
	State        State
}

// Loaded ends the replay of the log: sessions of the groups' members begin now.
type Loaded struct{}

// Tick handles every deadline that has passed; see Coordinator.Next.
type Tick struct{}

// Clean removes expired offsets and groups of which nothing is left.
type Clean struct{}

// ForgetTopics removes the offsets of topics that are gone, as told by Gone, which must not change meanwhile.
type ForgetTopics struct {
	Gone func(topic string, id TopicID) bool
}
