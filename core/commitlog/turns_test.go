package commitlog

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/sync/semaphore"

	"sluice/core/vfs"
)

// TestTurnsInOrder checks that reads with much to compare take turns, and that each waits for one turn of each other and no more.
func TestTurnsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := turns{room: semaphore.NewWeighted(1)}
		var log []string
		var work sync.WaitGroup
		first := turn{of: &all}
		first.spend(turnBytes)
		for _, name := range []string{"a", "b"} {
			work.Go(func() {
				mine := turn{of: &all}
				for i := range 6 { // three turns
					mine.spend(turnBytes / 2)
					log = append(log, fmt.Sprint(name, i))
				}
				mine.end()
				mine.end() // again does nothing
			})
			synctest.Wait() // it stands in line
		}
		if len(log) > 0 {
			t.Errorf("%v did not wait", log)
		}
		first.end()
		work.Wait()
		if got, want := fmt.Sprint(log), "[a0 a1 b0 b1 a2 a3 b2 b3 a4 a5 b4 b5]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if !all.room.TryAcquire(1) {
			t.Error("a turn was not given back")
		}
	})
}

// busyFile counts who reads at the same time.
type busyFile struct {
	vfs.File
	reading, most, reads *atomic.Int64
	gate                 func()
}

func (f busyFile) ReadAt(p []byte, off int64) (int, error) {
	f.reads.Add(1)
	if n := f.reading.Add(1); n > f.most.Load() {
		f.most.Store(n)
	}
	defer f.reading.Add(-1)
	f.gate()
	return f.File.ReadAt(p, off)
}

// TestTurnsOfReads checks that no more large reads are compared at once than there are turns, that all of them end, damaged ones too, and that small ones do not wait.
func TestTurnsOfReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large, readers = 4 * turnBytes, 20
		mem := vfs.NewMem()
		data := make([]byte, 0, large)
		for offset := 0; len(data) < large; offset++ {
			b := batch(string(make([]byte, turnFreeBytes/4)), 1, 0)
			b.SetBaseOffset(int64(offset))
			data = append(data, b...)
		}
		if err := vfs.WriteFile(mem, "data", data); err != nil {
			t.Fatal(err)
		}
		inner, err := mem.Open("data")
		if err != nil {
			t.Fatal(err)
		}
		defer inner.Close()
		var reading, most, reads atomic.Int64
		pass := make(chan struct{})
		file := busyFile{File: inner, reading: &reading, most: &most, reads: &reads, gate: func() { <-pass }}
		l := &Log{files: NewFiles(1)}
		l.files.turns.room = semaphore.NewWeighted(2)
		one, end := int64(len(batch(string(make([]byte, turnFreeBytes/4)), 1, 0))), int64(len(data))
		check := func(length int64) (good int64, err error) {
			c := &Chunk{file: file, length: length}
			err = l.check(c, view{s: &segment{}, bytes: end, next: 1 << 40, trusted: -1, gaps: true}, 0)
			return c.length, err
		}
		var work sync.WaitGroup
		for i := range readers {
			work.Go(func() {
				if good, err := check(end); good != end || err != nil {
					t.Errorf("reader %d: %d bytes are good, %v", i, good, err)
				}
				if good, err := check(end - 1); good != end-one || err != nil { // its last batch is not whole
					t.Errorf("reader %d: %d bytes are good, %v", i, good, err)
				}
			})
		}
		synctest.Wait()
		if n := reading.Load(); n != 2 {
			t.Errorf("%d read at once", n)
		}
		work.Go(func() { _, _ = check(one) })
		synctest.Wait()
		if n := reading.Load(); n != 3 {
			t.Errorf("%d read, when a small one has come", n)
		}
		close(pass)
		work.Wait()
		if n := most.Load(); n > 3 {
			t.Errorf("%d read at once", n)
		}
	})
}

// TestTurnSurvivesPanic checks that a read which panics, and whose connection recovers, takes no turn with it.
func TestTurnSurvivesPanic(t *testing.T) {
	mem := vfs.NewMem()
	if err := vfs.WriteFile(mem, "data", make([]byte, 2*turnFreeBytes)); err != nil {
		t.Fatal(err)
	}
	inner, err := mem.Open("data")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	var n atomic.Int64
	l := &Log{files: NewFiles(1)}
	l.files.turns.room = semaphore.NewWeighted(1)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		c := &Chunk{file: busyFile{File: inner, reading: &n, most: &n, reads: &n, gate: func() { panic("BUG: of a test") }}, length: 2 * turnFreeBytes}
		_ = l.check(c, view{s: &segment{}, bytes: c.length, next: 1, trusted: -1}, 0)
	}()
	if !l.files.turns.room.TryAcquire(1) {
		t.Error("the turn is gone")
	}
}
