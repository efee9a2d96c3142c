package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/core/meta"
	"sluice/core/shard"
)

const (
	// healWait and healWaitMax separate the tries to bring a replica back. The first comes quickly: most failures of a
	// disk are over at once. Each try reads the replica's log.
	healWait    = 200 * time.Millisecond
	healWaitMax = 10 * time.Second
	// healWaitShared is the first wait of a replica that has others beside it: they elect a leader meanwhile that has
	// applied everything. One that is back at once may win, and keeps clients waiting until it has replayed its log.
	healWaitShared = 2 * time.Second
	// renewTimeout bounds one request to take a damaged replica out of its group.
	renewTimeout = 15 * time.Second
	// renewHold is how long a server that was taken out of a group is not added again by the leader that did it: until
	// then what it answered before could be taken for an answer of its new replica. It is above the time for which an
	// answer counts in package shard.
	renewHold = 2 * time.Second
	// healSpace must be free on a disk that was full before a replica is tried again, or half of the node's reserve.
	healSpace = 64 << 20
	// healSpaceWait separates looks at a full disk.
	healSpaceWait = 500 * time.Millisecond
	// healMemory is how long a replica that is back is treated as one that may fail again: it is tried less often then.
	healMemory = 5 * time.Minute
	// healLogInterval is how often a replica that cannot be brought back is named in the log.
	healLogInterval = time.Minute
)

// heals is what is done about replicas of this node that have stopped by themselves: a failed disk, damaged files. One
// whose storage has failed is opened again in place. One that is damaged begins anew: its group takes it out, its log
// and checkpoint are deleted, and it is added again and fetches what its segment files lack.
type heals struct {
	mu   sync.Mutex
	list map[meta.ShardID]*heal
	past map[meta.ShardID]healed
	held map[heldServer]time.Time // until when
}

type heldServer struct {
	shard  meta.ShardID
	server meta.Server
}

// healed is a replica that has come back.
type healed struct {
	at   time.Time
	wait time.Duration
}

// heal is one replica that has stopped.
type heal struct {
	since   time.Time
	cause   error
	damaged bool
	busy    bool // being closed, or being renewed
	tries   int
	wait    time.Duration
	next    time.Time // not opened before
	logged  time.Time
}

func newHeals() *heals {
	return &heals{list: make(map[meta.ShardID]*heal), past: make(map[meta.ShardID]healed), held: make(map[heldServer]time.Time)}
}

// mayOpen tells whether a shard may be opened now.
func (h *heals) mayOpen(id meta.ShardID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.list[id]
	return x == nil || !x.busy && !time.Now().Before(x.next)
}

// idle tells whether no replica is being closed.
func (h *heals) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.list {
		if x.busy && !x.damaged {
			return false
		}
	}
	return true
}

// due returns a channel that tells when a replica may be opened again; nil when none waits for it.
func (h *heals) due() <-chan time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	var first time.Time
	for _, x := range h.list {
		if !x.busy && (first.IsZero() || x.next.Before(first)) {
			first = x.next
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(max(time.Until(first), time.Millisecond))
}

// failed notes that a replica has stopped, or could not be opened.
func (h *heals) failed(id meta.ShardID, err error, busy bool, first time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.list[id]
	if x == nil {
		x = &heal{since: time.Now(), wait: first}
		if past, ok := h.past[id]; ok && time.Since(past.at) < healMemory {
			x.wait = max(past.wait, first)
		}
		h.list[id] = x
	}
	x.cause, x.busy, x.damaged = err, busy, errors.Is(err, shard.ErrDamaged)
	x.tries++
	x.next = time.Now().Add(x.wait)
	x.wait = min(2*x.wait, healWaitMax)
}

// postpone waits for space, which costs nothing to look for.
func (h *heals) postpone(id meta.ShardID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x := h.list[id]; x != nil {
		x.next = time.Now().Add(healSpaceWait)
	}
}

// rest ends what keeps a replica busy.
func (h *heals) rest(id meta.ShardID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x := h.list[id]; x != nil {
		x.busy = false
	}
}

// note keeps the newest reason of a replica that is being renewed, and tells whether it is time to say so.
func (h *heals) note(id meta.ShardID, err error) (say bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.list[id]
	if x == nil {
		return false
	}
	x.cause = err
	x.tries++
	if time.Since(x.logged) < healLogInterval {
		return false
	}
	x.logged = time.Now()
	return true
}

// done forgets a replica that is back, and tells for how long it was not.
func (h *heals) done(id meta.ShardID) (since time.Time, was bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.list[id]
	delete(h.list, id)
	if x == nil {
		return time.Time{}, false
	}
	h.past[id] = healed{at: time.Now(), wait: x.wait}
	return x.since, true
}

func (h *heals) cause(id meta.ShardID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x := h.list[id]; x != nil {
		return x.cause
	}
	return nil
}

// hold keeps a server from being added to a group again for a while.
func (h *heals) hold(id meta.ShardID, s meta.Server, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(h.held, func(_ heldServer, until time.Time) bool { return until.Before(now) })
	h.held[heldServer{id, s}] = now.Add(d)
}

func (h *heals) isHeld(id meta.ShardID, s meta.Server) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.held[heldServer{id, s}])
}

