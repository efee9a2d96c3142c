package meta

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// commandVersion is the newest format of commands that this release reads and writes.
const commandVersion = 1

// ErrNewer is returned when a command or snapshot was written by a newer release.
var ErrNewer = errors.New("written by a newer release: upgrade this node")

// RequestID is chosen by whoever asks for a command and stays the same in its retries.
type RequestID [16]byte

// kind numbers the commands in the log: a number is never used for anything else.
type kind uint8

const (
	kindInit kind = iota + 1
	kindRegisterNode
	kindFenceNode
	kindCreateTopics
	kindDeleteTopics
	kindCreatePartitions
	kindAlterConfigs
	kindAllocateProducerIDs
	kindReportShard
	kindConfirmRemovals
)

// Command is one change of the metadata. It carries everything that apply may not decide by
// itself.
type Command interface {
	kind() kind
	apply(t *transition) Result
}

// Init names a new cluster. The first one counts.
type Init struct {
	ClusterID string `cbor:"1,keyasint"`
}

// RegisterNode adds a node, or tells its changed addresses. Another incarnation of a known node
// replaces it if that one is fenced, and is refused otherwise.
type RegisterNode struct {
	Node Node `cbor:"1,keyasint"`
}

// FenceNode says that the metadata leader does not reach a node, or that it does again. It counts
// only for the incarnation that was tried.
type FenceNode struct {
	Server Server `cbor:"1,keyasint"`
	Fenced bool   `cbor:"2,keyasint,omitempty"`
}

// CreateTopics creates topics with the placement that the leader has decided, and the shards that
// the placement needs. Refused carries the topics of the same request that it did not plan, so
// that a retry is answered whole.
type CreateTopics struct {
	Shards  []ShardSpec   `cbor:"1,keyasint,omitempty"`
	Topics  []TopicSpec   `cbor:"2,keyasint"`
	Refused []TopicResult `cbor:"3,keyasint,omitempty"`
}

// ShardSpec is a shard to create. Voters are its founding members, the preferred leader first.
type ShardSpec struct {
	ID     ShardID  `cbor:"1,keyasint"`
	Voters []Server `cbor:"2,keyasint"`
}

// TopicSpec is a topic to create, with the shard of each partition.
type TopicSpec struct {
	ID                TopicID           `cbor:"1,keyasint"`
	Name              string            `cbor:"2,keyasint"`
	Internal          bool              `cbor:"3,keyasint,omitempty"`
	ReplicationFactor int16             `cbor:"4,keyasint"`
	Shards            []ShardID         `cbor:"5,keyasint"`
	Configs           map[string]string `cbor:"6,keyasint,omitempty"`
}

// DeleteTopics removes topics by id.
type DeleteTopics struct {
	IDs []TopicID `cbor:"1,keyasint"`
}

// CreatePartitions adds partitions to a topic that has From of them.
type CreatePartitions struct {
	Topic  TopicID     `cbor:"1,keyasint"`
	From   int32       `cbor:"2,keyasint"`
	Shards []ShardID   `cbor:"3,keyasint"`
	New    []ShardSpec `cbor:"4,keyasint,omitempty"`
}

// AlterConfigs changes dynamic settings, each change for itself. Refused holds, for each change,
// why the leader did not let it pass; nil or a missing one means that it is made.
type AlterConfigs struct {
	Changes []ConfigChange `cbor:"1,keyasint"`
	Refused []*Error       `cbor:"2,keyasint,omitempty"`
}

// AllocateProducerIDs gives out a block of producer ids that was never given out before.
type AllocateProducerIDs struct {
	Count int64 `cbor:"1,keyasint"`
}

// ReportShard is what the leader of a shard says of it. Reports of older terms are ignored.
type ReportShard struct {
	Shard  ShardID  `cbor:"1,keyasint"`
	Term   uint64   `cbor:"2,keyasint"`
	Leader NodeID   `cbor:"3,keyasint"`
	ISR    []NodeID `cbor:"4,keyasint"`
}

// ConfirmRemovals says that the deletion of partitions is committed in their shard.
type ConfirmRemovals struct {
	Removals []Removal `cbor:"1,keyasint"`
}

func (*Init) kind() kind                { return kindInit }
func (*RegisterNode) kind() kind        { return kindRegisterNode }
func (*FenceNode) kind() kind           { return kindFenceNode }
func (*CreateTopics) kind() kind        { return kindCreateTopics }
func (*DeleteTopics) kind() kind        { return kindDeleteTopics }
func (*CreatePartitions) kind() kind    { return kindCreatePartitions }
func (*AlterConfigs) kind() kind        { return kindAlterConfigs }
func (*AllocateProducerIDs) kind() kind { return kindAllocateProducerIDs }
func (*ReportShard) kind() kind         { return kindReportShard }
func (*ConfirmRemovals) kind() kind     { return kindConfirmRemovals }

