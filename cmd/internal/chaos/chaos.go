// Package chaos is the switchboard by which a fault harness harms a process from inside, where nobody outside can: a disk that fails, is
// slow, full or lies about syncs, writes that a kill takes away as a power cut does, a wall clock that jumps.
//
// Only binaries built with the tag chaos contain it (`make bin/sluice-chaos`), and even those are healthy without the environment
// variables below. FORMAT.md says what the socket takes.
package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"sluice/core/vfs"
)

// The environment variables that a process looks at.
const (
	// EnvSocket is the path of the Unix socket to serve on; without it there is no switchboard.
	EnvSocket = "SLUICE_CHAOS"
	// EnvVolatile, when set, keeps writes in the process until they are synced: kill -9 becomes a power cut.
	EnvVolatile = "SLUICE_CHAOS_VOLATILE"
)

const (
	requestBytesMax = 1 << 20 // a schedule's rules are a few lines
	requestTimeout  = 10 * time.Second
	shutdownTimeout = time.Second // rules that delay calls must not hold a stop up
)

// Board is the switchboard of one process.
type Board struct {
	logger *slog.Logger
	clock  Clock
	mu     struct {
		sync.Mutex
		disks []*disk
		rules []vfs.Rule
		past  map[vfs.Mode]int64 // hits of rules that have been replaced
	}
}

// disk is the file system below one data directory.
type disk struct {
	root     string
	volatile *vfs.Volatile // nil: writes go to the file system as they come
	fault    *vfs.Fault
	rules    *vfs.Rules
}

// New returns a board with everything healthy.
func New(logger *slog.Logger) *Board {
	b := &Board{logger: logger}
	b.mu.past = map[vfs.Mode]int64{vfs.Fail: 0, vfs.Slow: 0, vfs.Lie: 0, vfs.Full: 0}
	return b
}

// Now is the shifted wall clock.
func (b *Board) Now() time.Time { return b.clock.Now() }

// FS puts the switchboard between a data directory and its file system. volatile is what EnvVolatile says.
func (b *Board) FS(inner vfs.FS, root, volatile string) (vfs.FS, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := &disk{root: root}
	if volatile != "" {
		seed, err := volatileSeed(volatile)
		if err != nil {
			return nil, err
		}
		if d.volatile, err = vfs.NewVolatile(inner, root, vfs.VolatileOptions{Seed: seed}); err != nil {
			return nil, fmt.Errorf("keep writes in memory: %w", err)
		}
		inner = d.volatile
	}
	d.fault = vfs.NewFault(inner)
	if err := d.set(b.mu.rules); err != nil {
		return nil, err
	}
	b.mu.disks = append(b.mu.disks, d)
	return d.fault, nil
}

// volatileSeed reads the value of EnvVolatile: 1, or seed:N with N from 1 on.
func volatileSeed(text string) (uint64, error) {
	if text == "1" {
		return 0, nil
	}
	number, ok := strings.CutPrefix(text, "seed:")
	seed, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || seed == 0 {
		return 0, fmt.Errorf("%s=%s: must be 1 or seed:N", EnvVolatile, text)
	}
	return seed, nil
}

func (d *disk) set(list []vfs.Rule) error {
	rules, err := vfs.NewRules(d.root, list)
	if err != nil {
		return err
	}
	d.rules = rules
	d.fault.SetRules(rules)
	return nil
}

// SetRules replaces the rules of all disks, or none of them when one rule is wrong.
func (b *Board) SetRules(list []vfs.Rule) error {
	if _, err := vfs.NewRules("", list); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.mu.disks {
		b.rememberLocked(d)
		if err := d.set(list); err != nil {
			return err
		}
	}
	b.mu.rules = list
	return nil
}

func (b *Board) rememberLocked(d *disk) {
	for mode, n := range d.rules.Hits() {
		b.mu.past[mode] += n
	}
}

// Stats is what the board has done.
type Stats struct {
	Injected      map[vfs.Mode]int64 `json:"injected"` // calls that met a rule, by mode
	Rules         int                `json:"rules"`
	ClockOffsetMs int64              `json:"clockOffsetMs"`
	VolatileBytes int64              `json:"volatileBytes"` // written, in memory only
}

// Stats counts since the process began.
func (b *Board) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{Injected: maps.Clone(b.mu.past), Rules: len(b.mu.rules), ClockOffsetMs: b.clock.Offset().Milliseconds()}
	for _, d := range b.mu.disks {
		for mode, n := range d.rules.Hits() {
			s.Injected[mode] += n
		}
		if d.volatile != nil {
			s.VolatileBytes += d.volatile.DirtyBytes()
		}
	}
	return s
}

// Listen binds the socket. A file that a killed process left there is replaced.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen for the switchboard: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the switchboard: %w", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends.
func (b *Board) Serve(ctx context.Context, l net.Listener) error {
	server := &fasthttp.Server{
		Handler: b.serve, Name: "sluice-chaos", MaxRequestBodySize: requestBytesMax, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		CloseOnShutdown: true, Logger: quiet{},
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the switchboard: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	_ = server.ShutdownWithContext(end) // what is cut off is a harness that has ended its process
	<-done
	return nil
}

// quiet drops what fasthttp logs.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

func (b *Board) serve(ctx *fasthttp.RequestCtx) {
	err := errNotFound
	switch route := string(ctx.Method()) + " " + string(ctx.Path()); route {
	case "GET /stats":
		err = nil
	case "POST /fs":
		err = b.postFS(ctx.PostBody())
	case "POST /clock":
		err = b.postClock(ctx.PostBody())
	}
	ctx.SetContentType("application/json")
	var answer any = b.Stats()
	if err != nil {
		ctx.SetStatusCode(fasthttp.StatusBadRequest)
		if errors.Is(err, errNotFound) {
			ctx.SetStatusCode(fasthttp.StatusNotFound)
		}
		answer = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(ctx).Encode(answer) // it goes to a buffer in memory
}