// HealStatus is one replica that has stopped, for /status.
type HealStatus struct {
	Shard   meta.ShardID
	Since   time.Time
	Tries   int
	Damaged bool
	Cause   string
	Hint    string `json:",omitempty"`
}

func (h *heals) status() (out []HealStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, x := range h.list {
		s := HealStatus{Shard: id, Since: x.since.UTC(), Tries: x.tries, Damaged: x.damaged, Cause: x.cause.Error()}
		if x.damaged {
			s.Hint = damageHint
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b HealStatus) int { return cmp.Compare(a.Shard, b.Shard) })
	return out
}

const damageHint = "the replica begins anew as soon as the other replicas of the shard have a leader and are in sync; nothing here is deleted before. " +
	"If they stay away for good, keep a copy of this data directory before anything else is tried"

// watchReplica wakes the reconciler when the replica stops by itself.
func (c *Controller) watchReplica(ctx context.Context, r *replica) {
	select {
	case <-r.group.Failed():
		c.progress.notify()
	case <-ctx.Done():
	}
}

// closeFailed closes the replicas that have stopped by themselves. A hung disk may hold each up, so each is closed by a
// goroutine of its own.
//
// After a failed sync of the whole file system nobody knows whose data is lost, so all of them are closed.
func (c *Controller) closeFailed(ctx context.Context, run *errgroup.Group) {
	all := c.o.Files.WholeFailed()
	if all != nil && len(c.replicaMap()) == 0 && c.heals.idle() {
		c.renewWhole()
	}
	for id, r := range c.replicaMap() {
		err := cmp.Or(r.group.Err(), r.set.Err(), all)
		if err == nil || ctx.Err() != nil {
			continue
		}
		c.setReplica(id, nil)
		c.heals.failed(id, err, true, firstWait(r.group))
		c.log.Error("replica stopped and will be opened again", "shard", id, "err", err)
		run.Go(func() error {
			r.stop()
			c.node.Stop(id)
			if err := r.set.Close(); err != nil {
				c.log.Warn("partitions of a stopped replica not closed", "shard", id, "err", err)
			}
			c.heals.rest(id)
			c.progress.notify()
			return nil
		})
	}
}

// renewWhole begins anew with syncing the whole file system, while no log is open.
func (c *Controller) renewWhole() {
	if err := c.whole.Close(); err != nil {
		c.log.Warn("file system not closed", "err", err)
	}
	if err := c.openWhole(); err != nil {
		c.log.Error("could not open the file system again", "err", err)
	}
}

// openOrHeal opens a shard. One that cannot be opened is tried again later, and holds up no other.
func (c *Controller) openOrHeal(ctx context.Context, run *errgroup.Group, s *meta.Shard) error {
	if !c.hasSpace(c.heals.cause(s.ID)) {
		c.heals.postpone(s.ID)
		return nil
	}
	err := c.openShard(ctx, run, s)
	switch {
	case err == nil:
		if since, was := c.heals.done(s.ID); was {
			c.metrics.reopened.Inc()
			c.log.Info("replica opened again", "shard", s.ID, "after", time.Since(since).Round(time.Millisecond).String())
		}
	case ctx.Err() != nil:
	case errors.Is(err, shard.ErrDamaged):
		c.heals.failed(s.ID, err, true, healWait)
		c.log.Error("replica is damaged and will begin anew", "shard", s.ID, "err", err)
		run.Go(func() error { c.renewShard(ctx, s.ID); return nil })
	default:
		c.heals.failed(s.ID, err, false, healWait)
		if c.heals.note(s.ID, err) {
			c.log.Error("could not open a shard of this node", "shard", s.ID, "err", err)
		}
	}
	return nil
}

