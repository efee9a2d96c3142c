package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// launcher starts processes from one operating system thread that lives as long as the run: the kernel ends a child that asked for it when the
// thread that started it ends, and Go ends threads as it likes.
type launcher struct{ work chan func() }

func newLauncher(ctx context.Context) *launcher {
	l := &launcher{work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for {
			select {
			case fn := <-l.work:
				fn()
			case <-ctx.Done():
				return
			}
		}
	}()
	return l
}

// errNoLauncher is returned when a process is to be started after the run.
var errNoLauncher = errors.New("the run is over")

func (l *launcher) start(ctx context.Context, cmd *exec.Cmd) error {
	done := make(chan error, 1)
	select {
	case l.work <- func() { done <- cmd.Start() }:
		return <-done
	case <-ctx.Done():
		return errNoLauncher
	}
}

// process is a program of the cluster, which is started and ended many times.
type process struct {
	name     string
	launcher *launcher
	command  func() command // of the next start
	env      func() []string
	logFile  string
	volatile bool // in its next life a kill is a power cut, whatever its turn
	starts   int  // how often it was started; belongs to the run's goroutine
	mu       struct {
		sync.Mutex
		cmd    *exec.Cmd
		ended  chan struct{} // closed when cmd has ended
		how    error
		wanted bool // it is meant to run
	}
}

// start runs the program; it has not ended, or this is a bug of the caller.
func (p *process) start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runningLocked() {
		return fmt.Errorf("start %s: it runs", p.name)
	}
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", p.name, err)
	}
	defer log.Close()
	c := p.command()
	cmd := exec.Command(c[0], c[1:]...)
	cmd.Env = append(os.Environ(), p.env()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = processAttributes()
	if err := p.launcher.start(ctx, cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.starts++
	p.volatile = false
	ended := make(chan struct{})
	p.mu.cmd, p.mu.ended, p.mu.wanted = cmd, ended, true
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.mu.how = err
		p.mu.Unlock()
		close(ended)
	}()
	return nil
}

func (p *process) runningLocked() bool {
	if p.mu.cmd == nil {
		return false
	}
	select {
	case <-p.mu.ended:
		return false
	default:
		return true
	}
}

// died tells how a process ended that is meant to run.
func (p *process) died() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.diedLocked()
}

func (p *process) diedLocked() error {
	if !p.mu.wanted || p.runningLocked() {
		return nil
	}
	if p.mu.how == nil {
		return fmt.Errorf("%s ended by itself", p.name)
	}
	return fmt.Errorf("%s ended by itself: %w", p.name, p.mu.how)
}

// pid of the process, 0 when it does not run.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.runningLocked() {
		return 0
	}
	return p.mu.cmd.Process.Pid
}

// signal sends s; a process that does not run gets nothing. SIGKILL and SIGTERM mean that it is no longer wanted.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		p.mu.wanted = false
	}
	if p.runningLocked() {
		_ = p.mu.cmd.Process.Signal(s) // it may have ended just now
	}
}

// mayEnd says that the process may end by itself from now on. The error tells how it has ended before that.
func (p *process) mayEnd() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.diedLocked(); err != nil {
		return err
	}
	p.mu.wanted = false
	return nil
}

// forget says that how the process ended is nobody's business any more.
func (p *process) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.wanted, p.mu.how = false, nil
}

// kill ends the process without warning and waits until it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	p.mu.Lock()
	ended := p.mu.ended
	p.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// stop asks the process to end and waits. One that does not within the bound is made to write its stacks into its log and killed.
func (p *process) stop(bound time.Duration) error {
	p.signal(syscall.SIGTERM)
	if p.wait(bound) {
		return p.outcome()
	}
	p.signal(syscall.SIGQUIT)
	p.wait(dumpMax)
	p.kill()
	return fmt.Errorf("%s did not stop within %v and was killed; its stacks are in its log", p.name, bound)
}

// dumpMax bounds the writing of a program's stacks.
const dumpMax = 5 * time.Second

// wait tells whether the process has ended within the bound.
func (p *process) wait(bound time.Duration) bool {
	p.mu.Lock()
	ended := p.mu.ended
	p.mu.Unlock()
	if ended == nil {
		return true
	}
	t := time.NewTimer(bound)
	defer t.Stop()
	select {
	case <-ended:
		return true
	case <-t.C:
		return false
	}
}

func (p *process) outcome() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.how != nil {
		return fmt.Errorf("%s did not stop cleanly: %w", p.name, p.mu.how)
	}
	return nil
}
