package partition

import (
	"slices"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/vfs"
)

func TestStraysGoWhenNobodyCanWantThem(t *testing.T) {
	fs := vfs.NewMem()
	first, second := Key{topicID("1"), 0}, Key{topicID("2"), 0}
	mustClaim(t, newDirs(t, fs), first, "t", true)
	if err := fs.MkdirAll("/data/u-0"); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fs, "/data/u-0/"+metadataFile, []byte("torn")); err != nil {
		t.Fatal(err)
	}
	d := newDirs(t, fs)
	mustClaim(t, d, second, "t", true)
	mustClaim(t, d, Key{topicID("3"), 0}, "u", true)
	own, unknown := "t-0.31000000000000000000000000000000-stray", "u-0.unknown-stray"

	now := time.Now()
	sweep := func(needed ...string) []string {
		t.Helper()
		gone, err := d.RemoveStrays(now, func(_ meta.ShardID, known bool) bool {
			return known && slices.Contains(needed, own) || !known && slices.Contains(needed, unknown)
		})
		if err != nil {
			t.Fatal(err)
		}
		return gone
	}
	if gone := sweep(); len(gone) > 0 {
		t.Fatalf("removed %v at the first look", gone)
	}
	now = now.Add(StrayKeep - time.Second)
	if gone := sweep(); len(gone) > 0 {
		t.Fatalf("removed %v too early", gone)
	}
	now = now.Add(time.Second)
	if gone := sweep(own, unknown); len(gone) > 0 {
		t.Fatalf("removed %v though a replica may want it", gone)
	}
	if gone := sweep(own); !slices.Equal(gone, []string{unknown}) || there(t, d, unknown) || !there(t, d, own) {
		t.Fatalf("removed %v", gone)
	}
	// Its owner comes for it: it is no stray any more.
	mustClaim(t, d, first, "t", false)
	if gone := sweep(); len(gone) > 0 {
		t.Fatalf("removed %v", gone)
	}
	for _, name := range []string{"t-0", "u-0", "t-0.31000000000000000000000000000000"} {
		if !there(t, d, name) {
			t.Errorf("%s is gone", name)
		}
	}
}
