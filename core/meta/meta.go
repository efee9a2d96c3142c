// Package meta is the cluster's metadata as a pure state machine: nodes, shards, topics, their
// partitions and configuration, producer ids.
//
// Commands go in, a new immutable [Image] and an answer come out. Two replicas that apply the same
// commands hold equal images, and an image restored from a snapshot equals the one it was taken
// from. There is no clock, no disk, no network and no goroutine here: what is decided by chance or
// by the state of the world (topic ids, placement, who is alive) is decided by package controller
// and carried in the command.
//
// It does not decide who may do what, and it does not know whether a wanted replica exists.
package meta

import (
	"encoding/base64"
	"errors"
	"fmt"
)

// TopicID identifies a topic for ever: a topic deleted and created again under its old name has
// another one (KIP-516). The zero value means "no topic".
type TopicID [16]byte

// NodeID is what Kafka calls a broker id. It is never negative; NoNode means none.
type NodeID int32

// ShardID names one Raft group of the cluster. It is never used again after its shard is removed.
type ShardID uint32

// MetadataShard is the group that holds the metadata itself.
const MetadataShard ShardID = 0

// NoNode stands for "no node", for example for a shard without a known leader.
const NoNode NodeID = -1

// Server is a member of a Raft group: a node with the incarnation of its data directory. A node
// that lost its directory comes back under the same id with another incarnation and is therefore
// another member.
type Server struct {
	_           struct{} `cbor:",toarray"`
	Node        NodeID
	Incarnation string
}

// String returns `<node>.<incarnation>`, the server's address in Raft.
func (s Server) String() string { return fmt.Sprintf("%d.%s", s.Node, s.Incarnation) }

// uuidEncoding is how Kafka writes a Uuid: URL-safe base64 without padding, 22 characters.
var uuidEncoding = base64.RawURLEncoding

// ErrBadUUID is returned when a text is not 22 characters of URL-safe base64.
var ErrBadUUID = errors.New("not a 22-character base64 uuid")

// String returns the id as Kafka's tools print it.
func (t TopicID) String() string { return uuidEncoding.EncodeToString(t[:]) }

// IsZero tells whether the id stands for "no topic".
func (t TopicID) IsZero() bool { return t == TopicID{} }

// ParseTopicID reads what String wrote. It returns ErrBadUUID for anything else.
func ParseTopicID(s string) (TopicID, error) {
	var id TopicID
	raw, err := uuidEncoding.DecodeString(s)
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("parse topic id %q: %w", s, ErrBadUUID)
	}
	copy(id[:], raw)
	return id, nil
}
