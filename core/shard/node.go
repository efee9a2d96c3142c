package shard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/raftlog"
)

const shardsDir = "shards"

// Node holds the groups of one process and the listener they share.
type Node struct {
	o         Options
	started   time.Time
	log       *slog.Logger
	listener  net.Listener
	ctx       context.Context // ends when the node stops; for what outlives a call
	cancel    context.CancelFunc
	wg        sync.WaitGroup // of connections
	strangers strangers
	spare     spare
	moments   moments
	links     links
	lives     atomic.Uint64 // of replicas that were started

	mu struct {
		sync.Mutex
		closed   bool
		groups   map[meta.ShardID]*Group
		opening  map[meta.ShardID]bool
		handlers map[string]Handler
		conns    map[net.Conn]struct{}
		// synced is, of logs that were closed in this process, the last record that was known to be synced.
		synced map[meta.ShardID]uint64
		// founded are the shards whose replica here was founded by this process.
		founded map[meta.ShardID]bool
	}
}

// NewNode checks the options and binds the listener; nothing is accepted before Run.
func NewNode(o Options) (*Node, error) {
	if o.FS == nil || o.Dir == "" || o.ClusterID == nil || o.Resolve == nil || o.Self.Incarnation == "" {
		panic("BUG: shard.Options lacks a required field")
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = DefaultHeartbeat
	}
	if o.CheckpointBytes <= 0 {
		o.CheckpointBytes = DefaultCheckpointBytes
	}
	if o.doubtFor == 0 {
		o.doubtFor = doubtFor
	}
	if o.quietAfter == 0 {
		o.quietAfter = quietAfter
	}
	if o.quietBeat == 0 {
		o.quietBeat = momentFor(o.Heartbeat)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := o.FS.MkdirAll(path.Join(o.Dir, shardsDir)); err != nil {
		return nil, fmt.Errorf("make shard directory: %w", err)
	}
	n := &Node{o: o, started: time.Now(), log: o.Logger}
	n.spare.init()
	n.moments.every, n.moments.send = o.quietBeat, n.links.send
	n.links.n, n.links.to = n, map[raft.ServerAddress]*link{}
	if err := n.sweep(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for nodes: %w", err)
	}
	n.listener = l
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.mu.groups = map[meta.ShardID]*Group{}
	n.mu.opening = map[meta.ShardID]bool{}
	n.mu.handlers = map[string]Handler{}
	n.mu.conns = map[net.Conn]struct{}{}
	n.mu.synced, n.mu.founded = map[meta.ShardID]uint64{}, map[meta.ShardID]bool{}
	return n, nil
}

// Addr is the address the node listens on.
func (n *Node) Addr() net.Addr { return n.listener.Addr() }

// Run accepts connections until ctx ends. Then every group is stopped cleanly (checkpoint, leadership
// handed over), and all connections are closed. It must run for groups of several replicas to work.
func (n *Node) Run(ctx context.Context) error {
	accepted := make(chan error, 1)
	go func() { accepted <- n.accept() }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-accepted:
		accepted <- nil
	}
	n.stopGroups((*Group).stopCleanly)
	n.shut()
	<-accepted
	n.wg.Wait()
	return err
}

// Close stops everything without handing anything over. After Run it does nothing.
func (n *Node) Close() error {
	n.stopGroups((*Group).halt)
	n.shut()
	n.wg.Wait()
	return nil
}

func (n *Node) stopGroups(stop func(*Group)) {
	n.mu.Lock()
	n.mu.closed = true
	n.mu.Unlock()
	var wg sync.WaitGroup
	for _, g := range n.Groups() {
		wg.Go(func() { stop(g) })
	}
	wg.Wait()
}

func (n *Node) shut() {
	n.cancel()
	n.listener.Close()
	n.mu.Lock()
	n.mu.groups = map[meta.ShardID]*Group{}
	conns := n.mu.conns
	n.mu.conns = map[net.Conn]struct{}{}
	n.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}

func (n *Node) dir(id meta.ShardID) string {
	return path.Join(n.o.Dir, shardsDir, strconv.FormatUint(uint64(id), 10))
}

