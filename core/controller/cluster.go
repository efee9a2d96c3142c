package controller

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/core/meta"
	"sluice/core/shard"
)

const (
	// joinStable is how long a node must have answered before it gets replicas: one that comes and goes would only cost copies.
	joinStable = 5 * time.Second
	// removedTimeout bounds the word to a node that it was removed.
	removedTimeout = time.Second
)

// Commands of membership, on their way to the metadata leader.
const (
	cmdDrain command = iota + 20
	cmdMove
	cmdRemove
	cmdBalance
	cmdReplicasRemoved
	cmdReplicasDeleted
	cmdRecover
)

// moveRequest asks for other members of one shard.
type moveRequest struct {
	Shard meta.ShardID  `cbor:"1,keyasint"`
	Nodes []meta.NodeID `cbor:"2,keyasint"`
}

// removeRequest asks for a node to be removed from the cluster.
type removeRequest struct {
	Node meta.NodeID `cbor:"1,keyasint"`
	// Force removes a node that is dead: its shards get other members first, or go on with fewer.
	Force bool `cbor:"2,keyasint,omitempty"`
	// LoseData gives up the shards that only this node had.
	LoseData bool `cbor:"3,keyasint,omitempty"`
}

// Drain says that a node shall have no replicas, or with off that it may have some again. It returns when that is committed; the
// replicas go in their time.
func (c *Controller) Drain(ctx context.Context, node meta.NodeID, off bool) error {
	return oneError(c.submit(ctx, &commandRequest{Command: cmdDrain, Drain: &meta.DrainNode{Node: node, Drain: !off}}))
}

// MoveShard gives a shard the members on these nodes, the preferred leader first. It returns when that is wanted, not when it is so.
func (c *Controller) MoveShard(ctx context.Context, id meta.ShardID, nodes []meta.NodeID) error {
	return oneError(c.submit(ctx, &commandRequest{Command: cmdMove, Move: &moveRequest{Shard: id, Nodes: nodes}}))
}

// RemoveNode removes a node that has no replicas any more from the cluster; with force also one that is dead and has some, and with
// loseData even if nobody else has its data.
func (c *Controller) RemoveNode(ctx context.Context, node meta.NodeID, force, loseData bool) error {
	r := &removeRequest{Node: node, Force: force, LoseData: loseData}
	return oneError(c.submit(ctx, &commandRequest{Command: cmdRemove, Remove: r}))
}

// Balance has replicas and leaders spread evenly, also where that is not done by itself.
func (c *Controller) Balance(ctx context.Context) error {
	return oneError(c.submit(ctx, &commandRequest{Command: cmdBalance}))
}

// membership plans and commits a command of membership. known is false for other commands.
func (l *lead) membership(ctx context.Context, r *commandRequest) (res meta.Result, known bool, err error) {
	if r.Command < cmdDrain || r.Command > cmdRecover {
		return meta.Result{}, false, nil
	}
	l.askLevels(ctx)
	if err := l.checkLevel(meta.LevelMembership); err != nil {
		return meta.Result{Err: err}, true, nil
	}
	switch {
	case r.Command == cmdDrain && r.Drain != nil:
		res, err = l.drain(ctx, r)
	case r.Command == cmdMove && r.Move != nil:
		res, err = l.move(ctx, r)
	case r.Command == cmdRemove && r.Remove != nil:
		res, err = l.removeNode(ctx, r)
	case r.Command == cmdBalance:
		res, err = l.propose(ctx, r.ID, &meta.RequestBalance{})
	case r.Command == cmdRecover && r.Recover != nil:
		res, err = l.recover(ctx, r)
	case r.Command == cmdReplicasRemoved && r.Removed != nil:
		res, err = l.propose(ctx, meta.RequestID{}, r.Removed)
	case r.Command == cmdReplicasDeleted && r.Deleted != nil:
		res, err = l.propose(ctx, meta.RequestID{}, r.Deleted)
	default:
		return meta.Result{}, true, fmt.Errorf("%w: command without a body", errRemote)
	}
	l.c.balanceNow()
	l.c.members.poke()
	return res, true, err
}

// waitedFor makes a person's command be answered when every live node has it: whoever is asked next shows it.
func waitedFor(r *commandRequest) []meta.ShardID {
	if r.Command == cmdReplicasRemoved || r.Command == cmdReplicasDeleted {
		return nil
	}
	return []meta.ShardID{}
}

