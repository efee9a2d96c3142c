package archtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// topLevel is what may lie beside dot-files at the root. bin and .data are built, git ignores them.
var topLevel = []string{
	"edge", "core", "bridge", "cmd", "firmware-sim", "deploy", "loadtest", "bin",
	"go.mod", "go.sum", "Makefile", "README.md", "README.fr.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
}

// doors are the packages of core that others may import; the rest is reached over the wire.
var doors = []string{"core/record", "core/commitlog", "core/vfs"}

// layers lists core from its leaves upwards: a package imports only what stands before it.
var layers = []string{
	"core/internal/leaks", "core/vfs", "core/record", "core/meta", "core/commitlog", "core/kafka", "core/acl", "core/raftlog",
	"core/group", "core/txn", "core/partition", "core/shard", "core/controller", "core/rest", "core/broker",
}

// never says what a program must not link, however far away the import is.
var never = map[string][]string{
	"cmd/sluice-edge":  {"sluice/core/broker", "sluice/core/controller", "sluice/core/shard", "github.com/hashicorp/raft"},
	"cmd/firmware-sim": {"sluice/core/", "sluice/edge", "sluice/bridge"},
	"cmd/loadtest":     {"sluice/core/", "sluice/edge", "sluice/bridge"},
}

// Violations returns one line per breach of the rules, in a fixed order.
func (t *Tree) Violations() []string {
	var out []string
	out = append(out, t.topLevel()...)
	for _, dir := range t.dirs() {
		out = append(out, t.ofPackage(t.Packages[dir])...)
	}
	return append(out, t.linked()...)
}

func (t *Tree) topLevel() []string {
	var out []string
	for _, name := range t.TopLevel {
		if name[0] != '.' && !slices.Contains(topLevel, name) {
			out = append(out, fmt.Sprintf("%s: does not belong at the top level", name))
		}
	}
	return out
}

func (t *Tree) ofPackage(p *Package) []string {
	var out []string
	if p.HasCode && !p.Commented {
		out = append(out, fmt.Sprintf("%s: no package comment", p.Dir))
	}
	for _, imports := range []map[string][]string{p.Imports, p.Tests} {
		for _, target := range slices.Sorted(maps.Keys(imports)) {
			if why := t.refuse(p.Dir, target); why != "" {
				out = append(out, fmt.Sprintf("%s: imports %s: %s", imports[target][0], target, why))
			}
		}
	}
	if slices.Contains(doors, p.Dir) {
		for _, pos := range p.Goroutines {
			out = append(out, pos+": starts a goroutine: core's doors have none of their own")
		}
	}
	for _, pos := range p.RawAtomics {
		out = append(out, pos+": untyped atomic: use atomic.Int64 and its like")
	}
	return out
}

// refuse says why the package in dir may not import target, "" when it may.
func (t *Tree) refuse(dir, target string) string {
	if target == "C" {
		return "no cgo in any binary"
	}
	to, ours := t.house(target)
	if !ours {
		return ""
	}
	switch from := first(dir); from {
	case "core":
		return refuseInCore(dir, to)
	case "edge", "bridge":
		return refuseOutsideCore(from, to)
	case "firmware-sim", "loadtest":
		if first(to) != from {
			return from + " is a stranger and imports nothing of the house"
		}
	}
	return ""
}

func refuseInCore(dir, to string) string {
	if first(to) != "core" {
		return "core imports nothing outside core"
	}
	below, above := layer(to), layer(dir)
	switch {
	case above < 0:
		return dir + " is no layer of core"
	case below < 0:
		return to + " is no layer of core"
	case below > above:
		return to + " stands above " + dir
	}
	return ""
}

func refuseOutsideCore(from, to string) string {
	switch first(to) {
	case from:
		return ""
	case "core":
		if slices.Contains(doors, to) {
			return ""
		}
		return "only core/record, core/commitlog and core/vfs are doors of core"
	}
	return from + " imports only itself and core's doors"
}

// layer is the place of a directory in core; packages inside a layer count as the layer.
func layer(dir string) int {
	return slices.IndexFunc(layers, func(l string) bool { return dir == l || strings.HasPrefix(dir, l+"/") })
}

func first(dir string) string {
	name, _, _ := strings.Cut(dir, "/")
	return name
}

// linked follows the imports of the programs in never and reports the way to what they must not link.
func (t *Tree) linked() []string {
	var out []string
	for _, program := range slices.Sorted(maps.Keys(never)) {
		if t.Packages[program] == nil {
			continue
		}
		way := map[string]string{program: ""}
		for queue := []string{program}; len(queue) > 0; queue = queue[1:] {
			for _, target := range slices.Sorted(maps.Keys(t.Packages[queue[0]].Imports)) {
				if forbidden(target, never[program]) {
					out = append(out, fmt.Sprintf("%s: links %s by way of %s", program, target, trace(way, queue[0])))
				}
				to, ours := t.house(target)
				if _, seen := way[to]; ours && !seen && t.Packages[to] != nil {
					way[to] = queue[0]
					queue = append(queue, to)
				}
			}
		}
	}
	return out
}

func forbidden(target string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool {
		return target == p || strings.HasPrefix(target, strings.TrimSuffix(p, "/")+"/")
	})
}

// trace writes the chain of imports that led to dir.
func trace(way map[string]string, dir string) string {
	if way[dir] == "" {
		return dir
	}
	return trace(way, way[dir]) + " -> " + dir
}
