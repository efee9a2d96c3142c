package shard

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"sluice/core/meta"
	"sluice/core/vfs"
)

// A mark, `<data>/shards/<id>.mark`, says what this node knows of its replica of a shard apart from the replica's own
// directory. Without it a directory that is lost looks like one that never was, and an empty voter would come back under
// the name of one that has voted.
const (
	markSuffix = ".mark"
	// markHad: the replica has heard of a term. Its log must be there.
	markHad = "had\n"
	// markRemoved: the replica was deleted with its group's consent. It may come back empty, and is never bootstrapped.
	markRemoved = "removed\n"
)

// mark returns "" when there is none, or none that can be read: then it is not relied upon.
func (n *Node) mark(id meta.ShardID) (string, error) {
	raw, err := vfs.ReadFile(n.o.FS, n.dir(id)+markSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read mark of shard %d: %w", id, err)
	}
	if m := string(raw); m == markHad || m == markRemoved {
		return m, nil
	}
	return "", nil
}

func (n *Node) setMark(id meta.ShardID, mark string) error {
	if err := vfs.WriteFile(n.o.FS, n.dir(id)+markSuffix, []byte(mark)); err != nil {
		return fmt.Errorf("mark shard %d as %s: %w", id, strings.TrimSpace(mark), err)
	}
	return nil
}

// checkMark compares the mark with the log that was opened, and writes it once there is something to lose.
func (n *Node) checkMark(id meta.ShardID, mark string, term uint64) error {
	switch {
	case mark == markHad && term == 0:
		return fmt.Errorf("%w: its log is gone", ErrDamaged)
	case mark != markHad && term > 0:
		return n.setMark(id, markHad)
	}
	return nil
}

// keepMark writes the mark of a replica that was empty when it was opened, once it has heard of a term.
func (g *Group) keepMark() {
	if g.marked || g.log.Info().Term == 0 {
		return
	}
	err := g.node.setMark(g.id, markHad)
	g.marked = err == nil // otherwise it is tried again at the next look
}

// Forget removes the mark of a replica that is not there: its shard begins anew, so what it knew of the old one binds it no
// longer.
func (n *Node) Forget(id meta.ShardID) error {
	err := n.o.FS.Remove(n.dir(id) + markSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = n.o.FS.SyncDir(path.Join(n.o.Dir, shardsDir))
	}
	if err != nil {
		return fmt.Errorf("forget shard %d: %w", id, err)
	}
	return nil
}