// Open opens and starts this node's replica of a shard: one that was bootstrapped or opened before,
// or, where there is nothing on disk, one that waits to be added by its group's leader. It returns
// an error wrapping ErrDamaged when what is on disk cannot be continued.
func (n *Node) Open(id meta.ShardID, sm StateMachine) (*Group, error) {
	n.mu.Lock()
	switch {
	case n.mu.closed:
		n.mu.Unlock()
		return nil, ErrClosed
	case n.mu.groups[id] != nil || n.mu.opening[id]:
		n.mu.Unlock()
		return nil, fmt.Errorf("open shard %d: it is open", id)
	}
	n.mu.opening[id] = true
	n.mu.Unlock()
	g, err := openGroup(n, id, sm)
	n.mu.Lock()
	delete(n.mu.opening, id)
	closed := n.mu.closed
	if err == nil && !closed {
		n.mu.groups[id] = g
	}
	n.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("open shard %d: %w", id, err)
	}
	if closed {
		g.halt()
		return nil, ErrClosed
	}
	return g, nil
}

// Group returns an open group.
func (n *Node) Group(id meta.ShardID) (*Group, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g, ok := n.mu.groups[id]
	return g, ok
}

// Groups returns the open groups, by id.
func (n *Node) Groups() []*Group {
	n.mu.Lock()
	defer n.mu.Unlock()
	groups := make([]*Group, 0, len(n.mu.groups))
	for _, g := range n.mu.groups {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b *Group) int { return int(int64(a.id) - int64(b.id)) })
	return groups
}

// Stop stops a replica cleanly and leaves its files: it can be opened again, for example one that
// failed and whose disk has room again.
func (n *Node) Stop(id meta.ShardID) {
	if g := n.take(id); g != nil {
		g.stopCleanly()
	}
	n.release(id)
}

// take makes a group unknown to others, and keeps it from being opened until release.
func (n *Node) take(id meta.ShardID) *Group {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.mu.groups[id]
	delete(n.mu.groups, id)
	n.mu.opening[id] = true
	return g
}

func (n *Node) release(id meta.ShardID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.mu.opening, id)
}

// noteSynced keeps how far a log that is about to be closed was synced, for who opens it again.
func (n *Node) noteSynced(id meta.ShardID, log *raftlog.Store) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if log.Err() != nil {
		n.mu.synced[id] = log.Durable()
	} else {
		delete(n.mu.synced, id)
	}
}

func (n *Node) syncedUpTo(id meta.ShardID) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.synced[id]
}

func (n *Node) noteFounded(id meta.ShardID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.founded[id] = true
}

func (n *Node) hasFounded(id meta.ShardID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.founded[id]
}

// Remove stops the replica if it is open and deletes what it has on disk. The caller has made sure
// that the replica is no longer a member (guard 7 in DESIGN.md).
func (n *Node) Remove(id meta.ShardID) error {
	defer n.release(id)
	if g := n.take(id); g != nil {
		g.halt()
	}
	n.mu.Lock()
	delete(n.mu.synced, id)
	delete(n.mu.founded, id)
	n.mu.Unlock()
	return n.removeDir(id)
}

// Handle registers a further kind of connection, before or while the node runs.
func (n *Node) Handle(kind string, fn Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.handlers[kind] = fn
}

// accept takes connections until the listener is closed.
func (n *Node) accept() error {
	var warned time.Time
	for {
		c, err := n.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil && passes(err) {
			if time.Since(warned) > acceptWarnInterval {
				warned = time.Now()
				n.log.Warn("cannot accept connections of other nodes", "err", err)
			}
			pause(n.ctx, acceptRetryDelay)
			continue
		}
		if err != nil {
			return fmt.Errorf("accept from nodes: %w", err)
		}
		if !n.track(c) {
			continue
		}
		n.strangers.admit(c)
		go func() {
			defer n.wg.Done()
			n.serve(c)
		}()
	}
}

// track makes sure that the connection ends with the node. It is paired with wg.Done.
func (n *Node) track(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		c.Close()
		return false
	}
	n.mu.conns[c] = struct{}{}
	n.wg.Add(1)
	return true
}

// spawn runs fn on a goroutine that the node waits for when it ends. It returns false when the node has ended.
func (n *Node) spawn(fn func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return false
	}
	n.wg.Go(fn)
	return true
}

func (n *Node) untrack(c net.Conn) {
	n.mu.Lock()
	delete(n.mu.conns, c)
	n.mu.Unlock()
}

// serverConn returns the connection as the far end expects it.
func (n *Node) serverConn(c net.Conn) net.Conn {
	tune(c)
	if n.o.TLSServer == nil {
		return c
	}
	return tls.Server(c, n.o.TLSServer)
}
