package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"sluice/core/meta"
)

const (
	// joinWait and joinWaitMax separate the tries to join a cluster that does not answer.
	joinWait    = 100 * time.Millisecond
	joinWaitMax = 2 * time.Second
	// joinTimeout bounds one try; it contains takeOverWait.
	joinTimeout = 15 * time.Second
	// announceInterval and announceTimeout: how often a node that hears of no leader asks the others
	// to register it, and how long it waits for each.
	announceInterval = time.Second
	announceTimeout  = 3 * time.Second
	// takeOverWait is how long the directory that has a node id now may take to be found dead,
	// when another one asks for the id. It is above fenceAfter.
	takeOverWait = fenceAfter + 2*time.Second
)

var (
	// ErrRefused is returned when the cluster does not want this node: its id is in use.
	ErrRefused = errors.New("cluster refused this node")
	// ErrRemoved is returned when this node was removed from the cluster: what its data directory holds is not needed any more.
	ErrRemoved = errors.New("this node was removed from the cluster")
	// errNotFencedYet is returned while a node's id belongs to a directory that does not answer and is not known to be dead.
	errNotFencedYet = errors.New("the directory that has the id now is silent, but was heard of not long ago")
	// errNotFounded is returned while the first leader has not yet committed the cluster's id.
	errNotFounded = errors.New("the cluster is being founded")
)

type joinRequest struct {
	Node meta.Node `cbor:"1,keyasint"`
}

// moveAnswer is what a node hears that has moved to another address.
type moveAnswer struct {
	Removed bool `cbor:"1,keyasint,omitempty"` // it was removed from the cluster
}

type joinAnswer struct {
	ClusterID string `cbor:"1,keyasint"`
	Peers     []peer `cbor:"2,keyasint"`
	Refused   string `cbor:"3,keyasint,omitempty"`
}

// enterCluster makes sure that the data directory belongs to a cluster.
func (c *Controller) enterCluster(ctx context.Context) error {
	switch {
	case c.id.clusterID() != "":
		return nil
	case len(c.o.Join) > 0:
		return c.join(ctx)
	}
	return c.found()
}

// found makes this node the first and only voter of a new cluster's metadata. The cluster id is
// written last: cut short before that, it all happens again, and nobody has heard of the first try.
func (c *Controller) found() error {
	if err := c.node.Bootstrap(meta.MetadataShard, []meta.Server{c.id.server()}); err != nil {
		return fmt.Errorf("bootstrap the metadata group: %w", err)
	}
	id := newUUID()
	if err := c.id.change(func(f *identityJSON) { f.ClusterID = id }); err != nil {
		return fmt.Errorf("found a cluster: %w", err)
	}
	c.log.Info("founded a cluster", "cluster", id, "node", c.Self())
	return nil
}

