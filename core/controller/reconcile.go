package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

const (
	// kindSegments is the kind of connection by which replicas fetch segments from each other.
	kindSegments = "segments"
	// reconcileWait and reconcileWaitMax separate rounds that failed.
	reconcileWait    = 100 * time.Millisecond
	reconcileWaitMax = 5 * time.Second
	// openersMax shards are opened at one time: most of an opening is waiting for the disk, and the rest is work for few cores.
	openersMax = 4
)

// reconcile compares the shards that this node shall have with those that are open, opens what
// is missing, and deletes what an explicit record says is to go. One goroutine does it, on every change of the metadata.
func (c *Controller) reconcile(ctx context.Context, run *errgroup.Group) {
	wait, last := reconcileWait, ""
	c.findReplicas()
	sweep := time.NewTicker(strayInterval)
	defer sweep.Stop()
	for {
		changed, progress := c.Changed(), c.progress.wait()
		c.closeFailed(ctx, run)
		err := errors.Join(c.openWanted(ctx, run), c.removeReplicas(ctx))
		var retry <-chan time.Time
		if err != nil {
			if err.Error() != last {
				c.log.Error("could not open all shards of this node", "err", err)
			}
			last = err.Error()
			retry, wait = time.After(wait), min(2*wait, reconcileWaitMax)
			changed, progress = nil, nil
		} else {
			wait, last = reconcileWait, ""
		}
		select {
		case <-changed:
		case <-progress:
		case <-c.heals.due():
		case <-sweep.C:
			c.removeStrays(time.Now())
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Controller) openWanted(ctx context.Context, run *errgroup.Group) error {
	image := c.Image()
	errs := make([]error, len(image.Shards()))
	var openers errgroup.Group
	openers.SetLimit(openersMax)
	for i, s := range image.Shards() {
		if err := c.foundAgain(s); err != nil {
			errs[i] = fmt.Errorf("found shard %d again: %w", s.ID, err)
			continue
		}
		if ctx.Err() == nil && c.shallOpen(image, s) {
			openers.Go(func() error { errs[i] = c.openOrHeal(ctx, run, s); return nil })
		}
	}
	_ = openers.Wait() // the errors are in errs, all of them
	return errors.Join(errs...)
}

// isCurrent tells whether the image is at least as new as the start of this node. Before that only
// replicas that exist are opened: an old image may want one that has long been replaced.
func (c *Controller) isCurrent() bool {
	select {
	case <-c.current:
		return true
	default:
		return false
	}
}

func (c *Controller) openShard(ctx context.Context, run *errgroup.Group, s *meta.Shard) error {
	if c.shallFound(s) {
		if s.Generation > 0 && !c.hasReplica(s.ID) { // the shard was lost and begins anew, whatever this node had of it
			if err := c.node.Forget(s.ID); err != nil {
				return err
			}
		}
		if err := c.node.Bootstrap(s.ID, s.Founding); err != nil {
			return fmt.Errorf("bootstrap shard %d: %w", s.ID, err)
		}
	}
	set, err := partition.Open(partition.Options{
		FS: c.o.FS, Dirs: c.dirs, Shard: s.ID, Files: c.o.Files, Logger: c.log,
		Peers: func() []partition.Peer { return c.shardPeers(s.ID) }, In: c.stages.in, Out: c.stages.out,
	})
	if err != nil {
		return fmt.Errorf("open partitions of shard %d: %w", s.ID, err)
	}
	group, err := c.node.Open(s.ID, setMachine{set})
	if err != nil {
		return errors.Join(fmt.Errorf("open shard %d: %w", s.ID, err), set.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &replica{c: c, id: s.ID, group: group, set: set, cancel: cancel}
	r.running.Add(4)
	c.setReplica(s.ID, r)
	run.Go(func() error { defer r.running.Done(); r.runMoves(ctx); return nil })
	run.Go(func() error { defer r.running.Done(); r.run(ctx); return nil })
	run.Go(func() error { defer r.running.Done(); c.runSet(ctx, r); return nil })
	run.Go(func() error { defer r.running.Done(); c.watchReplica(ctx, r); return nil })
	return nil
}

// setReplica makes a replica known, or with nil unknown.
func (c *Controller) setReplica(id meta.ShardID, r *replica) {
	c.replacing.Lock()
	defer c.replacing.Unlock()
	next := maps.Clone(c.replicaMap())
	if next[id] = r; r == nil {
		delete(next, id)
	}
	c.replicas.Store(&next)
}

func (c *Controller) runSet(ctx context.Context, r *replica) {
	if err := r.set.Run(ctx); err != nil && ctx.Err() == nil {
		c.log.Error("partitions of a shard stopped", "shard", r.id, "err", err)
		c.progress.notify()
	}
}

// shardPeers are the other members of a shard, to fetch segments from.
func (c *Controller) shardPeers(id meta.ShardID) []partition.Peer {
	s := c.Image().Shard(id)
	if s == nil {
		return nil
	}
	var out []partition.Peer
	for _, v := range slices.Concat(s.Voters, s.Leaving) { // those that leave have the data still
		if v.Node == c.Self() {
			continue
		}
		out = append(out, partition.Peer{
			Name: v.String(),
			Dial: func(ctx context.Context) (net.Conn, error) { return c.node.Dial(ctx, v.Node, kindSegments) },
		})
	}
	return out
}

// serveSegments lets a replica elsewhere fetch segments from one here.
func (c *Controller) serveSegments(ctx context.Context, from meta.NodeID, conn net.Conn) {
	err := partition.Serve(ctx, conn, func(id meta.ShardID) (*partition.Set, bool) {
		r := c.replica(id)
		if r == nil {
			return nil, false
		}
		return r.set, true
	})
	if err != nil && ctx.Err() == nil {
		c.log.Debug("segments connection ended", "node", from, "err", err)
	}
}

// setMachine is a partition set as its group sees it: package partition does not know package
// shard, so each has its own interface for a checkpoint.
type setMachine struct{ *partition.Set }

// Capture takes a checkpoint of the set.
func (m setMachine) Capture() (shard.Checkpoint, error) {
	checkpoint, err := m.Set.Capture()
	if err != nil {
		return nil, err
	}
	return checkpoint, nil
}
