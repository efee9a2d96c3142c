package proc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// diary notes what the parts of a test do, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) part(name string) Part {
	ready := make(chan struct{})
	return Part{Name: name, Ready: ready, Run: func(ctx context.Context) error {
		d.note("start " + name)
		close(ready)
		<-ctx.Done()
		d.note("stop " + name)
		return ctx.Err()
	}}
}

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	var d diary
	p := New(nil)
	for _, name := range []string{"log", "raft", "broker"} {
		p.Add(d.part(name))
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := p.Run(ctx, func() { d.note("serving"); cancel() }); err != nil {
		t.Fatal(err)
	}
	want := []string{"start log", "start raft", "start broker", "serving", "stop broker", "stop raft", "stop log"}
	if diff := cmp.Diff(want, d.lines); diff != "" {
		t.Error(diff)
	}
}

func TestAPartThatFailsEndsTheProcess(t *testing.T) {
	var d diary
	disk := errors.New("disk is gone")
	fail := make(chan struct{})
	p := New(nil)
	p.Add(d.part("log"))
	p.Add(Part{Name: "raft", Run: func(context.Context) error { <-fail; return disk }})
	p.Add(d.part("broker"))
	err := p.Run(t.Context(), func() { close(fail) })
	if !errors.Is(err, disk) || !strings.Contains(err.Error(), "run raft: disk is gone") {
		t.Errorf("the error is %v", err)
	}
	if diff := cmp.Diff([]string{"start log", "start broker", "stop broker", "stop log"}, d.lines); diff != "" {
		t.Error(diff)
	}
}

func TestAPartThatFailsBeforeItIsReadyKeepsTheRestFromStarting(t *testing.T) {
	var d diary
	p := New(nil)
	p.Add(d.part("log"))
	p.Add(Part{Name: "raft", Ready: make(chan struct{}), Run: func(context.Context) error { return nil }})
	p.Add(d.part("broker"))
	err := p.Run(t.Context(), func() { t.Error("it serves") })
	if err == nil || err.Error() != "run raft: ended by itself" {
		t.Errorf("the error is %v", err)
	}
	if diff := cmp.Diff([]string{"start log", "stop log"}, d.lines); diff != "" {
		t.Error(diff)
	}
}

func TestEndWhileStarting(t *testing.T) {
	var d diary
	ctx, cancel := context.WithCancel(t.Context())
	p := New(nil)
	p.Add(d.part("log"))
	p.Add(Part{Name: "raft", Ready: make(chan struct{}), Run: func(ctx context.Context) error { cancel(); <-ctx.Done(); return nil }})
	p.Add(d.part("broker"))
	if err := p.Run(ctx, func() { t.Error("it serves") }); err != nil {
		t.Errorf("the error is %v", err)
	}
}

func TestAPartThatDoesNotStopIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := New(nil)
		p.Add(Part{Name: "raft", Run: func(context.Context) error { <-release; return nil }})
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		err := p.Run(ctx, cancel)
		if !errors.Is(err, ErrStopTimeout) || !strings.Contains(err.Error(), "stop raft") {
			t.Errorf("the error is %v", err)
		}
		if took := time.Since(begin); took != StopTimeout {
			t.Errorf("it took %v", took)
		}
		close(release)
		synctest.Wait()
	})
}

func TestSignals(t *testing.T) {
	ctx, stop := Signals(t.Context())
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
}

func TestPIDFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "core-1.pid")
	remove, err := WritePIDFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(name); strings.TrimSpace(string(got)) != strconv.Itoa(os.Getpid()) {
		t.Errorf("the file holds %q", got)
	}
	remove()
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if _, err := WritePIDFile(filepath.Join(name, "no", "directory")); err == nil {
		t.Error("a pid file without a directory is no error")
	}
}

func TestLimits(t *testing.T) {
	if n, err := RaiseFileLimit(); err != nil || n == 0 {
		t.Errorf("file limit %d, %v", n, err)
	}
	if got := parseMemTotal("MemFree: 1 kB\nMemTotal:       16303428 kB\n"); got != 16303428<<10 {
		t.Errorf("total memory %d", got)
	}
	if got := parseMemTotal("nothing"); got != 0 {
		t.Errorf("total memory %d", got)
	}
}
