package chaos

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// harm is what was done to a file of a node.
type harm struct {
	node int
	file string // below the data directory; "" = nothing was done
	what string
}

// damage changes one file of a stopped node, as the fault's value says: which one, where, and whether a bit is flipped or its end is cut off. A node
// that has no file of the kind yet is left alone.
func damage(data string, f Fault) (harm, error) {
	list := closedSegments
	if f.Kind == DamageLog {
		list = raftLogs
	}
	files, err := list(data)
	if err != nil || len(files) == 0 {
		return harm{what: "nothing to damage"}, err
	}
	r := rand.New(rand.NewPCG(uint64(f.Value), 0))
	file := files[r.IntN(len(files))]
	name, err := filepath.Rel(data, file)
	if err != nil {
		return harm{}, fmt.Errorf("damage: %w", err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() == 0 {
		return harm{what: "nothing to damage in " + name}, err
	}
	at := r.Int64N(info.Size())
	if r.IntN(3) == 0 {
		if err := os.Truncate(file, at); err != nil {
			return harm{}, fmt.Errorf("cut file: %w", err)
		}
		return harm{file: name, what: fmt.Sprintf("%s cut from %d to %d bytes", name, info.Size(), at)}, nil
	}
	return harm{file: name, what: fmt.Sprintf("%s: bit %d of byte %d of %d flipped", name, f.Value%8, at, info.Size())}, flip(file, at, f.Value%8)
}

// repaired says which damaged segment is not yet as another node has it.
func (r *run) repaired() error {
	for len(r.damaged) > 0 {
		h := r.damaged[0]
		var own, others []string
		for i, d := range r.cluster.disks {
			found, err := places(d.data(), h.file)
			if err != nil {
				return err
			}
			if i+1 == h.node {
				own = found
			} else {
				others = append(others, found...)
			}
		}
		if !sameAsOthers(own, others) {
			return fmt.Errorf("%w: %s on node %d is not repaired", errUnhealthy, h.file, h.node)
		}
		r.damaged = r.damaged[1:]
	}
	return nil
}

// places are where a node has a segment. A partition that has moved is for a while in a directory with more than its plain name, on each node in its own
// time.
func places(data, file string) ([]string, error) {
	dir, segment := filepath.Split(file)
	plain, _, _ := strings.Cut(filepath.Clean(dir), ".") // names of topics that are damaged have no dot
	found, err := filepath.Glob(filepath.Join(data, plain+".*", segment))
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", file, err)
	}
	found = append(found, filepath.Join(data, plain, segment))
	return slices.DeleteFunc(found, func(path string) bool {
		_, err := os.Stat(path)
		return err != nil || setAside(filepath.Dir(path))
	}), nil
}

// setAside tells whether a directory belongs to nobody any more.
func setAside(dir string) bool {
	return strings.HasSuffix(dir, "-stray") || strings.HasSuffix(dir, "-deleted")
}

// sameAsOthers compares a node's files with others. What all have removed is as good as repaired.
func sameAsOthers(own, others []string) bool {
	for _, file := range own {
		mine, err := os.ReadFile(file)
		if err != nil || !slices.ContainsFunc(others, func(o string) bool {
			theirs, err := os.ReadFile(o)
			return err == nil && bytes.Equal(mine, theirs)
		}) {
			return false
		}
	}
	return len(own) > 0 || len(others) == 0
}

// flip changes one bit.
func flip(file string, at int64, bit int) error {
	w, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("flip bit: %w", err)
	}
	b := make([]byte, 1)
	_, err = w.ReadAt(b, at)
	b[0] ^= 1 << bit
	if err == nil {
		_, err = w.WriteAt(b, at)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("flip bit: %w", err)
	}
	return nil
}

// closedSegments are the segments of partitions that are not written to any more: all but the last of each. What a node has set
// aside belongs to nobody.
func closedSegments(data string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(data, "*-*", "*.log")) // sorted: names are offsets in 20 digits
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var out []string
	for i := range len(files) - 1 {
		dir := filepath.Dir(files[i])
		if dir == filepath.Dir(files[i+1]) && !setAside(dir) {
			out = append(out, files[i])
		}
	}
	return out, nil
}

// raftLogs are the files of all Raft logs of a node, in order.
func raftLogs(data string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(filepath.Join(data, "shards"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.HasSuffix(path, ".rlog") {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list Raft logs: %w", err)
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out, nil
}
