package shard

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/raftlog"
)

const (
	logDir      = "log"
	newSuffix   = ".new"
	goneSuffix  = ".removed"
	createdTerm = 1
)

// Bootstrap creates this node's replica of a new shard with its founding voters, the preferred
// leader first. Every founding voter does it, with the same voters. Where the replica has a state
// already nothing happens.
func (n *Node) Bootstrap(id meta.ShardID, voters []meta.Server) error {
	n.mu.Lock()
	open := n.mu.groups[id]
	n.mu.Unlock()
	if open != nil {
		if open.member() {
			return nil
		}
		return fmt.Errorf("bootstrap shard %d: it is open and waits to be added", id)
	}
	// A replica that was here once is opened as it is, and one that was removed waits to be added, however the shard began.
	// The metadata is the exception: a node that could not join a cluster may found one.
	mark, err := n.mark(id)
	if err != nil || mark == markHad || mark == markRemoved && id != meta.MetadataShard {
		return err
	}
	if err := n.bootstrap(id, voters); err != nil {
		return fmt.Errorf("bootstrap shard %d: %w", id, err)
	}
	return nil
}

// bootstrap makes the directory under another name: cut anywhere, it is there whole or not at all.
// Half of it (the library stores the term before the configuration) would never elect a leader.
func (n *Node) bootstrap(id meta.ShardID, voters []meta.Server) error {
	if used, err := n.hasState(n.dir(id)); err != nil || used {
		return err
	}
	fsys, temp := n.o.FS, n.dir(id)+newSuffix
	for _, dir := range []string{temp, n.dir(id)} {
		if err := fsys.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove leftover: %w", err)
		}
	}
	log, err := raftlog.Open(fsys, path.Join(temp, logDir), logOptions)
	if err != nil {
		return err
	}
	err = writeFounders(log, voters)
	if err = errors.Join(err, log.Close()); err != nil {
		return err
	}
	if err := fsys.SyncDir(temp); err != nil {
		return fmt.Errorf("sync new directory: %w", err)
	}
	if err := fsys.Rename(temp, n.dir(id)); err != nil {
		return fmt.Errorf("name new directory: %w", err)
	}
	if err := fsys.SyncDir(path.Join(n.o.Dir, shardsDir)); err != nil {
		return fmt.Errorf("sync directory of shards: %w", err)
	}
	n.noteFounded(id)
	return nil
}

func writeFounders(log *raftlog.Store, voters []meta.Server) error {
	var c raft.Configuration
	for _, v := range voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: serverID(v), Address: serverAddress(v)})
	}
	if err := log.SetUint64([]byte("CurrentTerm"), createdTerm); err != nil {
		return err
	}
	return log.StoreLog(&raft.Log{Index: 1, Term: createdTerm, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)})
}

// hasState tells whether a directory holds a replica that has been given anything.
func (n *Node) hasState(dir string) (bool, error) {
	if _, err := n.o.FS.Stat(path.Join(dir, logDir)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	points, err := openCheckpoints(n.o.FS, dir)
	if err != nil {
		return true, err
	}
	log, err := raftlog.Open(n.o.FS, path.Join(dir, logDir), logOptions)
	if errors.Is(err, raftlog.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return true, err
	}
	info := log.Info()
	index, _ := points.current()
	return index > 0 || info.Last > 0 || info.Term > 0, log.Close()
}

// removeDir deletes a replica's directory. It is renamed first: what is left of it after a crash is
// not a replica.
func (n *Node) removeDir(id meta.ShardID) error {
	fsys, dir := n.o.FS, n.dir(id)
	if err := n.setMark(id, markRemoved); err != nil {
		return fmt.Errorf("remove shard %d: %w", id, err)
	}
	if err := fsys.RemoveAll(dir + goneSuffix); err != nil {
		return fmt.Errorf("remove shard %d: %w", id, err)
	}
	if err := fsys.Remove(dir + bootSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove shard %d: %w", id, err)
	}
	if err := fsys.Rename(dir, dir+goneSuffix); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove shard %d: %w", id, err)
	}
	err := fsys.SyncDir(path.Join(n.o.Dir, shardsDir))
	if err := errors.Join(err, fsys.RemoveAll(dir+goneSuffix)); err != nil {
		return fmt.Errorf("remove shard %d: %w", id, err)
	}
	return nil
}

// disk is a replica's files, checked.
type disk struct {
	log    *raftlog.Store
	points *checkpoints
	fresh  bool // founded and never used since
}

// openDisk opens a replica's files, or creates those of one that waits to be added, and undoes what
// a crash may have left between them.
func (n *Node) openDisk(id meta.ShardID, o raftlog.Options) (d disk, err error) {
	dir := n.dir(id)
	mark, err := n.mark(id)
	if err != nil {
		return d, err
	}
	if err := n.o.FS.MkdirAll(dir); err != nil {
		return d, fmt.Errorf("make directory: %w", err)
	}
	if d.points, err = openCheckpoints(n.o.FS, dir); err != nil {
		return d, err
	}
	o.Durable = n.syncedUpTo(id)
	d.log, err = raftlog.Open(n.o.FS, path.Join(dir, logDir), o)
	if errors.Is(err, raftlog.ErrDamaged) {
		return d, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return d, err
	}
	if err := errors.Join(n.checkMark(id, mark, d.log.Info().Term), reconcile(d.log, d.points)); err != nil {
		n.noteSynced(id, d.log)
		return d, errors.Join(err, d.log.Close())
	}
	info := d.log.Info()
	index, _ := d.points.current()
	d.fresh = index == 0 && info.First == 1 && info.Last == 1 && info.Term == createdTerm
	return d, nil
}

// reconcile compares log and checkpoint. A checkpoint from the leader is installed before the log
// is emptied, so a crash between the two leaves a log that ends before the checkpoint, or has
// another leader's entry at its index: the log goes. A log that begins behind the checkpoint's
// successor has lost entries: the replica is damaged.
func reconcile(log *raftlog.Store, points *checkpoints) error {
	index, term := points.current()
	info := log.Info()
	if info.Last == 0 {
		return nil
	}
	if info.First > index+1 {
		return fmt.Errorf("%w: the log begins at %d, the checkpoint ends at %d", ErrDamaged, info.First, index)
	}
	drop := info.Last < index
	if !drop && index >= info.First {
		var l raft.Log
		if err := log.GetLog(index, &l); err != nil {
			return err
		}
		drop = l.Term != term
	}
	if !drop {
		return nil
	}
	if err := log.DeleteRange(info.First, info.Last); err != nil {
		return fmt.Errorf("delete log before checkpoint %d: %w", index, err)
	}
	return nil
}

// sweep removes what bootstraps and removals that were cut short have left.
func (n *Node) sweep() error {
	dir := path.Join(n.o.Dir, shardsDir)
	names, err := n.o.FS.List(dir)
	if err != nil {
		return fmt.Errorf("list shards: %w", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, newSuffix) || strings.HasSuffix(name, goneSuffix) {
			if err := n.o.FS.RemoveAll(path.Join(dir, name)); err != nil {
				return fmt.Errorf("remove leftover shard: %w", err)
			}
		}
	}
	return nil
}
