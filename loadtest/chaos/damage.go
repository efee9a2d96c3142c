package chaos

import (
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

// damage changes one file of a stopped node, as the fault's value says: which one, where, and whether bits are flipped or its end is cut off.
// It returns what it did. A node that has no file of the kind yet is left alone.
func damage(data string, f Fault) (string, error) {
	list := closedSegments
	if f.Kind == DamageLog {
		list = raftLogs
	}
	files, err := list(data)
	if err != nil || len(files) == 0 {
		return "nothing to damage", err
	}
	r := rand.New(rand.NewPCG(uint64(f.Value), 0))
	file := files[r.IntN(len(files))]
	name, err := filepath.Rel(data, file)
	if err != nil {
		name = file
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() == 0 {
		return "nothing to damage in " + name, err
	}
	at := r.Int64N(info.Size())
	if r.IntN(3) == 0 {
		if err := os.Truncate(file, at); err != nil {
			return "", fmt.Errorf("cut file: %w", err)
		}
		return fmt.Sprintf("%s cut from %d to %d bytes", name, info.Size(), at), nil
	}
	return fmt.Sprintf("%s: bit %d of byte %d of %d flipped", name, f.Value%8, at, info.Size()), flip(file, at, f.Value%8)
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

// closedSegments are the segments of partitions that are not written to any more: all but the last of each.
func closedSegments(data string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(data, "*-*", "*.log")) // sorted: names are offsets in 20 digits
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var out []string
	for i := range len(files) - 1 {
		if filepath.Dir(files[i]) == filepath.Dir(files[i+1]) {
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
