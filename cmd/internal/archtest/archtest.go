// Package archtest keeps the house in order: it parses the sources of the module itself and
// says where a package imports what it may not, lacks its package comment, or where the top
// level holds what does not belong there.
//
// It reads the files instead of asking the go command, because go test caches a test by the
// files it opens: one that runs a program stays green after a bad import.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Package is one directory with Go files.
type Package struct {
	Dir        string              // slash-separated, relative to the root
	Imports    map[string][]string // import path -> non-test files that import it
	Tests      map[string][]string // the same of _test.go files
	Commented  bool                // some file has a package comment
	HasCode    bool                // some file is not a test
	Goroutines []string            // positions of go statements outside tests
	RawAtomics []string            // positions of atomic.AddInt64 and its like
}

// Tree is a parsed module.
type Tree struct {
	Module   string
	Packages map[string]*Package // by Dir
	TopLevel []string
}

// Load parses every Go file below the root of fsys, but not in testdata, bin and names with a dot first.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{Packages: make(map[string]*Package)}
	mod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, fmt.Errorf("read module name: %w", err)
	}
	t.Module = moduleName(string(mod))
	top, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("list top level: %w", err)
	}
	for _, e := range top {
		t.TopLevel = append(t.TopLevel, e.Name())
	}
	return t, fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && skipped(name):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		return t.add(fsys, name)
	})
}

func skipped(dir string) bool {
	base := path.Base(dir)
	return dir != "." && (base[0] == '.' || base[0] == '_' || base == "testdata" || base == "bin" || base == "node_modules")
}

func moduleName(mod string) string {
	for line := range strings.SplitSeq(mod, "\n") {
		if name, ok := strings.CutPrefix(line, "module "); ok {
			return strings.TrimSpace(name)
		}
	}
	return ""
}

func (t *Tree) add(fsys fs.FS, name string) error {
	src, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.ParseComments)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	p := t.dir(path.Dir(name))
	test := strings.HasSuffix(name, "_test.go")
	imports := p.Imports
	if test {
		imports = p.Tests
	}
	for _, i := range file.Imports {
		target, _ := strconv.Unquote(i.Path.Value)
		imports[target] = append(imports[target], name)
	}
	if test {
		return nil
	}
	p.HasCode = true
	p.Commented = p.Commented || file.Doc != nil
	p.inspect(set, file)
	return nil
}

func (t *Tree) dir(dir string) *Package {
	p := t.Packages[dir]
	if p == nil {
		p = &Package{Dir: dir, Imports: make(map[string][]string), Tests: make(map[string][]string)}
		t.Packages[dir] = p
	}
	return p
}

func (p *Package) inspect(set *token.FileSet, file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			p.Goroutines = append(p.Goroutines, set.Position(n.Pos()).String())
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "atomic" && rawAtomic(n.Sel.Name) {
				p.RawAtomics = append(p.RawAtomics, set.Position(n.Pos()).String())
			}
		}
		return true
	})
}

// rawAtomic tells functions on plain integers, which trap on 32-bit boxes when the
// integer is not aligned, from the typed atomics.
func rawAtomic(name string) bool {
	for _, verb := range []string{"Add", "Load", "Store", "Swap", "CompareAndSwap", "And", "Or"} {
		if rest, ok := strings.CutPrefix(name, verb); ok && rest != "" {
			return true
		}
	}
	return false
}

// house returns the directory of an import path of the module.
func (t *Tree) house(target string) (string, bool) {
	return strings.CutPrefix(target, t.Module+"/")
}

// dirs returns the packages in a fixed order, so that reports do not change by chance.
func (t *Tree) dirs() []string { return slices.Sorted(maps.Keys(t.Packages)) }