func (c *Controller) join(ctx context.Context) error {
	if c.hasReplica(meta.MetadataShard) { // of a cluster that was never founded: see found
		if err := c.node.Remove(meta.MetadataShard); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	wait := joinWait
	for try := 0; ; try++ {
		addr := c.o.Join[try%len(c.o.Join)]
		err := c.tryJoin(ctx, addr)
		if err == nil || errors.Is(err, ErrRefused) {
			return err
		}
		c.log.Info("could not join yet", "via", addr, "err", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("join via %s: %w", addr, ctx.Err())
		}
		wait = min(2*wait, joinWaitMax)
	}
}

func (c *Controller) tryJoin(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	raw, err := c.node.DialAddr(ctx, addr, kindJoin)
	if err != nil {
		return fmt.Errorf("join via %s: %w", addr, err)
	}
	defer raw.Close()
	var answer joinAnswer
	if _, err := callConn(ctx, newControlConn(raw), opJoin, &joinRequest{Node: c.o.Self}, &answer); err != nil {
		return fmt.Errorf("join via %s: %w", addr, err)
	}
	if answer.Refused != "" {
		return fmt.Errorf("join via %s: %w: %s", addr, ErrRefused, answer.Refused)
	}
	c.log.Info("joined a cluster", "cluster", answer.ClusterID, "node", c.Self(), "via", addr)
	return c.id.change(func(f *identityJSON) { f.ClusterID, f.Peers = answer.ClusterID, answer.Peers })
}

// serveJoin answers a node that wants to join.
func (c *Controller) serveJoin(ctx context.Context, _ meta.NodeID, conn net.Conn) {
	serveConn(ctx, conn, func(ctx context.Context, r *controlRequest) (any, error) {
		var j joinRequest
		if r.Op != opJoin {
			return nil, fmt.Errorf("unknown request %d", r.Op)
		}
		if err := wireDecoding.Unmarshal(r.Body, &j); err != nil {
			return nil, fmt.Errorf("decode join request: %w", err)
		}
		return c.acceptJoin(ctx, j.Node)
	})
}

// acceptJoin registers the node. When its id belongs to another directory, that one gets the time
// to be found dead. It is called alive when it says so itself: to find that it is dead may take longer, as a new leader of the
// metadata begins to count anew.
func (c *Controller) acceptJoin(ctx context.Context, n meta.Node) (*joinAnswer, error) {
	if c.group() == nil {
		return nil, errors.New("this node has not joined a cluster itself yet")
	}
	deadline := time.Now().Add(takeOverWait)
	for {
		changed := c.Changed()
		res, err := c.submit(ctx, &commandRequest{Command: cmdRegister, Register: &meta.RegisterNode{Node: n}})
		switch {
		case err != nil:
			return nil, err
		case res.Err == nil:
			return &joinAnswer{ClusterID: c.id.clusterID(), Peers: c.peers()}, nil
		case c.waitFenced(ctx, n.ID, changed, deadline):
		case c.silentOwner(ctx, n):
			return nil, fmt.Errorf("%w: node id %d: %s", errNotFencedYet, n.ID, res.Err.Message)
		default:
			return &joinAnswer{Refused: res.Err.Message}, nil
		}
	}
}

// silentOwner tells whether the directory that a node's id belongs to is another one that does not answer.
func (c *Controller) silentOwner(ctx context.Context, n meta.Node) bool {
	owner, ok := c.Image().Node(n.ID)
	if !ok || owner.Incarnation == n.Incarnation || n.ID == c.Self() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var pong pingAnswer
	err := c.pool.call(ctx, n.ID, opPing, nil, &pong)
	return err != nil || pong.Server != owner.Server()
}

// waitFenced waits until the node is fenced and returns false when it is not in time.
func (c *Controller) waitFenced(ctx context.Context, id meta.NodeID, changed <-chan struct{}, deadline time.Time) bool {
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	for {
		if n, ok := c.Image().Node(id); ok && n.Fenced {
			return time.Now().Before(deadline)
		}
		select {
		case <-changed:
			changed = c.Changed()
		case <-t.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (c *Controller) hasReplica(id meta.ShardID) bool {
	_, err := c.o.FS.Stat(filepath.Join(c.o.DataDir, "shards", strconv.FormatUint(uint64(id), 10)))
	return err == nil
}

// peers are the other nodes as the identity file keeps them.
func (c *Controller) peers() []peer {
	var out []peer
	for _, n := range c.Image().Nodes() {
		out = append(out, peer{ID: n.ID, Addr: n.Addr})
	}
	return out
}

// keepPeers writes down where the others are whenever that changes.
func (c *Controller) keepPeers(ctx context.Context) {
	for {
		changed := c.Changed()
		if now := c.peers(); len(now) > 0 && !slices.Equal(now, c.id.read().Peers) {
			if err := c.id.change(func(f *identityJSON) { f.Peers = now }); err != nil {
				c.log.Warn("could not note the addresses of the other nodes", "err", err)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// register tells the cluster of this node as it is now, then reports readiness.
func (c *Controller) register(ctx context.Context) error {
	next := time.Now().Add(announceInterval)
	for {
		err := c.tryRegister(ctx)
		switch {
		case err == nil:
			close(c.ready)
			return nil
		case errors.Is(err, ErrRefused):
			return err
		}
		if time.Now().After(next) {
			c.announce(ctx)
			next = time.Now().Add(announceInterval)
		}
		if c.waitLeader(ctx) != nil {
			return nil
		}
	}
}

// announce asks the other nodes to register this one. It is for a node that has moved to another
// address while it was down: the leader looks for it where it was, so it never hears who leads.
func (c *Controller) announce(ctx context.Context) {
	r := &meta.RegisterNode{Node: c.o.Self}
	for _, p := range c.id.read().Peers {
		if p.ID == c.Self() || ctx.Err() != nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, announceTimeout)
		var answer moveAnswer
		err := c.pool.call(call, p.ID, opRegister, r, &answer)
		cancel()
		if answer.Removed {
			c.removedOnce.Do(func() { close(c.removed) })
		}
		if err == nil {
			return
		}
		c.log.Debug("could not announce this node", "to", p.ID, "err", err)
	}
}

// acceptMove registers a node of this cluster on its behalf.
func (c *Controller) acceptMove(ctx context.Context, n meta.Node) (*moveAnswer, error) {
	if c.Image().Unregistered(n.Server()) {
		return &moveAnswer{Removed: true}, nil
	}
	if known, ok := c.Image().Node(n.ID); !ok || known.Incarnation != n.Incarnation {
		return nil, fmt.Errorf("register node %d: not a node of this cluster", n.ID)
	}
	res, err := c.submit(ctx, &commandRequest{Command: cmdRegister, Register: &meta.RegisterNode{Node: n}})
	return &moveAnswer{}, oneError(res, err)
}

func (c *Controller) tryRegister(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	select {
	case <-c.current:
	default:
		close(c.current)
		c.progress.notify()
	}
	if c.Image().ClusterID() == "" {
		return errNotFounded
	}
	// Also when the metadata knows this node just so: the leader waits for it from here on, and what
	// was committed before is caught up with below. Else a node that was down for a moment would be
	// ready, and not yet waited for when changes are answered.
	res, err := c.submit(ctx, &commandRequest{Command: cmdRegister, Register: &meta.RegisterNode{Node: c.o.Self}})
	if err != nil {
		return err
	}
	if res.Err != nil {
		return fmt.Errorf("register node %d: %w: %s", c.Self(), ErrRefused, res.Err.Message)
	}
	return c.catchUp(ctx)
}
