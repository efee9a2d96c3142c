package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"sluice/core/meta"
	"sluice/core/shard"
)

// keepMembers makes one change towards the wanted members of the shard. When there is nothing to change it says which members
// are gone, so that they delete their replicas.
func (r *replica) keepMembers(ctx context.Context, s *meta.Shard) error {
	ro := &roster{have: r.group.Replicas(), self: r.c.id.server(), usable: r.usable}
	next := ro.towards(s.Voters)
	if next.what == actNothing {
		return r.tellRemoved(ctx, s)
	}
	if err := next.apply(ctx, r.group); err != nil {
		return err
	}
	r.c.log.Info("changed the members of a shard", "shard", r.id, "change", actionNames[next.what], "server", next.who)
	return nil
}

// tellRemoved lets the metadata know of members that have left the group. They may be members again in another generation of the
// wanted ones, so the word counts for this one only; and what Raft lists may not be committed, so a barrier comes first.
func (r *replica) tellRemoved(ctx context.Context, s *meta.Shard) error {
	if len(s.Leaving) == 0 || !slices.ContainsFunc(s.Leaving, func(x meta.Server) bool { return !isMember(r.group.Replicas(), x) }) {
		return nil
	}
	members, err := r.group.Committed(ctx)
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(slices.Clone(s.Leaving), func(x meta.Server) bool { return isMember(members, x) })
	if len(gone) == 0 {
		return nil
	}
	cmd := &meta.ReplicasRemoved{Shard: s.ID, Generation: s.Generation, Servers: gone}
	if err := oneError(r.c.submit(ctx, &commandRequest{Command: cmdReplicasRemoved, Removed: cmd})); err != nil {
		return fmt.Errorf("tell which replicas have left shard %d: %w", s.ID, err)
	}
	return nil
}

func isMember(members []shard.Replica, s meta.Server) bool {
	return slices.ContainsFunc(members, func(x shard.Replica) bool { return x.Server == s })
}

// findReplicas notes the shards that have a replica on disk at the start: those are opened also when they are no longer wanted,
// for until they are removed others may need them.
func (c *Controller) findReplicas() {
	c.onDisk, c.deleted = make(map[meta.ShardID]bool), make(map[meta.ShardID]bool)
	names, err := c.o.FS.List(filepath.Join(c.o.DataDir, "shards"))
	if err != nil {
		return // there is none yet
	}
	for _, name := range names {
		if id, err := strconv.ParseUint(name, 10, 32); err == nil {
			c.onDisk[meta.ShardID(id)] = true
		}
	}
}

// shallOpen tells whether a shard that is not open is to be opened. An old image may want a replica that has long been removed, so
// before the image is known to be recent only those that exist are opened.
func (c *Controller) shallOpen(image *meta.Image, s *meta.Shard) bool {
	switch {
	case c.replica(s.ID) != nil || image.RemovesReplica(s.ID, c.id.server()) || !c.heals.mayOpen(s.ID) || c.o.Files.WholeFailed() != nil:
		return false
	case c.onDisk[s.ID]:
		return true
	}
	return s.Has(c.id.server()) && (c.isCurrent() || c.hasReplica(s.ID))
}

// shallFound tells whether this node founds its replica of a shard. Once a leader was reported the group exists, and whoever has no
// replica waits for what the leader sends: a founder whose replica was removed, and that is wanted again, would otherwise come back
// as an empty voter with a vote of its own. An old image may not know of the leader.
func (c *Controller) shallFound(s *meta.Shard) bool {
	return s.Term == 0 && c.isCurrent() && slices.Contains(s.Founding, c.id.server())
}

// removeReplicas deletes the replicas that have a record saying so, and says that it has. A record in an old image may be of an
// earlier time when the server was a member, so nothing goes before the image is known to be recent.
func (c *Controller) removeReplicas(ctx context.Context) error {
	self := c.id.server()
	if !c.isCurrent() {
		return nil
	}
	var errs []error
	cmd := &meta.ConfirmReplicaRemovals{}
	records := c.Image().ReplicaRemovals(self)
	maps.DeleteFunc(c.deleted, func(id meta.ShardID, _ bool) bool { return !slices.Contains(records, id) })
	for _, id := range records {
		if c.deleted[id] {
			continue // and said so: it comes back in the image
		}
		if err := c.removeReplica(id); err != nil {
			errs = append(errs, fmt.Errorf("remove replica of shard %d: %w", id, err))
			continue
		}
		cmd.Removals = append(cmd.Removals, meta.ReplicaRemoval{Shard: id, Server: self})
	}
	if len(cmd.Removals) == 0 {
		return errors.Join(errs...)
	}
	if err := oneError(c.submit(ctx, &commandRequest{Command: cmdReplicasDeleted, Deleted: cmd})); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, r := range cmd.Removals {
		c.deleted[r.Shard] = true
	}
	return errors.Join(errs...)
}

// removeReplica deletes what there is of a replica, open or not. Cut short anywhere, it is done again after the start, since the
// record is still there.
func (c *Controller) removeReplica(id meta.ShardID) error {
	r := c.replica(id)
	if r != nil {
		c.setReplica(id, nil)
		r.stop()
	}
	if err := c.node.Remove(id); err != nil {
		return err
	}
	if r != nil {
		if err := r.set.Destroy(); err != nil {
			return err
		}
	}
	delete(c.onDisk, id)
	if err := c.dirs.RemoveShard(id); err != nil {
		return err
	}
	c.log.Info("deleted the replica of a shard", "shard", id)
	return nil
}

// stop ends what the replica runs and waits for it.
func (r *replica) stop() {
	r.cancel()
	r.running.Wait()
}
