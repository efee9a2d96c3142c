package shard

import (
	"context"
	"net"

	"sluice/core/meta"
)

// Node holds the groups of one process and the listener they share.
type Node struct{}

// NewNode binds the listener; nothing runs before Run.
func NewNode(o Options) (*Node, error) { panic("BUG: not yet") }

// Run accepts connections until ctx ends, then stops every group cleanly.
func (n *Node) Run(ctx context.Context) error { panic("BUG: not yet") }

// Addr is the address the node listens on.
func (n *Node) Addr() net.Addr { panic("BUG: not yet") }

// Bootstrap creates the replica of a new shard with its founding voters.
func (n *Node) Bootstrap(id meta.ShardID, voters []meta.Server) error { panic("BUG: not yet") }

// Open opens and starts a replica.
func (n *Node) Open(id meta.ShardID, sm StateMachine) (*Group, error) { panic("BUG: not yet") }

// Group returns an open group.
func (n *Node) Group(id meta.ShardID) (*Group, bool) { panic("BUG: not yet") }

// Groups returns the open groups by id.
func (n *Node) Groups() []*Group { panic("BUG: not yet") }

// Remove stops the replica if it is open and deletes it.
func (n *Node) Remove(id meta.ShardID) error { panic("BUG: not yet") }

// Handle registers a further kind of connection.
func (n *Node) Handle(kind string, fn Handler) { panic("BUG: not yet") }

// Dial connects to a node for a kind of its own.
func (n *Node) Dial(ctx context.Context, to meta.NodeID, kind string) (net.Conn, error) {
	panic("BUG: not yet")
}

// DialAddr connects to an address of a node that is not known yet.
func (n *Node) DialAddr(ctx context.Context, addr, kind string) (net.Conn, error) {
	panic("BUG: not yet")
}
