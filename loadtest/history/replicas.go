package history

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Replicas are the directories of one partition on the nodes that hold it.
type Replicas struct {
	Name string // <topic>-<partition>
	Dirs []string
}

// FindReplicas looks in the data directories of nodes for directories of partitions (<topic>-<partition> with segment files), however deep. The nodes
// must not run. Directories that end in -deleted are left out.
func FindReplicas(nodes ...string) ([]Replicas, error) {
	byName := map[string]*Replicas{}
	for _, node := range nodes {
		err := filepath.WalkDir(node, func(path string, d os.DirEntry, err error) error {
			name, ok := partitionName(path)
			if err != nil || !d.IsDir() || !ok {
				return err
			}
			segments, err := filepath.Glob(filepath.Join(path, "*.log"))
			if err != nil || len(segments) == 0 {
				return err
			}
			r := byName[name]
			if r == nil {
				r = &Replicas{Name: name}
				byName[name] = r
			}
			r.Dirs = append(r.Dirs, path)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for partitions in %s: %w", node, err)
		}
	}
	out := make([]Replicas, 0, len(byName))
	for _, r := range byName {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Replicas) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// partitionName is <topic>-<partition>; a life of a topic that had to be told from an earlier one of the name has .<id> behind it.
func partitionName(path string) (string, bool) {
	name := filepath.Base(path)
	i := strings.LastIndexByte(name, '-')
	if i <= 0 {
		return "", false
	}
	index, _, _ := strings.Cut(name[i+1:], ".")
	_, err := strconv.ParseUint(index, 10, 31)
	return name[:i+1] + index, err == nil
}

// ReplicaReport is what a comparison saw.
type ReplicaReport struct {
	Name       string      `json:"name"`
	Batches    int64       `json:"batches"` // compared on at least two replicas
	Ends       []int64     `json:"ends"`    // of each replica: one that was stopped first may be behind
	Violations []Violation `json:"violations,omitempty"`
}

// CompareReplicas compares the segment files of stopped replicas byte for byte, batch by batch, and checks each batch's checksum. A replica may
// begin later than others (retention) and end earlier (it was stopped before it heard that the last entries are committed); in between nothing may
// be missing. It reads one batch of each replica at a time. Not for compacted topics, whose replicas differ by design.
func CompareReplicas(r Replicas) (ReplicaReport, error) {
	report := ReplicaReport{Name: r.Name}
	logs := make([]*diskLog, len(r.Dirs))
	for i, dir := range r.Dirs {
		l, err := openDiskLog(dir)
		if err != nil {
			return report, err
		}
		defer l.close()
		logs[i] = l
		if err := l.advance(); err != nil {
			return report, err
		}
	}
	for {
		front := lowest(logs)
		if len(front) == 0 {
			break
		}
		report.compare(front, logs)
		for _, l := range front {
			if err := l.advance(); err != nil {
				return report, err
			}
		}
	}
	for _, l := range logs {
		report.Ends = append(report.Ends, l.next)
		report.Violations = append(report.Violations, l.bad...)
	}
	return report, nil
}

// lowest are the replicas whose batch has the lowest offset.
func lowest(logs []*diskLog) (front []*diskLog) {
	for _, l := range logs {
		switch {
		case l.batch == nil:
		case len(front) == 0 || l.base() < front[0].base():
			front = []*diskLog{l}
		case l.base() == front[0].base():
			front = append(front, l)
		}
	}
	return front
}

func (r *ReplicaReport) compare(front, all []*diskLog) {
	first := front[0]
	if len(front) > 1 {
		r.Batches++
	}
	for _, l := range front[1:] {
		if !bytes.Equal(first.batch, l.batch) {
			r.add(Diverged, first.base(), "%s and %s differ in the batch at this offset", first.dir, l.dir)
		}
	}
	for _, l := range all {
		if l.batch != nil && l.base() > first.base() && l.base() < first.last()+1 {
			r.add(Diverged, l.base(), "%s has a batch that begins within one of %s", l.dir, first.dir)
		}
		if l.started && l.batch != nil && l.base() > first.base() {
			r.add(Diverged, first.base(), "%s has no batch at this offset, %s has", l.dir, first.dir)
		}
	}
}

func (r *ReplicaReport) add(k Kind, offset int64, format string, args ...any) {
	if len(r.Violations) < violationsMax {
		r.Violations = append(r.Violations, Violation{Kind: k, Where: r.Name, Offset: offset, Detail: fmt.Sprintf(format, args...)})
	}
}

// The layout of a record batch v2 as far as it is needed here (Kafka protocol guide, "Record Batch").
const (
	batchHeader   = 61
	batchLengthAt = 8
	batchPrefix   = 12 // base offset and length
	batchCRCAt    = 17
	batchAttrsAt  = 21
	batchDeltaAt  = 23
	// batchMax bounds what a damaged length can make us read.
	batchMax = 256 << 20
)

// diskLog reads the segment files of a directory batch by batch.
type diskLog struct {
	dir      string
	segments []string
	file     *os.File
	in       *bufio.Reader
	batch    []byte // the current one; nil at the end
	next     int64  // behind the last batch that was read
	started  bool   // a batch has been read before the current one
	bad      []Violation
}

func openDiskLog(dir string) (*diskLog, error) {
	segments, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	slices.Sort(segments) // names are offsets in 20 digits
	return &diskLog{dir: dir, segments: segments}, nil
}

func (l *diskLog) close() {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

func (l *diskLog) base() int64 { return int64(binary.BigEndian.Uint64(l.batch)) }
func (l *diskLog) last() int64 {
	return l.base() + int64(binary.BigEndian.Uint32(l.batch[batchDeltaAt:]))
}

func (l *diskLog) violation(k Kind, offset int64, format string, args ...any) {
	if len(l.bad) < violationsMax {
		l.bad = append(l.bad, Violation{Kind: k, Where: l.dir, Offset: offset, Detail: fmt.Sprintf(format, args...)})
	}
}

// advance reads the next batch. What cannot be read as a batch ends the log, and is a violation.
func (l *diskLog) advance() error {
	l.started = l.started || l.batch != nil
	for {
		if l.file == nil && !l.open() {
			l.batch = nil
			return nil
		}
		batch, err := readBatch(l.in)
		switch {
		case errors.Is(err, io.EOF):
			l.close()
			continue
		case errors.Is(err, errDamaged):
			l.violation(Corrupt, l.next, "%s: %v", l.file.Name(), err)
			l.close()
			l.segments, l.batch = nil, nil
			return nil
		case err != nil:
			return fmt.Errorf("read %s: %w", l.file.Name(), err)
		}
		l.batch = batch
		l.judge()
		return nil
	}
}

func (l *diskLog) open() bool {
	for len(l.segments) > 0 {
		name := l.segments[0]
		l.segments = l.segments[1:]
		f, err := os.Open(name)
		if err != nil {
			l.violation(Corrupt, l.next, "%v", err)
			continue
		}
		l.file, l.in = f, bufio.NewReaderSize(f, 256<<10)
		return true
	}
	return false
}

// judge checks what can be said of one batch by itself and by the one before it.
func (l *diskLog) judge() {
	if crc := crc32.Checksum(l.batch[batchAttrsAt:], castagnoli); crc != binary.BigEndian.Uint32(l.batch[batchCRCAt:]) {
		l.violation(Corrupt, l.base(), "%s: the batch's checksum is wrong", l.file.Name())
	}
	if l.started && l.base() != l.next {
		l.violation(Gap, l.base(), "%s: a batch at %d where %d was due", l.file.Name(), l.base(), l.next)
	}
	l.next = l.last() + 1
}

// errDamaged is returned when bytes are no batch.
var errDamaged = errors.New("no record batch")

// readBatch returns io.EOF at the end of a file.
func readBatch(in *bufio.Reader) ([]byte, error) {
	head, err := in.Peek(batchHeader)
	if len(head) == 0 && errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %d bytes at the end of the file", errDamaged, len(head))
	}
	if err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(head[batchLengthAt:])) + batchPrefix
	if size < batchHeader || size > batchMax || head[16] != 2 {
		return nil, fmt.Errorf("%w: length %d, magic %d", errDamaged, size, head[16])
	}
	batch := make([]byte, size)
	if n, err := io.ReadFull(in, batch); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: cut off after %d of %d bytes", errDamaged, n, size)
		}
		return nil, err
	}
	return batch, nil
}
