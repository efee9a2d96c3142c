package partition

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sluice/core/vfs"
)

var update = flag.Bool("update", false, "write the golden files of formats anew")

// TestFormatsDoNotDrift compares entries and a manifest with those that version 1
// wrote. A difference needs a new version, and the old files must stay readable.
func TestFormatsDoNotDrift(t *testing.T) {
	s := newScenario()
	var log bytes.Buffer
	w := newManifestWriter(&log)
	for _, l := range s.log {
		if err := w.frame(l.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/entries-v1.bin", log.Bytes())

	fs := vfs.NewMem()
	if err := fs.MkdirAll("/data"); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fs, "/data/"+originFile, []byte("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	r := newReplica(t, fs, "/data")
	var answers []string
	if err := s.play(t, r, &answers); err != nil {
		t.Fatal(err)
	}
	r.checkpoint()
	golden(t, "testdata/manifest-v1.bin", r.manifest)
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

func FuzzReadManifest(f *testing.F) {
	whole, err := os.ReadFile("testdata/manifest-v1.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:60])
	f.Add([]byte(manifestMagic + "\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, sections, err := readManifest(bytes.NewReader(data), testShard)
		if err != nil {
			return
		}
		for _, sec := range sections {
			sec.into(&Partition{})
		}
	})
}
