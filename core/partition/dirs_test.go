package partition

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"sluice/core/vfs"
)

func newDirs(t *testing.T, fs vfs.FS) *Dirs {
	t.Helper()
	d, err := NewDirs(fs, "/data")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func there(t *testing.T, d *Dirs, name string) bool {
	t.Helper()
	ok, err := d.exists(name)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func mustClaim(t *testing.T, d *Dirs, k Key, name string, fresh bool) string {
	t.Helper()
	path, _, err := d.claim(claim{key: k, shard: testShard}, name, fresh)
	if err != nil {
		t.Fatalf("claim %s: %v", k, err)
	}
	return strings.TrimPrefix(path, "/data/")
}

func TestDirsOfRecreatedTopic(t *testing.T) {
	fs := vfs.NewMem()
	first, second := Key{topicID("1"), 3}, Key{topicID("2"), 3}
	d := newDirs(t, fs)
	if got := mustClaim(t, d, first, "t", true); got != "t-3" {
		t.Errorf("first lives in %s", got)
	}
	// The other shard has not applied the delete yet.
	beside := "t-3.32000000000000000000000000000000"
	if got := mustClaim(t, d, second, "t", true); got != beside {
		t.Errorf("second lives in %s", got)
	}
	// After a restart whoever comes first gets the name, and both are found.
	d = newDirs(t, fs)
	if got := mustClaim(t, d, second, "t", false); got != "t-3" {
		t.Errorf("second lives in %s after the restart", got)
	}
	if got := mustClaim(t, d, first, "t", false); got != "t-3.31000000000000000000000000000000" {
		t.Errorf("first lives in %s after the restart", got)
	}
}

func TestDirsSetStrangersAside(t *testing.T) {
	fs := vfs.NewMem()
	first, second := Key{topicID("1"), 0}, Key{topicID("2"), 0}
	mustClaim(t, newDirs(t, fs), first, "t-0", true)
	d := newDirs(t, fs)
	if got := mustClaim(t, d, second, "t-0", true); got != "t-0-0" {
		t.Errorf("second lives in %s", got)
	}
	if !there(t, d, "t-0-0.31000000000000000000000000000000-stray") {
		t.Error("the first one's directory is gone")
	}
	if got := mustClaim(t, d, first, "t-0", false); got != "t-0-0.31000000000000000000000000000000" {
		t.Errorf("the stray was not adopted again: %s", got)
	}
}

func TestDirsDeletedIsFoundAgain(t *testing.T) {
	fs := vfs.NewMem()
	k := Key{topicID("1"), 0}
	d := newDirs(t, fs)
	mustClaim(t, d, k, "t", true)
	path, err := d.setAside(claim{key: k, shard: testShard}, "t", "/data/t-0")
	if err != nil || !strings.HasSuffix(path, "-deleted") {
		t.Fatalf("set aside as %s: %v", path, err)
	}
	list, err := d.deletedOf(testShard)
	if err != nil || len(list) != 1 || list[0] != path {
		t.Errorf("deleted: %v, %v", list, err)
	}
	if others, _ := d.deletedOf(testShard + 1); len(others) != 0 {
		t.Errorf("another shard would delete %v", others)
	}
	d = newDirs(t, fs)
	if got := mustClaim(t, d, k, "t", false); got != "t-0" {
		t.Errorf("found again as %s", got)
	}
	if err := d.remove(path); err != nil || there(t, d, strings.TrimPrefix(path, "/data/")) {
		t.Errorf("remove: %v", err)
	}
	if !there(t, d, "t-0") {
		t.Error("removing the old name removed the adopted directory")
	}
}

func TestDirsWithoutReadableOwner(t *testing.T) {
	fs := vfs.NewMem()
	k := Key{topicID("1"), 0}
	write := func(text string) {
		if err := fs.MkdirAll("/data/t-0"); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFile(fs, "/data/t-0/"+metadataFile, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFile(fs, "/data/t-0/evidence", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	write("version: 0\ntopic_i")
	if mustClaim(t, newDirs(t, fs), k, "t", false); !there(t, newDirs(t, fs), "t-0/evidence") {
		t.Error("a checkpoint's directory was set aside for its torn metadata")
	}
	write("")
	d := newDirs(t, fs)
	mustClaim(t, d, k, "t", true)
	if there(t, d, "t-0/evidence") || !there(t, d, "t-0.unknown-stray/evidence") {
		t.Error("a new partition took a directory of unknown contents, or lost it")
	}
}

func TestDirNamesFitTheFileSystem(t *testing.T) {
	long := strings.Repeat("n", 249)
	k := Key{topicID("1"), 99999}
	moved := ownDir(claim{key: k, move: 1<<64 - 1}, long)
	for _, name := range []string{preferredDir(k, long), ownDir(claim{key: k}, long) + deletedSuffix, moved + straySuffix, moved + deletedSuffix, moved + moveSuffix} {
		if len(name) > 255 {
			t.Errorf("%d bytes: %s", len(name), name)
		}
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	fs := vfs.NewMem()
	d := newDirs(t, fs)
	c := claim{key: Key{topicID("1"), 12}, shard: 4000000000}
	if err := d.writeMetadata("/data", c); err != nil {
		t.Fatal(err)
	}
	got, err := d.readMetadata("/data")
	if err != nil || got != c {
		t.Errorf("read %+v, %v", got, err)
	}
	text, _ := vfs.ReadFile(fs, "/data/"+metadataFile)
	for n := range len(text) {
		if _, err := parseMetadata(string(text[:n])); err == nil {
			t.Errorf("%d of %d bytes parsed", n, len(text))
		}
	}
}

// TestDirsGivePlainNames: who had to take another name gets the plain one when it is free, with what it has open; a power cut before that is durable leaves either.
func TestDirsGivePlainNames(t *testing.T) {
	for _, kept := range []bool{false, true} {
		disk := vfs.NewMem()
		k := Key{topicID("1"), 3}
		was, comes := claim{key: k, shard: testShard}, claim{key: k, shard: testShard + 1, move: 7}
		d := newDirs(t, disk)
		old, _, err := d.claim(was, "t", true)
		if err != nil {
			t.Fatal(err)
		}
		path, _, err := d.claim(comes, "t", true)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.syncMetadata(old), d.syncMetadata(path), d.Sync()); err != nil {
			t.Fatal(err)
		}
		own := filepath.Base(path)
		fsys := d.at(path)
		if err := vfs.WriteFile(fsys, filepath.Join(path, "a"), []byte("before")); err != nil {
			t.Fatal(err)
		}
		open, err := fsys.Open(filepath.Join(path, "a"))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.GivePlainNames(); err != nil || !there(t, d, own) {
			t.Fatalf("a name that is held was taken: %v", err)
		}
		aside, err := d.setAside(was, "t", old)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.GivePlainNames(); err != nil || there(t, d, own) || !there(t, d, "t-3/a") {
			t.Fatalf("the free name was not given: %v", err)
		}
		cut := disk.CrashClone(func() bool { return kept })
		if _, err := open.WriteAt([]byte("B"), 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(open.Close(), vfs.WriteFile(fsys, filepath.Join(path, "b"), []byte("after"))); err != nil {
			t.Fatal(err)
		}
		got, err := vfs.ReadFile(fsys, filepath.Join(path, "a"))
		if err != nil || string(got) != "Before" {
			t.Errorf("read %q by the path that was opened: %v", got, err)
		}
		if names, err := fsys.List(path); err != nil || len(names) != 3 || d.where(path) != "/data/t-3" || !there(t, d, "t-3/b") {
			t.Errorf("%v in %s: %v", names, d.where(path), err)
		}
		if gone, err := d.setAside(comes, "t", path); err != nil || gone == aside || there(t, d, "t-3") {
			t.Errorf("set aside as %s: %v", gone, err)
		}
		again := newDirs(t, cut)
		if back, marked, err := again.claim(comes, "t", false); err != nil || !marked || back != "/data/t-3" {
			t.Errorf("found in %s after a power cut: %t, %v", back, marked, err)
		}
		if back, marked, err := again.claim(was, "t", false); err != nil || !marked || filepath.Base(back) != "t-3.31000000000000000000000000000000" {
			t.Errorf("the other life is in %s after a power cut: %t, %v", back, marked, err)
		}
	}
}
