package shard

import (
	"context"

	"sluice/core/meta"
)

// Group is this node's replica of one shard.
type Group struct{}

// ID is the shard's id.
func (g *Group) ID() meta.ShardID { panic("BUG: not yet") }

// Propose appends an entry in call order.
func (g *Group) Propose(entry []byte) Future { panic("BUG: not yet") }

// Leader is the leader as this replica knows it.
func (g *Group) Leader() (node meta.NodeID, term uint64, ok bool) { panic("BUG: not yet") }

// Serving tells whether this replica leads and may answer.
func (g *Group) Serving() (term uint64, ok bool) { panic("BUG: not yet") }

// Verify confirms with a majority that this replica still leads.
func (g *Group) Verify(ctx context.Context) error { panic("BUG: not yet") }

// Changed is closed at the next change.
func (g *Group) Changed() <-chan struct{} { panic("BUG: not yet") }

// Current is closed once the replica is known to be up to date after its start.
func (g *Group) Current() <-chan struct{} { panic("BUG: not yet") }

// Replicas lists the members.
func (g *Group) Replicas() []Replica { panic("BUG: not yet") }

// AddVoter makes a member a voter.
func (g *Group) AddVoter(ctx context.Context, s meta.Server) error { panic("BUG: not yet") }

// AddNonvoter adds a member without a vote.
func (g *Group) AddNonvoter(ctx context.Context, s meta.Server) error { panic("BUG: not yet") }

// RemoveServer removes a member.
func (g *Group) RemoveServer(ctx context.Context, s meta.Server) error { panic("BUG: not yet") }

// Transfer hands leadership to a node.
func (g *Group) Transfer(ctx context.Context, to meta.NodeID) error { panic("BUG: not yet") }

// Checkpoint takes a checkpoint now.
func (g *Group) Checkpoint(ctx context.Context) error { panic("BUG: not yet") }

// AppliedIndex is the index of the last entry the state machine has applied.
func (g *Group) AppliedIndex() uint64 { panic("BUG: not yet") }

// Err is non-nil once the replica has stopped because of a failure.
func (g *Group) Err() error { panic("BUG: not yet") }

// Status describes the replica for /status.
func (g *Group) Status() any { panic("BUG: not yet") }
