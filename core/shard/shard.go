// Package shard runs Raft groups: each [Group] replicates one [StateMachine] over the nodes of a
// cluster, and a [Node] holds the groups of one process behind one listener.
//
// It guarantees that an entry whose [Future] answers without an error is synced on a majority of
// the group's voters and applied here; that entries are applied in one order on every replica; that
// [Group.Serving] is true on a node only while it leads, has applied all that was committed before
// it led, and lacks no data; and that a replica whose disk fails stops and says so.
//
// Consensus is hashicorp/raft; the log ([sluice/core/raftlog]) and the store of checkpoints are
// ours, and a wrapper around its transport guards what DESIGN.md beside this file lists.
//
// It does not decide which shards a node has nor where their leaders should be, and it does not
// know what entries mean.
package shard

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/vfs"
)

var (
	// ErrNotLeader is returned when this replica does not lead its group. A proposal that failed
	// with it was certainly not appended.
	ErrNotLeader = errors.New("not the leader of the shard")
	// ErrUnknown is returned when a proposal's fate is unknown: it may have been appended and may
	// still be committed by another leader.
	ErrUnknown = errors.New("outcome of the proposal is unknown")
	// ErrTooLarge is returned when an entry is larger than MaxEntryBytes. It was not appended.
	ErrTooLarge = errors.New("entry is larger than the log accepts")
	// ErrNotInSync is returned when leadership should go to a replica that is behind, does not
	// answer or lacks data.
	ErrNotInSync = errors.New("replica is not in sync")
	// ErrDamaged is returned by Open when what is on disk cannot be continued: the log or the
	// checkpoint lost something that had been synced. The replica must be removed and join again
	// as a new member.
	ErrDamaged = errors.New("replica is damaged")
	// ErrClosed is returned when the group or its node was stopped.
	ErrClosed = errors.New("shard is closed")
	// ErrNotBootstrapped is returned when a group has not got its first configuration yet.
	ErrNotBootstrapped = errors.New("shard has no configuration yet")
	// ErrRefused is returned by Dial when the other end does not accept the connection's preface:
	// another cluster, another incarnation of the node, a shard or kind that it does not have.
	ErrRefused = errors.New("peer refused the connection")
)

// StateMachine is what a group replicates. All methods but Complete and Err are called by one
// goroutine at a time.
type StateMachine interface {
	// ApplyBatch applies committed entries in order and returns one result for each. Only entries
	// of type raft.LogCommand mean something to it; for the others it returns nil and changes
	// nothing. It must be deterministic and must not wait for network or sync. A returned element
	// of type error is an answer to the proposer, not a failure of the replica.
	ApplyBatch(logs []*raft.Log) []any
	// Capture takes the state between two applies. It is fast and copies no records.
	Capture() (Checkpoint, error)
	// Restore replaces the state by a checkpoint that covers all entries up to index. It never
	// waits for the network and never fails because data named by the checkpoint is missing: it
	// marks the state incomplete instead. It may be called again at any time between two applies.
	Restore(index uint64, r io.Reader) error
	// Complete tells whether all data named by the adopted checkpoint is there and synced.
	Complete() bool
	// Err is non-nil once the replica must stop, for example after a failed write.
	Err() error
}

// Servable may be implemented by a StateMachine that can be led from although it is not Complete: it refuses by itself
// what it must not serve. Such a replica keeps leadership until another takes it, is not in sync otherwise, and is no
// target of a transfer.
type Servable interface{ Servable() bool }

// Checkpoint is a captured state.
type Checkpoint interface {
	// Persist syncs the data that the checkpoint names, then writes the checkpoint to w. It runs
	// beside ApplyBatch.
	Persist(w io.Writer) error
	// Release is called once when the checkpoint is no longer needed, persisted or not.
	Release()
}

// Options configure a Node. FS, Dir, ClusterID, Self, Listen and Resolve are required.
type Options struct {
	// FS and Dir say where the replicas live: Dir/shards/<id>/.
	FS  vfs.FS
	Dir string
	// ClusterID returns the cluster's id, or "" while it is not yet known.
	ClusterID func() string
	// Self is this node with its data directory's incarnation.
	Self meta.Server
	// Listen is the TCP address for other nodes, for example "127.0.0.1:0".
	Listen string
	// TLSServer and TLSClient switch to TLS; both or none. For mutual authentication the former
	// requires client certificates and the latter has one.
	TLSServer, TLSClient *tls.Config
	// Resolve returns the node-to-node address of a node.
	Resolve func(meta.NodeID) (addr string, ok bool)
	// Heartbeat is Raft's heartbeat and election timeout; zero means DefaultHeartbeat.
	Heartbeat time.Duration
	// CheckpointBytes of log since the last checkpoint cause the next; zero means
	// DefaultCheckpointBytes.
	CheckpointBytes int64
	// Logger gets what a person should know; nil discards it.
	Logger *slog.Logger

	quietAfter, quietBeat, doubtFor time.Duration // other than usual in tests alone: see limits
	early                           bool          // in tests: as a release that does not know connections of kind `beats`
}

// Handler serves a connection of a further kind. The connection is closed when it returns or when
// the node stops. From is the node that dialled, meta.NoNode for one that has not joined yet.
type Handler func(ctx context.Context, from meta.NodeID, c net.Conn)

// Future is the outcome of a proposal.
type Future interface {
	// Wait blocks until the entry is applied and returns the state machine's result. Errors wrap
	// ErrNotLeader or ErrTooLarge (certainly not appended), or ErrUnknown (may still be committed,
	// also when ctx ends first). It may be called by several and more than once.
	Wait(ctx context.Context) (any, error)
}

// Replica is one member of a group as its leader sees it.
type Replica struct {
	Server meta.Server
	Voter  bool
	// InSync is true when the member answered within the last second, had then all that the leader
	// had shortly before, and lacks no data. Only a leader knows it of others.
	InSync bool
	// LastIndex is the last entry in the member's log as far as known.
	LastIndex uint64
}