// checkLevel returns why a command of a level cannot be made yet: a node of an older release that is alive would stop at it.
func (l *lead) checkLevel(level uint8) *meta.Error {
	for _, n := range l.c.Image().Nodes() {
		if n.ID != l.c.Self() && l.live(n.ID) && l.levelOf(n.Server()) < level {
			return meta.Errorf(meta.CodeUnsupportedVersion, "Node %d runs a release that does not know this yet, or does not say which one it runs: upgrade all nodes first.", n.ID)
		}
	}
	return nil
}

// askLevels asks the nodes that have not told this leader their level yet: it may lead for a moment only, and a command that somebody waits for is
// not refused for that.
func (l *lead) askLevels(ctx context.Context) {
	var wg sync.WaitGroup
	for _, n := range l.c.Image().Nodes() {
		l.mu.Lock()
		_, told := l.mu.levels[n.Server()]
		l.mu.Unlock()
		if n.ID != l.c.Self() && !told && l.live(n.ID) {
			wg.Go(func() { _, _ = l.hear(ctx, n) })
		}
	}
	wg.Wait()
}

func (l *lead) levelOf(s meta.Server) uint8 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.levels[s]
}

func (l *lead) drain(ctx context.Context, r *commandRequest) (meta.Result, error) {
	res, err := l.propose(ctx, r.ID, r.Drain)
	if err == nil && res.Err == nil && !r.Drain.Drain && l.c.autoBalance() {
		_, err = l.propose(ctx, meta.RequestID{}, &meta.RequestBalance{})
	}
	return res, err
}

func (l *lead) move(ctx context.Context, r *commandRequest) (meta.Result, error) {
	image := l.c.Image()
	s := image.Shard(r.Move.Shard)
	if s == nil {
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Shard %d does not exist.", r.Move.Shard)}, nil
	}
	if n := int(s.ReplicationFactor); len(r.Move.Nodes) != n {
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidReplicaAssignment, "Shard %d has %d replicas: name as many nodes.", s.ID, n)}, nil
	}
	a := meta.ShardAssignment{Shard: s.ID, Generation: s.Generation, From: s.Voters}
	for _, id := range r.Move.Nodes {
		n, ok := image.Node(id)
		switch {
		case !ok:
			return meta.Result{Err: meta.Errorf(meta.CodeInvalidReplicaAssignment, "Node %d is not registered.", id)}, nil
		case n.Draining:
			return meta.Result{Err: meta.Errorf(meta.CodeInvalidReplicaAssignment, "Node %d drains: it gets no replicas.", id)}, nil
		}
		a.Voters = append(a.Voters, n.Server())
	}
	res, err := l.propose(ctx, r.ID, &meta.AssignShards{Items: []meta.ShardAssignment{a}})
	return firstError(res), err
}

// firstError makes the first refused item the answer.
func firstError(res meta.Result) meta.Result {
	for _, e := range res.Errors {
		if e != nil {
			return meta.Result{Err: e}
		}
	}
	return res
}

func (l *lead) removeNode(ctx context.Context, r *commandRequest) (meta.Result, error) {
	n, ok := l.c.Image().Node(r.Remove.Node)
	if !ok {
		return meta.Result{Err: meta.Errorf(meta.CodeBrokerIDNotRegistered, "Node %d is not registered.", r.Remove.Node)}, nil
	}
	dead := n.Fenced && !l.live(n.ID)
	switch {
	case len(l.c.Image().Nodes()) == 1:
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Node %d is the last one: a cluster needs a node.", n.ID)}, nil
	case r.Remove.Force && !dead:
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Node %d is alive: drain it, or stop it first.", n.ID)}, nil
	case !r.Remove.Force && l.votes(n.Server()):
		return meta.Result{Err: meta.Errorf(meta.CodeInvalidRequest, "Node %d still votes on the metadata: drain it first.", n.ID)}, nil
	}
	if r.Remove.Force {
		if refused, err := l.abandon(ctx, n, r.Remove.LoseData); err != nil || refused != nil {
			return meta.Result{Err: refused}, err
		}
	}
	res, err := l.propose(ctx, r.ID, &meta.UnregisterNode{Server: n.Server(), Dead: r.Remove.Force, LoseData: r.Remove.LoseData})
	if err == nil && res.Err == nil {
		l.c.log.Info("removed a node from the cluster", "node", n.ID, "incarnation", n.Incarnation)
		l.tellRemoved(ctx, n.ID)
		if l.c.autoBalance() {
			_, err = l.propose(ctx, meta.RequestID{}, &meta.RequestBalance{})
		}
	}
	return res, err
}

// tellRemoved lets a node that is alive know that it is no longer one of the cluster: nobody replicates the metadata to it.
func (l *lead) tellRemoved(ctx context.Context, id meta.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, removedTimeout)
	defer cancel()
	if err := l.c.pool.call(ctx, id, opRemoved, nil, nil); err != nil {
		l.c.log.Debug("could not tell a node that it was removed", "node", id, "err", err)
	}
}

