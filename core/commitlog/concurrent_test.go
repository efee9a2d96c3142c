package commitlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sluice/core/record"
	"sluice/core/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConcurrentUse: one appends and syncs, others follow the end, look up,
// trim and check, over more files than may be open. Under the race detector
// this is the proof that they may.
func TestConcurrentUse(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"mem": vfs.NewMem(), "os": vfs.OS} {
		t.Run(name, func(t *testing.T) {
			l, err := Open(fsys, t.TempDir(), Config{SegmentBytes: 3000, IndexIntervalBytes: 200, Files: NewFiles(3)})
			if err != nil {
				t.Fatal(err)
			}
			useConcurrently(t, l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if n := l.files.Open(); n != 0 {
				t.Fatalf("%d files open after Close", n)
			}
		})
	}
}

func useConcurrently(t *testing.T, l *Log) {
	const appends = 400
	done := make(chan struct{})
	var group sync.WaitGroup
	loop := func(fn func() error) {
		group.Go(func() {
			for {
				if err := fn(); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range 2 {
		next := int64(0)
		loop(func() error { return follow(l, &next) })
	}
	loop(func() error { _, err := l.Sync(); return err })
	loop(func() error { return l.Unlink(l.SetStart(l.End() - 60)) })
	loop(func() error {
		_, _, _, err := l.LookupTime(l.End() / 2)
		l.MaxTimestamp()
		l.RetentionStart(l.End(), 5, 1000)
		return err
	})
	loop(func() error {
		for _, s := range l.Segments() {
			if err := l.Verify(s.Base, false, nil); err != nil && !errors.Is(err, ErrMissing) && s.Base >= l.Start() {
				return err
			}
		}
		l.Configure(Config{SegmentBytes: 2500 + l.End()%1000, IndexIntervalBytes: 200})
		return nil
	})
	for i := range appends {
		if _, err := l.Append(batch(fmt.Sprint(i), 2, int64(i)), 1); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	group.Wait()
	if l.End() != 2*appends {
		t.Errorf("end %d", l.End())
	}
}

// follow reads a chunk and checks it, from the start again when that passed.
func follow(l *Log, next *int64) error {
	c, err := l.Read(*next, 700, l.End())
	if errors.Is(err, ErrOutOfRange) {
		*next = l.Start()
		return nil
	}
	if err != nil || c == nil {
		return err
	}
	defer c.Release()
	data, err := c.Bytes()
	if err != nil {
		return err
	}
	at := int64(-1)
	for rest := data; len(rest) > 0; {
		var b record.Batch
		if b, rest, err = record.Next(rest); err != nil {
			return err
		}
		if err := b.Validate(); err != nil {
			return err
		}
		if at >= 0 && b.BaseOffset() != at {
			return fmt.Errorf("batch at %d after %d", b.BaseOffset(), at)
		}
		at = b.NextOffset()
	}
	if at != c.Next() {
		return fmt.Errorf("chunk ends at %d, says %d", at, c.Next())
	}
	*next = at
	return nil
}

// TestFilesUnderPressure: many logs, few files, all at once.
func TestFilesUnderPressure(t *testing.T) {
	files := NewFiles(2)
	mem := vfs.NewMem()
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			l, err := Open(mem, fmt.Sprint("log", i), Config{Files: files, SegmentBytes: 500, IndexIntervalBytes: 100})
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Close()
			next := int64(0)
			for n := range 60 {
				if _, err := l.Append(batch(fmt.Sprint(i, n), 1, 1), 0); err != nil {
					t.Error(err)
				}
				if err := follow(l, &next); err != nil {
					t.Error(err)
				}
				if n%9 == 0 {
					if _, err := l.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	if n := files.Open(); n != 0 {
		t.Fatalf("%d files open", n)
	}
}

// TestChunkOutlivesItsSegment: unlinked, closed, the log removed: who holds a
// chunk can read it.
func TestChunkOutlivesItsSegment(t *testing.T) {
	files := NewFiles(1)
	l, err := Open(vfs.OS, t.TempDir()+"/log", Config{SegmentBytes: 300, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		mustAppend(t, l, batch(fmt.Sprint(i), 2, 1))
	}
	c, err := l.Read(0, 1000, l.End())
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlink(l.SetStart(l.End())); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(0, 1000, l.End()); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("read below the start: %v", err)
	}
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	after, err := c.Bytes()
	if err != nil || !bytes.Equal(before, after) {
		t.Fatal(err)
	}
	c.Release()
	c.Release()
	if n := files.Open(); n != 0 {
		t.Fatalf("%d files open", n)
	}
	if _, err := l.Append(batch("x", 1, 1), 0); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := l.Read(0, 1, 1); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// pipe returns both ends of a TCP connection.
func pipe(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// TestWriteTo sends a large chunk by sendfile, by copying from memory, and to
// a writer that is no connection; several at once share the file.
func TestWriteTo(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"mem": vfs.NewMem(), "os": vfs.OS} {
		l, err := Open(fsys, t.TempDir(), Config{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			mustAppend(t, l, batch(fmt.Sprint(i), 1000, 1))
		}
		want, err := vfs.ReadFile(fsys, l.path(0, dataSuffix))
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for reader := range int64(3) {
			client, server := pipe(t)
			c, err := l.Read(reader*1000, 1<<40, l.End())
			if err != nil {
				t.Fatal(err)
			}
			group.Go(func() {
				defer c.Release()
				if n, err := c.WriteTo(server); err != nil || n != c.Len() {
					t.Error(name, n, err)
				}
				server.Close()
			})
			group.Go(func() {
				got, err := io.ReadAll(client)
				if err != nil || !bytes.Equal(got, want[int64(len(want))-c.Len():]) {
					t.Errorf("%s: got %d of %d bytes: %v", name, len(got), c.Len(), err)
				}
			})
		}
		group.Wait()
		c, err := l.Read(0, 1<<40, l.End())
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if n, err := c.WriteTo(&out); err != nil || n != c.Len() || !bytes.Equal(out.Bytes(), want) {
			t.Fatal(n, err)
		}
		c.Release()
		l.Close()
	}
}

// TestWriteToStalledReader: the connection's deadline ends a sendfile.
func TestWriteToStalledReader(t *testing.T) {
	l, err := Open(vfs.OS, t.TempDir(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mustAppend(t, l, big(30<<20, 1))
	c, err := l.Read(0, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	_, server := pipe(t)
	if err := server.SetWriteDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := c.WriteTo(server)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() || n >= c.Len() {
		t.Fatal(n, err)
	}
}

func TestNilChunk(t *testing.T) {
	var c *Chunk
	if data, err := c.Bytes(); data != nil || err != nil || c.Len() != 0 || c.Next() != -1 {
		t.Fatal("a nil chunk is not empty")
	}
	if n, err := c.WriteTo(io.Discard); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	c.Release()
}
