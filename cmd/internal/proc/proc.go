// Package proc runs a process made of parts: each part is started when the one before it is
// ready, and they are stopped in the opposite order, each after what depends on it is gone.
//
// It guarantees that every part's Run has returned when Process.Run returns, unless a part
// ignored its cancelled context for StopTimeout; that one is named in the error. It restarts
// nothing: a process whose part failed ends, and says which part it was.
package proc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes of every program of the house.
const (
	ExitOK      = 0
	ExitFailure = 1
	ExitUsage   = 2 // wrong flags, arguments or configuration
)

// StopTimeout is how long one part may take to stop. A core node hands its leaderships
// over and syncs a checkpoint in that time; a supervisor usually kills after 30 s or more.
const StopTimeout = 25 * time.Second

// ErrStopTimeout is returned when a part did not stop within StopTimeout.
var ErrStopTimeout = errors.New("did not stop in time")

// Part is one piece of a process.
type Part struct {
	Name  string
	Why   string          // why it stands at this place in the order
	Ready <-chan struct{} // closed when the next part may start; nil for at once
	Run   func(ctx context.Context) error
}

// Process is an ordered list of parts.
type Process struct {
	logger  *slog.Logger
	parts   []Part
	timeout time.Duration
}

// New returns an empty process. A nil logger discards.
func New(logger *slog.Logger) *Process {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Process{logger: logger, timeout: StopTimeout}
}

// Add puts a part at the end of the starting order.
func (p *Process) Add(part Part) { p.parts = append(p.parts, part) }

// started is a part whose Run is under way.
type started struct {
	Part
	cancel context.CancelFunc
	done   chan struct{} // closed when Run returned
	err    error         // valid after done
}

// Run starts the parts, calls serving (when not nil) once all are ready, waits until ctx
// ends or a part returns, stops all, and returns why the process ended: nil when ctx ended it.
func (p *Process) Run(ctx context.Context, serving func()) error {
	ended := make(chan *started, len(p.parts))
	var running []*started
	var err error
	for _, part := range p.parts {
		s := start(ctx, part, ended)
		running = append(running, s)
		if err = awaitReady(ctx, s, ended); err != nil || ctx.Err() != nil {
			break
		}
		p.logger.Debug("part is ready", "part", part.Name, "why", part.Why)
	}
	if err == nil && ctx.Err() == nil {
		if serving != nil {
			serving()
		}
		err = awaitEnd(ctx, ended)
	}
	return errors.Join(err, p.stop(running))
}

// start runs a part under a context of its own: the process's end must not reach all
// parts at once, or the order of stopping would be lost.
func start(ctx context.Context, part Part, ended chan<- *started) *started {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &started{Part: part, cancel: cancel, done: make(chan struct{})}
	go func() {
		s.err = part.Run(own)
		close(s.done)
		ended <- s
	}()
	return s
}

func awaitReady(ctx context.Context, s *started, ended <-chan *started) error {
	if s.Ready == nil {
		return nil
	}
	select {
	case <-s.Ready:
		return nil
	case e := <-ended:
		return e.failure()
	case <-ctx.Done():
		return nil
	}
}

func awaitEnd(ctx context.Context, ended <-chan *started) error {
	select {
	case <-ctx.Done():
		return nil
	case e := <-ended:
		return e.failure()
	}
}

// failure is why a part that nobody stopped has ended.
func (s *started) failure() error {
	if s.err == nil || errors.Is(s.err, context.Canceled) {
		return fmt.Errorf("run %s: ended by itself", s.Name)
	}
	return fmt.Errorf("run %s: %w", s.Name, s.err)
}

// stop ends the parts from the last to the first. The error of a part that had already
// ended was reported as its failure.
func (p *Process) stop(running []*started) error {
	var errs []error
	for i := len(running) - 1; i >= 0; i-- {
		s := running[i]
		select {
		case <-s.done:
			s.cancel()
			continue
		default:
		}
		begin := time.Now()
		s.cancel()
		if err := s.await(p.timeout); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", s.Name, err))
		}
		p.logger.Debug("part has stopped", "part", s.Name, "took", time.Since(begin))
	}
	return errors.Join(errs...)
}

func (s *started) await(timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ErrStopTimeout
	case <-s.done:
	}
	if errors.Is(s.err, context.Canceled) {
		return nil
	}
	return s.err
}

// Signals returns a context that ends with the first SIGINT or SIGTERM. After it a second
// signal has its default effect: it ends the process at once.
func Signals(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