func newCommand(k kind) (Command, error) {
	switch k {
	case kindInit:
		return &Init{}, nil
	case kindRegisterNode:
		return &RegisterNode{}, nil
	case kindFenceNode:
		return &FenceNode{}, nil
	case kindCreateTopics:
		return &CreateTopics{}, nil
	case kindDeleteTopics:
		return &DeleteTopics{}, nil
	case kindCreatePartitions:
		return &CreatePartitions{}, nil
	case kindAlterConfigs:
		return &AlterConfigs{}, nil
	case kindAllocateProducerIDs:
		return &AllocateProducerIDs{}, nil
	case kindReportShard:
		return &ReportShard{}, nil
	case kindConfirmRemovals:
		return &ConfirmRemovals{}, nil
	case kindChangeMoves:
		return &ChangeMoves{}, nil
	case kindRestartMove:
		return &RestartMove{}, nil
	case kindFinishMove:
		return &FinishMove{}, nil
	}
	if c := newMembershipCommand(k); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("command kind %d: %w", k, ErrNewer)
}

// NewTopic asks for one topic. Partitions and ReplicationFactor are -1 for the default, and with
// Assignments, which lists the replicas of each partition, the preferred leader first.
type NewTopic struct {
	Name              string             `cbor:"1,keyasint"`
	Partitions        int32              `cbor:"2,keyasint"`
	ReplicationFactor int16              `cbor:"3,keyasint"`
	Assignments       map[int32][]NodeID `cbor:"4,keyasint,omitempty"`
	Configs           map[string]string  `cbor:"5,keyasint,omitempty"`
}

// TopicResult is the answer for one topic of a CreateTopics. With Err set the rest is what was
// asked for.
type TopicResult struct {
	Name              string  `cbor:"1,keyasint"`
	ID                TopicID `cbor:"2,keyasint"`
	Partitions        int32   `cbor:"3,keyasint"`
	ReplicationFactor int16   `cbor:"4,keyasint"`
	Err               *Error  `cbor:"5,keyasint,omitempty"`
}

// ConfigChange changes the dynamic settings of one resource: Delete first, then Set. With Replace
// what is not in Set is reset, as the old AlterConfigs does.
type ConfigChange struct {
	Type    int8              `cbor:"1,keyasint"`
	Name    string            `cbor:"2,keyasint"`
	Set     map[string]string `cbor:"3,keyasint,omitempty"`
	Delete  []string          `cbor:"4,keyasint,omitempty"`
	Replace bool              `cbor:"5,keyasint,omitempty"`
}

// Result is the answer to a command. Which field counts depends on the command.
type Result struct {
	Topics []TopicResult `cbor:"1,keyasint,omitempty"` // CreateTopics, in no particular order
	Errors []*Error      `cbor:"2,keyasint,omitempty"` // DeleteTopics, AlterConfigs, ChangeMoves: one each, nil = done
	Err    *Error        `cbor:"3,keyasint,omitempty"` // of the command as a whole
	First  int64         `cbor:"4,keyasint,omitempty"` // AllocateProducerIDs
}

// envelope is a command in the log.
type envelope struct {
	Version uint8           `cbor:"1,keyasint"`
	Kind    kind            `cbor:"2,keyasint"`
	Request RequestID       `cbor:"3,keyasint"`
	Body    cbor.RawMessage `cbor:"4,keyasint"`
}

// elementsMax bounds the arrays and maps of a decoded command or snapshot item: 1,048,576
// partitions in one topic are more than a node can open.
const elementsMax = 1 << 20

var (
	encoding = mustMode(cbor.CoreDetEncOptions().EncMode())
	decoding = mustMode(cbor.DecOptions{MaxArrayElements: elementsMax, MaxMapPairs: elementsMax, DupMapKey: cbor.DupMapKeyEnforcedAPF}.DecMode())
)

func mustMode[M any](m M, err error) M {
	if err != nil {
		panic("BUG: cbor options: " + err.Error())
	}
	return m
}

// Encode returns the command as an entry of the metadata log. The zero request id means that the
// answer need not be remembered.
func Encode(id RequestID, c Command) []byte {
	body, err := encoding.Marshal(c)
	if err != nil {
		panic("BUG: encode command: " + err.Error())
	}
	out, err := encoding.Marshal(envelope{Version: commandVersion, Kind: c.kind(), Request: id, Body: body})
	if err != nil {
		panic("BUG: encode command: " + err.Error())
	}
	return out
}

// Decode reads what Encode wrote. It returns ErrNewer for commands of a later release.
func Decode(entry []byte) (RequestID, Command, error) {
	var e envelope
	if err := decoding.Unmarshal(entry, &e); err != nil {
		return RequestID{}, nil, fmt.Errorf("decode command: %w", err)
	}
	if e.Version > commandVersion {
		return RequestID{}, nil, fmt.Errorf("command version %d: %w", e.Version, ErrNewer)
	}
	c, err := newCommand(e.Kind)
	if err != nil {
		return RequestID{}, nil, err
	}
	if err := decoding.Unmarshal(e.Body, c); err != nil {
		return RequestID{}, nil, fmt.Errorf("decode command of kind %d: %w", e.Kind, err)
	}
	return e.Request, c, nil
}
