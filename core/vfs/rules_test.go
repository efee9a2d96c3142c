package vfs

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// ruled is a file system in memory with rules.
func ruled(t *testing.T, list ...Rule) (*Fault, *Rules, *Mem) {
	t.Helper()
	mem := NewMem()
	must(t, mem.MkdirAll("data/a"))
	r, err := NewRules("data", list)
	must(t, err)
	f := NewFault(mem)
	f.SetRules(r)
	return f, r, mem
}

func TestRuleFails(t *testing.T) {
	f, rules, _ := ruled(t, Rule{Op: SyncCall, Path: "a/*.log", Mode: Fail, Count: 2})
	log, err := f.Create("data/a/0.log")
	must(t, err)
	other, err := f.Create("data/a/0.index")
	must(t, err)
	must(t, other.Sync())
	for range 2 {
		if err := log.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync: %v", err)
		}
	}
	must(t, log.Sync())
	must(t, f.SyncDir("data/a"))
	if n := rules.Hits()[Fail]; n != 2 {
		t.Fatalf("%d failures counted", n)
	}
	f.SetRules(nil)
	must(t, log.Sync())
}

func TestRuleLies(t *testing.T) {
	f, _, mem := ruled(t, Rule{Mode: Lie})
	must(t, WriteFile(f, "data/a/x", []byte("one")))
	if _, err := ReadFile(mem.CrashClone(nil), "data/a/x"); err == nil {
		t.Fatal("the file is there after a crash")
	}
	f.SetRules(nil)
	must(t, WriteFile(f, "data/a/x", []byte("two")))
	if p, err := ReadFile(mem.CrashClone(nil), "data/a/x"); err != nil || string(p) != "two" {
		t.Fatal(string(p), err)
	}
}

func TestRuleSlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, _ := ruled(t, Rule{Op: ReadCall, Path: "**", Mode: Slow, Delay: time.Second})
		began := time.Now()
		must(t, f.SyncDir("data/a"))
		if _, err := f.List("data/a"); err != nil || time.Since(began) != time.Second {
			t.Fatal(err, time.Since(began))
		}
	})
}

// TestRuleFull: what has its place on the disk can be overwritten, removed and cut; nothing grows.
func TestRuleFull(t *testing.T) {
	f, _, mem := ruled(t)
	file, err := f.Create("data/a/x")
	must(t, err)
	must(t, Allocate(file, 10))
	full, err := NewRules("data", []Rule{{Mode: Full}})
	must(t, err)
	f.SetRules(full)
	mustWrite(t, file, "hello", 5)
	must(t, file.Truncate(10))
	must(t, file.Sync())
	must(t, f.MkdirAll("data/a"))
	for name, do := range map[string]func() error{
		"write":    func() error { _, err := file.WriteAt([]byte("x"), 10); return err },
		"truncate": func() error { return file.Truncate(11) },
		"allocate": func() error { return Allocate(file, 11) },
		"create":   func() error { _, err := f.Create("data/a/y"); return err },
		"mkdir":    func() error { return f.MkdirAll("data/b") },
	} {
		if err := do(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n, err := f.Free("data"); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	must(t, f.Remove("data/a/x"))
	f.SetRules(nil)
	mem.SetFree(7)
	if n, err := f.Free("data"); n != 7 || err != nil {
		t.Fatal(n, err)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		glob, path string
		want       bool
	}{
		{"**", "a/b", true}, {"*", "a/b", false}, {"a/*", "a/b", true}, {"a/**", "a/b/c", true}, {"**/c", "c", true}, {"**/c", "a/b/c", true},
		{"**/c", "a/bc", false}, {"a?c", "abc", true}, {"a?c", "a/c", false}, {"*.log", "x.log", true}, {"*.log", "xxlog", false},
		{"shards/**/*.log", "shards/7/log/1.log", true}, {"/a", "a", true}, {"(", "(", true},
	} {
		r, err := NewRules("", []Rule{{Path: c.glob, Mode: Fail}})
		must(t, err)
		if got := r.concerns(r.list[0], OpRead, c.path); got != c.want {
			t.Errorf("%q matches %q: %v", c.glob, c.path, got)
		}
	}
}

func TestRulesAreChecked(t *testing.T) {
	for want, rule := range map[string]Rule{
		`op "open"`:            {Op: "open", Mode: Fail},
		`mode "break"`:         {Mode: "break"},
		"lie with op write":    {Op: WriteCall, Mode: Lie},
		"full with op sync":    {Op: SyncCall, Mode: Full},
		"rule 0: mode \"\": m": {},
	} {
		if _, err := NewRules("data", []Rule{rule}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
