package chaos

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script string) *process {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	p := &process{name: "shell", launcher: newLauncher(ctx), logFile: filepath.Join(t.TempDir(), "log"), env: func() []string { return []string{"WORD=here"} }}
	p.command = func() command { return command{"sh", "-c", script} }
	if err := p.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// said waits for a word in the process's log.
func (p *process) said(t *testing.T, word string) {
	t.Helper()
	err := await(context.Background(), patience, "the process says "+word, func() error {
		data, err := os.ReadFile(p.logFile)
		if err == nil && !strings.Contains(string(data), word) {
			err = errWaited
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestProcessIsKilledAndStartedAgain(t *testing.T) {
	p := shell(t, "echo $WORD; sleep 1000")
	p.said(t, "here")
	if err := p.start(context.Background()); err == nil {
		t.Error("it was started twice at once")
	}
	first := p.pid()
	p.kill()
	if err := p.died(); err != nil {
		t.Errorf("killed by us: %v", err)
	}
	if p.pid() != 0 {
		t.Error("it runs")
	}
	if err := p.start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if p.pid() == first || p.starts != 2 {
		t.Errorf("pid %d, %d starts", p.pid(), p.starts)
	}
}

func TestProcessThatEndsByItselfIsNoticed(t *testing.T) {
	p := shell(t, "exit 3")
	if !p.wait(patience) {
		t.Fatal("it runs on")
	}
	if err := p.died(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v", err)
	}
}

func TestProcessStops(t *testing.T) {
	p := shell(t, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
	p.said(t, "up")
	if err := p.stop(patience); err != nil {
		t.Error(err)
	}
	p.said(t, "bye")
	if err := p.stop(patience); err != nil {
		t.Errorf("stopped twice: %v", err)
	}
}

func TestProcessThatDoesNotStopIsKilled(t *testing.T) {
	p := shell(t, "trap '' TERM; echo up; while :; do sleep 0.01; done")
	p.said(t, "up")
	if err := p.stop(50 * time.Millisecond); err == nil || p.pid() != 0 {
		t.Errorf("%v, pid %d", err, p.pid())
	}
}

func TestProcessPauses(t *testing.T) {
	p := shell(t, "echo up; sleep 1000")
	p.said(t, "up")
	state := func(want string) func() error {
		return func() error {
			stat, err := os.ReadFile("/proc/" + itoa(p.pid()) + "/stat")
			if err == nil && !strings.Contains(string(stat), ") "+want+" ") {
				err = errWaited
			}
			return err
		}
	}
	p.signal(syscall.SIGSTOP)
	if err := await(context.Background(), patience, "it is stopped", state("T")); err != nil {
		t.Error(err)
	}
	p.signal(syscall.SIGCONT)
	if err := await(context.Background(), patience, "it goes on", state("S")); err != nil {
		t.Error(err)
	}
}

func TestStartedTellsProcessesApart(t *testing.T) {
	own := owned{PID: os.Getpid(), Started: started(os.Getpid())}
	if !own.alive() {
		t.Error("this process is taken for dead")
	}
	own.Started = "1"
	if own.alive() {
		t.Error("another process with this number is taken for this one")
	}
	if (owned{PID: 1 << 30}).alive() {
		t.Error("nobody is taken for somebody")
	}
}

func TestSubnetUsed(t *testing.T) {
	_, ours, _ := net.ParseCIDR("10.90.0.0/24")
	_, wide, _ := net.ParseCIDR("10.64.0.0/10")
	for _, c := range []struct {
		addresses []net.Addr
		subnet    int
		want      bool
	}{{nil, 90, false}, {[]net.Addr{ours}, 90, true}, {[]net.Addr{ours}, 91, false}, {[]net.Addr{wide}, 91, true}} {
		if got := subnetUsed(c.addresses, c.subnet); got != c.want {
			t.Errorf("%v, %d: %v", c.addresses, c.subnet, got)
		}
	}
}
