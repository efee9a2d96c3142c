package vfs

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Class is a group of calls that a Rule is about.
type Class string

// The classes. The empty one is AnyCall.
const (
	AnyCall    Class = "any"
	SyncCall   Class = "sync"   // File.Sync and FS.SyncDir
	WriteCall  Class = "write"  // File.WriteAt, File.Truncate, Allocate
	CreateCall Class = "create" // FS.Create, FS.Rename, FS.MkdirAll
	ReadCall   Class = "read"   // File.ReadAt, FS.Open, FS.List, FS.Stat
)

// Mode is what a Rule does to a call.
type Mode string

// The modes.
const (
	// Fail answers EIO.
	Fail Mode = "fail"
	// Slow delays the call.
	Slow Mode = "slow"
	// Lie answers a sync with success and does nothing. It concerns syncs only.
	Lie Mode = "lie"
	// Full is a disk without space: what needs more of it (a new file, a longer one) is answered with ENOSPC, and Free says 0. What a file
	// has already can be overwritten, as on every file system that writes in place.
	Full Mode = "full"
)

// Rule is one fault of a disk.
type Rule struct {
	Op   Class
	Path string // glob, relative to the root of the rules: * and ? within a name, ** over directories; "" is every path
	Mode Mode
	// Delay is for Slow.
	Delay time.Duration
	// Count is how many calls the rule concerns; 0 is all.
	Count int64
}

var classOps = map[Class][]Op{
	SyncCall:   {OpSync, OpSyncDir},
	WriteCall:  {OpWrite, OpTruncate},
	CreateCall: {OpCreate, OpRename, OpMkdirAll},
	ReadCall:   {OpRead, OpOpen, OpList, OpStat},
	AnyCall: {OpSync, OpSyncDir, OpWrite, OpTruncate, OpCreate, OpRename, OpMkdirAll, OpRead, OpOpen, OpList, OpStat,
		OpRemove, OpRemoveAll, OpSize},
}

// fullOps are the calls of each class that need space; which of them really do, the file says.
var fullOps = map[Class][]Op{
	AnyCall:    {OpWrite, OpTruncate, OpCreate, OpMkdirAll, OpFree},
	WriteCall:  {OpWrite, OpTruncate, OpFree},
	CreateCall: {OpCreate, OpMkdirAll, OpFree},
}

// Rules is a set of faults that a Fault can be given.
type Rules struct {
	root string
	list []*activeRule
	hits [modeCount]atomic.Int64
}

const modeCount = 4

var modeIndex = map[Mode]int{Fail: 0, Slow: 1, Lie: 2, Full: 3}

// activeRule is a rule ready to be asked.
type activeRule struct {
	Rule
	ops  [opCount]bool
	path *regexp.Regexp // nil: every path
	left atomic.Int64
}

// NewRules checks the rules. Paths are relative to root, the directory that holds all files in question.
func NewRules(root string, list []Rule) (*Rules, error) {
	r := &Rules{root: filepath.Clean(root)}
	for i, rule := range list {
		a, err := newActiveRule(rule)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		r.list = append(r.list, a)
	}
	return r, nil
}

func newActiveRule(rule Rule) (*activeRule, error) {
	if rule.Op == "" {
		rule.Op = AnyCall
	}
	a := &activeRule{Rule: rule}
	ops, known := classOps[rule.Op]
	if !known {
		return nil, fmt.Errorf("op %q: must be sync, write, create, read or any", rule.Op)
	}
	if _, known := modeIndex[rule.Mode]; !known {
		return nil, fmt.Errorf("mode %q: must be fail, slow, lie or full", rule.Mode)
	}
	switch {
	case rule.Mode == Lie && (rule.Op == SyncCall || rule.Op == AnyCall):
		ops = classOps[SyncCall]
	case rule.Mode == Lie, rule.Mode == Full && fullOps[rule.Op] == nil:
		return nil, fmt.Errorf("mode %s with op %s: such calls do not %[1]s", rule.Mode, rule.Op)
	case rule.Mode == Full:
		ops = fullOps[rule.Op]
	}
	for _, op := range ops {
		a.ops[op] = true
	}
	if rule.Path != "" {
		a.path = regexp.MustCompile(globPattern(rule.Path))
	}
	a.left.Store(rule.Count)
	return a, nil
}

// globPattern translates a glob; all that is no wildcard is quoted, so that the result always compiles.
func globPattern(glob string) string {
	var b strings.Builder
	b.WriteString("^")
	for rest := strings.TrimPrefix(glob, "/"); rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**/"):
			b.WriteString("(.*/)?")
			rest = rest[3:]
		case strings.HasPrefix(rest, "**"):
			b.WriteString(".*")
			rest = rest[2:]
		case rest[0] == '*':
			b.WriteString("[^/]*")
			rest = rest[1:]
		case rest[0] == '?':
			b.WriteString("[^/]")
			rest = rest[1:]
		default:
			end := strings.IndexAny(rest, "*?")
			if end < 0 {
				end = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:end]))
			rest = rest[end:]
		}
	}
	b.WriteString("$")
	return b.String()
}

// Hits returns how many calls each mode has met.
func (r *Rules) Hits() map[Mode]int64 {
	hits := make(map[Mode]int64, modeCount)
	for mode, i := range modeIndex {
		hits[mode] = r.hits[i].Load()
	}
	return hits
}

// outcome is what rules do to one call.
type outcome struct {
	err error
	lie bool
}

// apply delays the call as rules say, and returns what else is to happen to it. grows says whether the call needs space; it is asked only
// when there is a rule about that.
func (r *Rules) apply(op Op, path string, grows func() bool) outcome {
	if r == nil {
		return outcome{}
	}
	var out outcome
	for _, a := range r.list {
		if !a.ops[op] || !r.concerns(a, op, path) || a.Mode == Full && !grows() {
			continue
		}
		if op != OpFree && !a.take() {
			continue
		}
		r.hits[modeIndex[a.Mode]].Add(1)
		switch a.Mode {
		case Slow:
			time.Sleep(a.Delay)
		case Lie:
			out.lie = true
		case Full:
			out.err = fmt.Errorf("%s %s: injected fault: %w", op, path, syscall.ENOSPC)
		case Fail:
			out.err = fmt.Errorf("%s %s: injected fault: %w", op, path, syscall.EIO)
		}
	}
	return out
}

// concerns looks at the path. What is free is asked of a directory, for all that is to be written below it.
func (r *Rules) concerns(a *activeRule, op Op, path string) bool {
	if a.path == nil || op == OpFree {
		return true
	}
	rel, err := filepath.Rel(r.root, path)
	return err == nil && a.path.MatchString(filepath.ToSlash(rel))
}

// take uses up one call of a rule with a count.
func (a *activeRule) take() bool {
	return a.Count == 0 || a.left.Add(-1) >= 0
}