// hasSpace tells whether it is worth while to open a replica that has stopped for that reason.
func (c *Controller) hasSpace(cause error) bool {
	if !errors.Is(cause, syscall.ENOSPC) {
		return true
	}
	need := uint64(healSpace)
	if own := c.disks.own(); own != nil {
		need = min(need, own.ReserveBytes/2)
	}
	free, err := c.o.FS.Free(c.o.DataDir)
	return err != nil || free >= need
}

// renewShard lets a damaged replica begin anew.
func (c *Controller) renewShard(ctx context.Context, id meta.ShardID) {
	wanted := func() bool {
		s := c.Image().Shard(id)
		return s != nil && !c.Image().RemovesReplica(id, c.id.server())
	}
	if c.renew(ctx, id, wanted) {
		c.metrics.renewed.Inc()
	}
	c.heals.rest(id)
	c.progress.notify()
}

// renew asks for the replica to be taken out of its group until somebody has done it, then deletes its log and checkpoint.
// The segment files stay: what of them matches the group's is not fetched again.
func (c *Controller) renew(ctx context.Context, id meta.ShardID, wanted func() bool) bool {
	wait := healWait
	for ctx.Err() == nil && wanted() {
		err := c.askToRenew(ctx, id)
		if err == nil {
			if err = c.node.Remove(id); err == nil {
				c.log.Info("damaged replica begins anew", "shard", id)
				return true
			}
		}
		if ctx.Err() == nil && c.heals.note(id, err) {
			c.log.Error("damaged replica cannot begin anew yet", "shard", id, "err", err, "hint", damageHint)
		}
		pause(ctx, wait)
		wait = min(2*wait, healWaitMax)
	}
	return false
}

// errNotLed is returned by a node that does not lead the shard, or has no majority behind it.
var errNotLed = errors.New("does not lead the shard")

// errAlone is returned when a damaged replica has nobody to begin anew from.
var errAlone = errors.New("no other node has a replica")

type renewRequest struct {
	Shard  meta.ShardID `cbor:"1,keyasint"`
	Server meta.Server  `cbor:"2,keyasint"`
}

// askToRenew asks the other members, of which one leads.
func (c *Controller) askToRenew(ctx context.Context, id meta.ShardID) error {
	var errs []error
	for _, node := range c.othersOf(id) {
		call, cancel := context.WithTimeout(ctx, renewTimeout)
		err := c.pool.call(call, node, opRenew, &renewRequest{Shard: id, Server: c.id.server()}, nil)
		cancel()
		if err == nil {
			return nil
		}
		if errors.Is(err, errNotLeader) {
			err = errNotLed
		}
		errs = append(errs, fmt.Errorf("node %d: %w", node, err))
	}
	if len(errs) == 0 {
		return errAlone
	}
	return errors.Join(errs...)
}

// othersOf are the other nodes that may have a replica of a shard.
func (c *Controller) othersOf(id meta.ShardID) (out []meta.NodeID) {
	if id == meta.MetadataShard {
		for _, p := range slices.Concat(c.peers(), c.id.read().Peers) {
			out = append(out, p.ID)
		}
	} else if s := c.Image().Shard(id); s != nil {
		for _, v := range slices.Concat(s.Voters, s.Leaving) {
			out = append(out, v.Node)
		}
	}
	out = slices.DeleteFunc(out, func(n meta.NodeID) bool { return n == c.Self() })
	slices.Sort(out)
	return slices.Compact(out)
}