// votes tells whether a server votes on the metadata.
func (l *lead) votes(s meta.Server) bool {
	return slices.ContainsFunc(l.c.group().Replicas(), func(x shard.Replica) bool { return x.Server == s && x.Voter })
}

// abandon takes a dead node out of the wanted members of all shards. Where nobody can take its place, the shard goes on with fewer
// until somebody can.
func (l *lead) abandon(ctx context.Context, n meta.Node, loseData bool) (*meta.Error, error) {
	b := l.balancer()
	b.begin()
	cmd := &meta.AssignShards{}
	for _, s := range l.c.Image().Shards() {
		at := slices.Index(s.Voters, n.Server())
		switch {
		case s.Lost:
			continue
		case leaves(s, n.Server()) && !loseData && !l.goesOn(s, n.ID):
			return meta.Errorf(meta.CodeInvalidRequest, "Shard %d, with %d partitions, is being moved away from node %d and needs its replica until that is done: bring it back, or give the data up with --lose-data.", s.ID, s.Partitions, n.ID), nil
		case at < 0:
			continue
		}
		switch only := len(s.Voters) == 1 && len(s.Leaving) == 0; {
		case only && loseData:
			continue
		case only:
			return meta.Errorf(meta.CodeInvalidRequest, "Node %d has the only replica of shard %d, with %d partitions: bring it back, or give them up with --lose-data.", n.ID, s.ID, s.Partitions), nil
		case !b.hasMajority(s):
			return meta.Errorf(meta.CodeInvalidRequest, "Shard %d has no majority of its replicas: bring node %d or another one back first.", s.ID, n.ID), nil
		}
		cmd.Items = append(cmd.Items, b.without(s, at))
	}
	if len(cmd.Items) == 0 {
		return nil, nil
	}
	res, err := l.propose(ctx, meta.RequestID{}, cmd)
	return firstError(res).Err, err
}

// goesOn tells whether a shard that is being moved has its data and a leader without a node that it is moved away from: its leader is
// alive, and so are as many of those that were in sync as the shard needs.
func (l *lead) goesOn(s *meta.Shard, without meta.NodeID) bool {
	up := 0
	for _, id := range s.ISR {
		up += boolToInt(id != without && l.live(id))
	}
	return s.Leader != without && l.live(s.Leader) && up > len(s.Voters)/2
}

// without plans a shard without its member at an index, with another one in its place if there is one.
func (b *balancer) without(s *meta.Shard, at int) meta.ShardAssignment {
	a := meta.ShardAssignment{Shard: s.ID, Generation: s.Generation, From: s.Voters}
	if to, ok := b.candidate(s, at); ok {
		b.replace(s, at, to)
		a.Voters = b.voters[s.ID]
		return a
	}
	a.Voters = slices.Delete(slices.Clone(s.Voters), at, at+1)
	b.voters[s.ID] = a.Voters
	return a
}

// balancer returns a balancer over the present image and what this leader knows of the nodes.
func (l *lead) balancer() *balancer {
	image := l.c.Image()
	return &balancer{
		image: image, alive: l.live, deadAfter: l.c.deadAfter(),
		takes: func(id meta.NodeID) bool {
			n, ok := image.Node(id)
			return ok && !n.Draining && !n.Fenced && l.stable(n)
		},
		silent: func(id meta.NodeID) time.Duration {
			n, ok := image.Node(id)
			if !ok || l.live(id) {
				return 0
			}
			return l.silent(n.Server())
		},
	}
}

// trustLocked takes the nodes that the leader before did not miss for stable: a drain shall not wait at every election.
func (l *lead) trustLocked(image *meta.Image) {
	for _, n := range image.Nodes() {
		if !n.Fenced {
			l.mu.alive[n.Server()] = time.Now().Add(-l.c.o.JoinStable)
		}
	}
}

// stable tells whether a node has been alive for a while.
func (l *lead) stable(n meta.Node) bool {
	if n.ID == l.c.Self() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	since, ok := l.mu.alive[n.Server()]
	return ok && time.Since(since) >= l.c.o.JoinStable
}

// longDead tells whether a server has been silent for so long that its replicas are made elsewhere.
func (l *lead) longDead(s meta.Server) bool {
	after := l.c.deadAfter()
	return after > 0 && !l.live(s.Node) && l.silent(s) > after
}

// balanceNow wakes the balancer.
func (c *Controller) balanceNow() {
	select {
	case c.balanceWake <- struct{}{}:
	default:
	}
}

