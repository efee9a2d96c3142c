package archtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestTheHouse(t *testing.T) {
	tree, err := Load(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Packages) < 10 {
		t.Fatalf("found %d packages only: %v", len(tree.Packages), tree.dirs())
	}
	for _, v := range tree.Violations() {
		t.Error(v)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the test")
	return ""
}

// house is a small tree without a fault; each case of TestViolations adds one file to it.
func house() fstest.MapFS {
	return files(
		"go.mod", "module sluice\n\ngo 1.26\n",
		"core/vfs/vfs.go", "// Package vfs is.\npackage vfs\n",
		"core/record/record.go", "// Package record is.\npackage record\n",
		"core/commitlog/log.go", "// Package commitlog is.\npackage commitlog\nimport _ \"sluice/core/vfs\"\n",
		"core/shard/shard.go", "// Package shard is.\npackage shard\nimport _ \"github.com/hashicorp/raft\"\n",
		"core/broker/broker.go", "// Package broker is.\npackage broker\nimport _ \"sluice/core/shard\"\n",
		"edge/gateway.go", "// Package edge is.\npackage edge\nimport _ \"sluice/core/commitlog\"\n",
		"cmd/sluice/main.go", "// Command sluice is.\npackage main\nimport _ \"sluice/core/broker\"\n",
		"cmd/sluice-edge/main.go", "// Command sluice-edge is.\npackage main\nimport _ \"sluice/edge\"\n",
		"cmd/sluice/testdata/bad.go", "package broken is not read\n",
		".ci/run", "#!/bin/sh\n",
	)
}

func files(pairs ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return m
}

func TestViolations(t *testing.T) {
	for _, c := range []struct{ name, file, src, want string }{
		{"nothing", "core/vfs/more.go", "package vfs\n", ""},
		{"top level", "pkg/x.txt", "", "pkg: does not belong at the top level"},
		{"comment", "core/acl/acl.go", "package acl\n", "core/acl: no package comment"},
		{"core imports edge", "core/vfs/bad.go", "package vfs\nimport _ \"sluice/edge\"\n", "core/vfs/bad.go: imports sluice/edge: core imports nothing outside core"},
		{"core upwards", "core/record/bad.go", "package record\nimport _ \"sluice/core/shard\"\n", "core/record/bad.go: imports sluice/core/shard: core/shard stands above core/record"},
		{"core unknown", "core/util/u.go", "// Package util is.\npackage util\nimport _ \"sluice/core/vfs\"\n", "core/util/u.go: imports sluice/core/vfs: core/util is no layer of core"},
		{"in a test too", "core/vfs/bad_test.go", "package vfs\nimport _ \"sluice/edge\"\n", "core/vfs/bad_test.go: imports sluice/edge: core imports nothing outside core"},
		{"edge through the wall", "edge/bad.go", "package edge\nimport _ \"sluice/core/meta\"\n", "edge/bad.go: imports sluice/core/meta: only core/record, core/commitlog and core/vfs are doors of core"},
		{"edge meets bridge", "edge/bad.go", "package edge\nimport _ \"sluice/bridge/uplink\"\n", "edge/bad.go: imports sluice/bridge/uplink: edge imports only itself and core's doors"},
		{"stranger", "loadtest/bad.go", "// Package loadtest is.\npackage loadtest\nimport _ \"sluice/core/record\"\n", "loadtest/bad.go: imports sluice/core/record: loadtest is a stranger and imports nothing of the house"},
		{"cgo", "core/vfs/bad.go", "package vfs\nimport \"C\"\n", "core/vfs/bad.go: imports C: no cgo in any binary"},
		{"goroutine in a door", "core/record/bad.go", "package record\nfunc f() {\n\tgo f()\n}\n", "core/record/bad.go:3:2: starts a goroutine: core's doors have none of their own"},
		{"atomics", "core/shard/bad.go", "package shard\nvar n = atomic.AddInt64(&x, 1)\n", "core/shard/bad.go:2:9: untyped atomic: use atomic.Int64 and its like"},
		{"typed atomics", "core/shard/good.go", "package shard\nvar n atomic.Int64\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := house()
			m[c.file] = &fstest.MapFile{Data: []byte(c.src)}
			if diff := cmp.Diff(c.want, strings.Join(violations(t, m), "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLinksAreFollowed(t *testing.T) {
	m := house()
	m["cmd/internal/conf/conf.go"] = &fstest.MapFile{Data: []byte("// Package conf is.\npackage conf\nimport _ \"sluice/core/broker\"\n")}
	m["cmd/sluice-edge/conf.go"] = &fstest.MapFile{Data: []byte("package main\nimport _ \"sluice/cmd/internal/conf\"\n")}
	want := []string{
		"cmd/sluice-edge: links sluice/core/broker by way of cmd/sluice-edge -> cmd/internal/conf",
		"cmd/sluice-edge: links sluice/core/shard by way of cmd/sluice-edge -> cmd/internal/conf -> core/broker",
		"cmd/sluice-edge: links github.com/hashicorp/raft by way of cmd/sluice-edge -> cmd/internal/conf -> core/broker -> core/shard",
	}
	if diff := cmp.Diff(want, violations(t, m)); diff != "" {
		t.Error(diff)
	}
}

func TestUnparsableSourceIsAnError(t *testing.T) {
	m := house()
	m["core/vfs/bad.go"] = &fstest.MapFile{Data: []byte("package")}
	if _, err := Load(m); err == nil || !strings.Contains(err.Error(), "core/vfs/bad.go") {
		t.Errorf("the error is %v", err)
	}
}

func violations(t *testing.T, m fstest.MapFS) []string {
	t.Helper()
	tree, err := Load(m)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Violations()
}