// serveRenew takes another node's damaged replica out of a group that this node leads. When it is answered without an
// error, that is committed, and only members that have what it had are left to decide anything. The members that are
// wanted have not changed, so it is added again as a new one.
func (c *Controller) serveRenew(ctx context.Context, from meta.NodeID, r *controlRequest) error {
	var q renewRequest
	if err := wireDecoding.Unmarshal(r.Body, &q); err != nil {
		return fmt.Errorf("decode renewal: %w", err)
	}
	if q.Server.Node != from || from == c.Self() {
		return fmt.Errorf("renew replica of node %d: asked for by node %d", q.Server.Node, from)
	}
	g := c.group()
	if q.Shard != meta.MetadataShard {
		if r := c.replica(q.Shard); r != nil {
			g = r.group
		} else {
			g = nil
		}
	}
	if g == nil {
		return errNotLeader
	}
	if _, ok := g.Serving(); !ok {
		return errNotLeader
	}
	c.heals.hold(q.Shard, q.Server, renewTimeout)
	defer c.heals.hold(q.Shard, q.Server, renewHold)
	members, err := g.Committed(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(members, func(x shard.Replica) bool { return x.Server == q.Server }) {
		return nil
	}
	if err := g.RemoveServer(ctx, q.Server); err != nil {
		return err
	}
	c.log.Info("took a damaged replica out of its group", "shard", q.Shard, "server", q.Server)
	return nil
}

// openMetadata opens this node's replica of the metadata at the start. A damaged one begins anew if there are other nodes;
// until one of them leads, it waits.
func (c *Controller) openMetadata(ctx context.Context) error {
	for {
		g, err := c.node.Open(meta.MetadataShard, c.machine)
		if err == nil {
			c.metadata.Store(g)
			c.heals.done(meta.MetadataShard)
			return nil
		}
		if !errors.Is(err, shard.ErrDamaged) {
			return fmt.Errorf("open the metadata group: %w", err)
		}
		if len(c.othersOf(meta.MetadataShard)) == 0 {
			return fmt.Errorf("open the metadata group: %w: this node is the only one of its cluster, so there is no copy; keep %s and restore it from a backup", err, c.o.DataDir)
		}
		c.heals.failed(meta.MetadataShard, err, true, healWait)
		c.log.Error("the metadata on this node is damaged and will begin anew", "err", err)
		c.machine.rewind()
		if !c.renew(ctx, meta.MetadataShard, func() bool { return true }) {
			return nil // ctx has ended
		}
		c.metrics.renewed.Inc()
	}
}

// reopenMetadata brings this node's replica of the metadata back after it has stopped. The image stays as it was meanwhile.
func (c *Controller) reopenMetadata(ctx context.Context, cause error) error {
	c.log.Error("the metadata group stopped on this node and will be opened again", "err", cause)
	wait := firstWait(c.group())
	for ctx.Err() == nil {
		c.heals.failed(meta.MetadataShard, cause, true, wait)
		c.node.Stop(meta.MetadataShard)
		pause(ctx, wait)
		wait = min(2*wait, healWaitMax)
		for !c.hasSpace(cause) && ctx.Err() == nil {
			pause(ctx, healWait)
		}
		c.machine.rewind()
		if cause = c.openMetadata(ctx); cause == nil {
			if ctx.Err() == nil {
				c.metrics.reopened.Inc()
				c.log.Info("the metadata group is open again")
			}
			return nil
		}
		if errors.Is(cause, shard.ErrDamaged) || errors.Is(cause, shard.ErrClosed) {
			return cause
		}
	}
	return nil
}

// firstWait is how long a replica that has stopped waits before it is opened again.
func firstWait(g *shard.Group) time.Duration {
	if len(g.Replicas()) > 1 {
		return healWaitShared
	}
	return healWait
}

// mustYield says why another replica should lead, "" when this one is as good.
func (r *replica) mustYield() string {
	switch {
	case !r.set.Complete():
		return "segments here are damaged"
	case r.c.disks.spent(r.c.Self()):
		return "the disk here is full"
	}
	return ""
}

// yield hands the shard to a voter that has everything, and space: clients need not wait until this one is well again. Where there
// is none this replica goes on to lead: it serves what is good.
func (r *replica) yield(ctx context.Context, why string) (handed bool) {
	for _, x := range r.group.Replicas() {
		if x.Server.Node == r.c.Self() || !x.Voter || !x.InSync || !r.usable(x.Server) || r.c.disks.spent(x.Server.Node) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		err := r.group.Transfer(ctx, x.Server.Node)
		cancel()
		if err == nil {
			r.c.log.Info("handed shard over", "shard", r.id, "node", x.Server.Node, "why", why)
			return true
		}
		r.c.log.Info("could not hand shard over", "shard", r.id, "to", x.Server.Node, "why", why, "err", err)
	}
	return false
}

var _ shard.Servable = setMachine{}