// runBalance has replicas moved while this node leads the metadata.
func (l *lead) runBalance(ctx context.Context) {
	for {
		beat := l.c.beat.wait()
		if l.serving() == nil && ctx.Err() == nil {
			if err := l.balanceRound(ctx); err != nil && ctx.Err() == nil {
				l.c.log.Debug("could not balance", "err", err)
			}
		}
		select {
		case <-beat:
		case <-l.c.balanceWake:
		case <-ctx.Done():
			return
		}
	}
}

// balanceRound plans and commits the next changes. It holds the lock of planning, so that no topic is placed meanwhile.
func (l *lead) balanceRound(ctx context.Context) error {
	l.plan.Lock()
	defer l.plan.Unlock()
	if l.checkLevel(meta.LevelMembership) != nil || l.c.Image().ClusterID() == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if done, err := l.refoundEmpty(ctx); done || err != nil {
		return err
	}
	b := l.balancer()
	request := b.image.BalanceRequest()
	items := b.plan(request != 0)
	switch {
	case len(items) > 0:
		_, err := l.propose(ctx, meta.RequestID{}, &meta.AssignShards{Items: items})
		l.tellMoves(items)
		if err == nil && l.c.autoBalance() && request == 0 && completes(items) {
			_, err = l.propose(ctx, meta.RequestID{}, &meta.RequestBalance{})
		}
		return err
	case request != 0 && b.moving == 0 && !l.anyYoung():
		_, err := l.propose(ctx, meta.RequestID{}, &meta.EndBalance{Request: request})
		l.c.log.Info("replicas and leaders are balanced")
		return err
	case request == 0 && l.c.autoBalance() && l.unshared():
		_, err := l.propose(ctx, meta.RequestID{}, &meta.RequestBalance{})
		l.c.log.Info("a node has no replicas: replicas and leaders will be balanced")
		return err
	}
	return nil
}

// unshared tells whether a node has no replicas and would get some. One that has just come counts too, although it gets none before it is stable: new
// topics may have given it a few by then, and nobody would see any more that it lacks the others. The request waits for it.
func (l *lead) unshared() bool {
	b := l.balancer()
	stable := b.takes
	b.takes = func(id meta.NodeID) bool { return stable(id) || l.young(id) }
	b.begin()
	return b.wanting() && len(b.plan(true)) > 0
}

// young tells whether a node is alive, and not yet for so long that it may get replicas.
func (l *lead) young(id meta.NodeID) bool {
	n, ok := l.c.Image().Node(id)
	return ok && !n.Draining && l.live(id) && !l.stable(n)
}

// anyYoung tells whether a request to balance has to wait for a node: done without it, it would be forgotten before the node can take anything.
// A node that goes again is waited for no longer.
func (l *lead) anyYoung() bool {
	return slices.ContainsFunc(l.c.Image().Nodes(), func(n meta.Node) bool { return l.young(n.ID) })
}

// completes tells whether shards get replicas back that they lack since a dead node was removed: a new node takes its place, and
// shall lead its share too.
func completes(items []meta.ShardAssignment) bool {
	return slices.ContainsFunc(items, func(a meta.ShardAssignment) bool { return len(a.Voters) > len(a.From) })
}

func (l *lead) tellMoves(items []meta.ShardAssignment) {
	for _, a := range items {
		l.c.log.Info("shard gets other members", "shard", a.Shard, "from", serverNodes(a.From), "to", serverNodes(a.Voters))
	}
}

func serverNodes(servers []meta.Server) []meta.NodeID {
	out := make([]meta.NodeID, len(servers))
	for i, s := range servers {
		out[i] = s.Node
	}
	return out
}

// wanting tells whether a node that could take replicas has none while others have several: it has joined, or come back after its
// replicas were made elsewhere.
func (b *balancer) wanting() bool {
	most, none := 0, false
	for _, n := range b.takers() {
		most = max(most, b.count[n.ID])
		none = none || b.count[n.ID] == 0
	}
	return none && most > 1
}

// clusterSetting returns a dynamic setting of all brokers, or its default.
func (c *Controller) clusterSetting(name string) string {
	if v, ok := c.Image().Config(meta.ResourceBroker, "")[name]; ok {
		return v
	}
	return meta.BrokerConfigs.Default(name)
}

func (c *Controller) autoBalance() bool { return c.clusterSetting(meta.AutoBalanceEnable) == "true" }

// deadAfter is how long a node is silent before its replicas are made elsewhere; 0: never.
func (c *Controller) deadAfter() time.Duration {
	ms, err := strconv.ParseInt(c.clusterSetting(meta.AutoBalanceDeadMs), 10, 64)
	if err != nil || !c.autoBalance() {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}
