package chaos

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Replicas is the outcome of a comparison of what the nodes' disks hold.
type Replicas struct {
	Partitions int      `json:"partitions"`
	Bytes      int64    `json:"bytes"`   // compared
	Shorter    int      `json:"shorter"` // replicas that end before the longest: their node stopped before it heard of the last commit
	Divergent  []string `json:"divergent"`
}

// segment is a file of a replica; its bytes are those of the partition from base on.
type segment struct {
	base int64
	path string
	size int64
}

var partitionName = regexp.MustCompile(`^.+-\d+$`)

// CompareReplicas compares the segment files of all replicas of every partition byte for byte, after the nodes have stopped. skip tells which
// partitions are not comparable (a compacted topic's replicas clean up by themselves). A replica may end before another does, as it may have
// stopped before it heard of the last commit, and begin later, as each removes old files by itself; where both have bytes, they are the same.
func CompareReplicas(dataDirs []string, skip func(partition string) bool) (Replicas, error) {
	of := map[string]map[int][]segment{}
	for i, dir := range dataDirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return Replicas{}, fmt.Errorf("list partitions: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() || !partitionName.MatchString(e.Name()) || skip(e.Name()) {
				continue
			}
			segments, err := listSegments(filepath.Join(dir, e.Name()))
			if err != nil {
				return Replicas{}, err
			}
			if len(segments) == 0 {
				continue
			}
			if of[e.Name()] == nil {
				of[e.Name()] = map[int][]segment{}
			}
			of[e.Name()][i] = segments
		}
	}
	out := Replicas{Divergent: []string{}}
	for partition, replicas := range of {
		if err := out.compare(partition, replicas); err != nil {
			return out, err
		}
	}
	slices.Sort(out.Divergent)
	return out, nil
}

func listSegments(dir string) ([]segment, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var out []segment
	for _, f := range files {
		base, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(f), ".log"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("segment %s: %w", f, err)
		}
		info, err := os.Stat(f)
		if err != nil {
			return nil, fmt.Errorf("segment: %w", err)
		}
		out = append(out, segment{base, f, info.Size()})
	}
	slices.SortFunc(out, func(a, b segment) int { return cmp.Compare(a.base, b.base) })
	return out, nil
}

// compare takes the replica that reaches furthest and compares the others with it.
func (r *Replicas) compare(partition string, replicas map[int][]segment) error {
	r.Partitions++
	best := -1
	for i, s := range replicas {
		if best < 0 || furthest(s, replicas[best]) || i < best && !furthest(replicas[best], s) {
			best = i
		}
	}
	for i, s := range replicas {
		if i == best {
			continue
		}
		why, err := r.pair(s, replicas[best])
		if err != nil {
			return err
		}
		if why != "" {
			r.Divergent = append(r.Divergent, fmt.Sprintf("%s: nodes %d and %d: %s", partition, i+1, best+1, why))
		}
	}
	return nil
}

// furthest tells whether a reaches further than b.
func furthest(a, b []segment) bool {
	x, y := a[len(a)-1], b[len(b)-1]
	return x.base > y.base || x.base == y.base && x.size > y.size
}

// pair compares one replica with the one that reaches furthest. Both begin segments at the same offsets, as these are decided by what is in them.
func (r *Replicas) pair(a, best []segment) (string, error) {
	for i, s := range a {
		j := slices.IndexFunc(best, func(b segment) bool { return b.base == s.base })
		switch {
		case j < 0 && s.base < best[0].base:
			continue // the other has removed it
		case j < 0:
			return fmt.Sprintf("only one has a segment %020d", s.base), nil
		}
		last := i == len(a)-1
		if s.size != best[j].size && (!last || s.size > best[j].size) {
			return fmt.Sprintf("segment %020d has %d and %d bytes", s.base, s.size, best[j].size), nil
		}
		at, err := firstDifference(s.path, best[j].path)
		if err != nil || at >= 0 {
			return fmt.Sprintf("segment %020d differs at byte %d", s.base, at), err
		}
		r.Bytes += s.size
	}
	if furthest(best, a) {
		r.Shorter++
	}
	return r.holes(a, best), nil
}

// holes finds a segment of the furthest replica that the other lacks between two that it has.
func (r *Replicas) holes(a, best []segment) string {
	for _, b := range best {
		if b.base < a[0].base || b.base > a[len(a)-1].base {
			continue
		}
		if !slices.ContainsFunc(a, func(s segment) bool { return s.base == b.base }) {
			return fmt.Sprintf("one lacks the segment %020d", b.base)
		}
	}
	return ""
}

// firstDifference is the first byte at which two files differ as far as the first one goes, -1 if none.
func firstDifference(a, b string) (int64, error) {
	x, err := os.Open(a)
	if err != nil {
		return 0, fmt.Errorf("open segment: %w", err)
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return 0, fmt.Errorf("open segment: %w", err)
	}
	defer y.Close()
	p, q := make([]byte, 1<<16), make([]byte, 1<<16)
	for at := int64(0); ; {
		n, err := io.ReadFull(x, p)
		m, _ := io.ReadFull(y, q[:n])
		for i := range n {
			if i >= m || p[i] != q[i] {
				return at + int64(i), nil
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return -1, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read segment: %w", err)
		}
	}
}
