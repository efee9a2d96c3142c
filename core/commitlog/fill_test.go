package commitlog

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"sluice/core/vfs"
)

// leader returns a log with several segments, and its file system.
func leader(t *testing.T, appends int) (*Log, *vfs.Mem) {
	t.Helper()
	mem := vfs.NewMem()
	l, err := Open(mem, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for i := range appends {
		mustAppend(t, l, batch(fmt.Sprint(i), 2, int64(i)))
	}
	mustSync(t, l)
	return l, mem
}

// fetch fills a missing segment of to from a peer, in pieces.
func fetch(t *testing.T, to, from *Log, info SegmentInfo, piece int64) {
	t.Helper()
	w, err := to.WriteSegment(info)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for at := w.Resume(); at < info.Bytes; {
		c, err := from.ReadSegment(info.Base, at, min(piece, info.Bytes-at))
		if err != nil {
			t.Fatal(err)
		}
		data, err := c.Bytes()
		c.Release()
		if err != nil || len(data) == 0 {
			t.Fatal(len(data), err)
		}
		if _, err := w.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		at += int64(len(data))
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func sameLogs(t *testing.T, a, b *Log) {
	t.Helper()
	if x, y := a.Manifest(), b.Manifest(); !reflect.DeepEqual(x, y) {
		t.Fatalf("manifests differ\n%+v\n%+v", x, y)
	}
	for _, s := range a.Segments() {
		for _, l := range []*Log{a, b} {
			if err := l.Verify(s.Base, false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if x, y := values(t, a, a.Start(), 1000), values(t, b, b.Start(), 1000); !slices.Equal(x, y) {
		t.Fatalf("values differ\n%v\n%v", x, y)
	}
}

// TestCatchUp: an empty replica adopts a manifest, appends what comes after
// while it fetches, and is the same in the end.
func TestCatchUp(t *testing.T) {
	for _, more := range []int{0, 1, 9} {
		from, _ := leader(t, 9)
		mem := vfs.NewMem()
		to, missing, err := OpenAt(mem, "log", small, from.Manifest())
		if err != nil || len(missing) != len(from.Segments()) {
			t.Fatal(missing, err)
		}
		if _, err := to.Read(0, 100, to.End()); !errors.Is(err, ErrMissing) {
			t.Fatalf("read of a missing segment: %v", err)
		}
		if _, _, _, err := to.LookupTime(0); !errors.Is(err, ErrMissing) {
			t.Fatalf("look-up in a missing segment: %v", err)
		}
		for i := range more {
			for _, l := range []*Log{from, to} {
				mustAppend(t, l, batch(fmt.Sprint("more", i), 1, 50))
			}
		}
		slices.Reverse(missing)
		for i, info := range missing {
			if got := to.Missing(); len(got) != len(missing)-i {
				t.Fatalf("missing %v", got)
			}
			fetch(t, to, from, info, 100)
		}
		mustSync(t, to)
		sameLogs(t, from, to)
		for _, l := range []*Log{from, to} {
			mustAppend(t, l, batch("last", 3, 60))
			mustSync(t, l)
		}
		sameLogs(t, from, to)
		manifest := to.Manifest()
		to.Close()
		again, missing, err := OpenAt(mem.CrashClone(nil), "log", small, manifest)
		if err != nil || len(missing) > 0 {
			t.Fatal(missing, err)
		}
		sameLogs(t, from, again)
		again.Close()
	}
}

// TestAdoptKeepsWhatMatches: a follower that fell behind fetches only what it
// lacks, and of the segment it has begun only the rest.
func TestAdoptKeepsWhatMatches(t *testing.T) {
	from, mem := leader(t, 9)
	to, _, err := OpenAt(mem.CrashClone(nil), "log", small, from.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	held, err := to.Read(0, 100, to.End())
	if err != nil {
		t.Fatal(err)
	}
	before := to.Segments()
	for i := range 6 {
		mustAppend(t, from, batch(fmt.Sprint("x", i), 2, 99))
	}
	mustSync(t, from)
	missing, err := to.Adopt(from.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	begun := before[len(before)-1]
	if len(missing) != len(from.Segments())-(len(before)-1) || missing[0].Base != begun.Base {
		t.Fatalf("missing %+v; had %+v; want %+v", missing, before, from.Segments())
	}
	w, err := to.WriteSegment(missing[0])
	if err != nil || w.Resume() != begun.Bytes {
		t.Fatalf("resumes at %d, had %d: %v", w.Resume(), begun.Bytes, err)
	}
	w.Close()
	for _, info := range missing {
		fetch(t, to, from, info, 70)
	}
	sameLogs(t, from, to)
	if data, err := held.Bytes(); err != nil || len(data) == 0 {
		t.Fatal("a chunk held across Adopt cannot be read:", err)
	}
	held.Release()
}

// TestAdoptReplacesWhatDiffers: a log that went another way becomes the
// leader's, and what it had is only set aside.
func TestAdoptReplacesWhatDiffers(t *testing.T) {
	from, _ := leader(t, 8)
	mem := vfs.NewMem()
	to, err := Open(mem, "log", small)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		mustAppend(t, to, batch(fmt.Sprint("other", i), 1, 5))
	}
	missing, err := to.Adopt(from.Manifest())
	if err != nil || len(missing) != len(from.Segments()) {
		t.Fatal(missing, err)
	}
	for _, info := range missing {
		w, err := to.WriteSegment(info)
		if err != nil {
			t.Fatal(err)
		}
		for w.Resume() > 0 { // a prefix that was of another history shows at Commit
			rest := make([]byte, info.Bytes-w.Resume())
			if _, err := w.WriteAt(rest, w.Resume()); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("committed what was never the leader's: %v", err)
			}
		}
		w.Close()
		fetch(t, to, from, info, 64)
	}
	sameLogs(t, from, to)
	if err := to.RemoveStale(); err != nil {
		t.Fatal(err)
	}
	names, _ := mem.List("log")
	for _, name := range names {
		if _, suffix, _ := parseName(name); suffix != dataSuffix && suffix != indexSuffix {
			t.Errorf("%s is left", name)
		}
	}
	to.Close()
}

// TestFetchResumesAfterRestart: pieces of a closed segment are found again by
// the next process; a wrong piece shows at Commit and costs a new start.
func TestFetchResumesAfterRestart(t *testing.T) {
	from, _ := leader(t, 12)
	mem := vfs.NewMem()
	manifest := from.Manifest()
	to, missing, err := OpenAt(mem, "log", small, manifest)
	if err != nil {
		t.Fatal(err)
	}
	info := missing[0]
	w, err := to.WriteSegment(info)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.WriteSegment(info); err == nil {
		t.Fatal("two writers for one segment")
	}
	if err := w.Commit(); err == nil {
		t.Fatal("committed an empty segment")
	}
	if _, err := w.WriteAt(make([]byte, info.Bytes+1), 0); err == nil {
		t.Fatal("wrote beyond the segment")
	}
	if _, err := w.WriteAt([]byte("wrong"), 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	to.Close()
	to, missing, err = OpenAt(mem, "log", small, manifest)
	if err != nil || missing[0] != info {
		t.Fatal(missing, err)
	}
	defer to.Close()
	w, err = to.WriteSegment(info)
	if err != nil || w.Resume() != 5 {
		t.Fatalf("resumes at %d: %v", w.Resume(), err)
	}
	c, err := from.ReadSegment(info.Base, 5, info.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	if _, err := w.WriteAt(data, 5); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); !errors.Is(err, ErrCorrupt) || w.Resume() != 0 {
		t.Fatalf("commit of a wrong piece: %v, resumes at %d", err, w.Resume())
	}
	w.Close()
	for _, info := range missing {
		fetch(t, to, from, info, 1000)
	}
	sameLogs(t, from, to)
}

// TestQuarantine: a damaged segment is found by Verify, set aside, not served,
// and fetched again; the last one too, with appends going on.
// TestFillResumesAfterRestart: of the last segment, which is appended to while it is fetched, the next process finds what was synced, whether it is still the
// last one or was rolled meanwhile.
func TestFillResumesAfterRestart(t *testing.T) {
	for _, rolled := range []bool{false, true} {
		t.Run(fmt.Sprintf("rolled=%v", rolled), func(t *testing.T) {
			from, _ := leader(t, 12)
			mem := vfs.NewMem()
			manifest := from.Manifest()
			last := manifest.Segments[len(manifest.Segments)-1]
			to, _, err := OpenAt(mem, "log", small, manifest)
			if err != nil {
				t.Fatal(err)
			}
			to.fillSync = 10
			w, err := to.WriteSegment(last)
			if err != nil {
				t.Fatal(err)
			}
			c, err := from.ReadSegment(last.Base, 0, last.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			data, err := c.Bytes()
			c.Release()
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at < 25; at += 5 { // the last five bytes are not synced
				if _, err := w.WriteAt(data[at:at+5], int64(at)); err != nil {
					t.Fatal(err)
				}
			}
			more := 1
			if rolled {
				more = 9
			}
			for i := range more {
				for _, l := range []*Log{from, to} {
					mustAppend(t, l, batch(fmt.Sprint("more", i), 1, 50))
				}
			}
			again := to.Manifest()
			w.Close()
			to.Close()
			to, missing, err := OpenAt(mem, "log", small, again)
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close()
			for _, info := range missing {
				if info.Base != last.Base {
					continue
				}
				w, err := to.WriteSegment(info)
				if err != nil || w.Resume() != 20 {
					t.Fatalf("resumes at %d, %v", w.Resume(), err)
				}
				w.Close()
			}
			for _, info := range missing {
				fetch(t, to, from, info, 1000)
			}
			sameLogs(t, from, to)
			names, err := mem.List("log")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if _, suffix, _ := parseName(name); suffix == fillMarkSuffix || suffix == fillSuffix || suffix == partSuffix {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}

// TestFillMarkThatLies: whatever a mark says, what is wrong shows at Commit and costs a new start.
func TestFillMarkThatLies(t *testing.T) {
	for _, mark := range [][]byte{nil, []byte("short"), make([]byte, fillMarkBytes), encodeFillMark(1 << 40), encodeFillMark(-1), encodeFillMark(30)} {
		from, _ := leader(t, 12)
		mem := vfs.NewMem()
		manifest := from.Manifest()
		last := manifest.Segments[len(manifest.Segments)-1]
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(mem.MkdirAll("log"))
		must(vfs.WriteFile(mem, "log/"+fileName(last.Base, fillSuffix), make([]byte, 40)))
		must(vfs.WriteFile(mem, "log/"+fileName(last.Base, fillMarkSuffix), mark))
		to, missing, err := OpenAt(mem, "log", small, manifest)
		must(err)
		w, err := to.WriteSegment(last)
		must(err)
		c, err := from.ReadSegment(last.Base, w.Resume(), last.Bytes)
		must(err)
		data, err := c.Bytes()
		must(err)
		c.Release()
		_, err = w.WriteAt(data, w.Resume())
		must(err)
		err = w.Commit()
		if w.Close(); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("mark %x: %v", mark, err)
		}
		for _, info := range missing {
			if info != last || err != nil {
				fetch(t, to, from, info, 1000)
			}
		}
		sameLogs(t, from, to)
		must(to.Close())
	}
}

func TestQuarantine(t *testing.T) {
	from, mem := leader(t, 9)
	for i := range from.Segments() {
		damaged := mem.CrashClone(nil)
		info := from.Segments()[i]
		f, err := damaged.Open("log/" + fileName(info.Base, dataSuffix))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0xff}, info.Bytes-1); err != nil {
			t.Fatal(err)
		}
		to, missing, err := OpenAt(damaged, "log", small, from.Manifest())
		if err != nil || len(missing) > 0 {
			t.Fatal(missing, err)
		}
		paced := 0
		if err := to.Verify(info.Base, false, func(n int) error { paced += n; return nil }); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("damage was not found: %v", err)
		}
		if int64(paced) != info.Bytes {
			t.Fatalf("paced %d of %d bytes", paced, info.Bytes)
		}
		if got, err := to.Quarantine(info.Base); err != nil || got != info {
			t.Fatal(got, err)
		}
		if _, err := to.Read(info.Base, 10, to.End()); !errors.Is(err, ErrMissing) {
			t.Fatalf("read of a segment set aside: %v", err)
		}
		fetch(t, to, from, info, 33)
		sameLogs(t, from, to)
		to.Close()
	}
}

// TestWriteSegmentReplacesWhatIsThere: asking to write a segment that is there
// is to say it is damaged.
func TestWriteSegmentReplacesWhatIsThere(t *testing.T) {
	from, mem := leader(t, 9)
	to, _, err := OpenAt(mem.CrashClone(nil), "log", small, from.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	for _, info := range from.Segments() {
		fetch(t, to, from, info, 50)
	}
	sameLogs(t, from, to)
	gone := SegmentInfo{Base: 1000, Next: 1001, Bytes: 80}
	if _, err := to.WriteSegment(gone); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("writer of a segment that the log does not have: %v", err)
	}
}

// TestTrimWhileFetching: the start passes a segment that is being fetched.
func TestTrimWhileFetching(t *testing.T) {
	from, _ := leader(t, 9)
	mem := vfs.NewMem()
	to, missing, err := OpenAt(mem, "log", small, from.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	w, err := to.WriteSegment(missing[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := to.Unlink(to.SetStart(missing[0].Next)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("y"), 1); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("write to a segment that was dropped: %v", err)
	}
	w.Close()
	if names, _ := mem.List("log"); slices.Contains(names, fileName(missing[0].Base, partSuffix)) {
		t.Fatalf("left behind: %v", names)
	}
}
