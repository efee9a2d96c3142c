// Package edge is a gateway: MQTT and HTTP in, one durable buffer behind them, and an uplink that reads it.
//
// What it acknowledges is on its disk (DESIGN.md). It does not send anything to the core: the uplink, which is started beside it,
// reads Buffer().Log() up to Synced and confirms.
package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"sluice/core/commitlog"
	"sluice/core/vfs"
	"sluice/edge/buffer"
	"sluice/edge/http"
	"sluice/edge/ingest"
	"sluice/edge/mqtt"
)

// Component is what a process shows of its parts on the gateway's HTTP port.
type Component = http.Component

// Gateway is open between Open and the end of Run.
type Gateway struct {
	config  Config
	logger  *slog.Logger
	lock    io.Closer
	buffer  *buffer.Buffer
	journal *ingest.Journal
	mqtt    *mqtt.Server
	http    *http.Server
	ready   chan struct{}
}

// Open recovers buffer and sessions, and listens; it serves nothing before Run. A nil logger discards.
func Open(c Config, logger *slog.Logger) (*Gateway, error) { return OpenFS(vfs.OS, c, logger) }

// OpenFS is Open on another file system, for tests. The sessions' database is always on the operating system's.
func OpenFS(fs vfs.FS, c Config, logger *slog.Logger) (*Gateway, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{config: c, logger: logger, ready: make(chan struct{})}
	if err := g.open(fs); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *Gateway) open(fs vfs.FS) (err error) {
	dir := g.config.DataDir
	if err := makeDir(fs, filepath.Join(dir, "buffer")); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	if g.lock, err = fs.Lock(filepath.Join(dir, "edge.lock")); err != nil {
		return fmt.Errorf("lock data directory %s (is another gateway running on it?): %w", dir, err)
	}
	b := g.config.Buffer
	g.buffer, err = buffer.Open(buffer.Options{
		FS: fs, Dir: filepath.Join(dir, "buffer"), SegmentBytes: b.SegmentBytes, BudgetBytes: b.BudgetBytes, BudgetAge: b.BudgetAge,
		ReserveBytes: b.ReserveBytes, Linger: b.Linger, WhenFull: b.WhenFull, Logger: g.logger.With("component", "buffer"),
	})
	if err != nil {
		return err
	}
	router, err := ingest.NewRouter(g.config.Routing)
	if err != nil {
		return err
	}
	users, err := mqtt.LoadUsers(g.config.Users, g.config.anonymous())
	if err != nil {
		return err
	}
	door := ingest.NewDoor(router, g.buffer)
	if g.journal, err = ingest.OpenJournal(fs, filepath.Join(dir, "journal.position"), g.buffer, g.logger.With("component", "journal")); err != nil {
		return err
	}
	if g.mqtt, err = mqtt.Open(g.config.MQTT, mqtt.Options{
		Door: door, Journal: g.journal, Users: users, StateFile: filepath.Join(dir, "sessions.db"), Logger: g.logger.With("component", "mqtt"),
	}); err != nil {
		return err
	}
	if g.http, err = http.Open(g.config.HTTP, http.Options{
		Door: door, Journal: g.journal, Login: login{users}, Logger: g.logger.With("component", "http"),
	}); err != nil {
		return err
	}
	g.http.Show(Component{Name: "buffer", Part: g.buffer})
	g.http.Show(Component{Name: "mqtt", Part: g.mqtt})
	// What is only in the log comes back last: both registered their ledgers, and sessions must be there to get their messages.
	if err := g.journal.Replay(); err != nil {
		return err
	}
	return g.mqtt.Recover()
}

// makeDir makes dir and what is above it, each entry on disk: a directory that a power cut takes away takes the log with it.
func makeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir); err != nil {
		return err
	}
	return fs.SyncDir(parent)
}

// login lets HTTP ask the users of MQTT; the two doors do not know each other.
type login struct{ users *mqtt.Users }

func (l login) MayPublish(name string, password []byte, topic string) (known, allowed bool) {
	u := l.users.Login(name, password)
	if u == nil {
		return false, false
	}
	return true, u.MayPublish(name, topic)
}

// Close gives back what Open took, for when Run is not reached. Run does it itself.
func (g *Gateway) Close() { g.close() }

func (g *Gateway) close() {
	if g.http != nil {
		g.http.Close()
	}
	if g.mqtt != nil {
		g.mqtt.Close()
	}
	if g.buffer != nil {
		g.buffer.Log().Close()
	}
	if g.lock != nil {
		g.lock.Close()
	}
}

// Show adds a component of the process to /metrics and /status. Call it before Run.
func (g *Gateway) Show(c Component) { g.http.Show(c) }

// Buffer is the gateway's buffer, for the uplink.
func (g *Gateway) Buffer() *buffer.Buffer { return g.buffer }

// Log is the buffer's log.
func (g *Gateway) Log() *commitlog.Log { return g.buffer.Log() }

// Ready is closed when all listeners serve.
func (g *Gateway) Ready() <-chan struct{} { return g.ready }

// Addrs are the addresses the gateway listens on; WS and TLS are nil when they are off.
func (g *Gateway) Addrs() mqtt.Addrs { return g.mqtt.Addrs() }

// HTTPAddr is the address of the HTTP listener, "" when it is off.
func (g *Gateway) HTTPAddr() string { return g.http.Addr() }

// Run serves until ctx ends or the buffer fails, then stops in order: nothing new is read, what is queued is committed, its
// owners are told, connections and files are closed.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.lock.Close()
	serving, stopServing := context.WithCancelCause(ctx)
	committing, stopCommitting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCommitting()
	bufferDone := make(chan error, 1)
	go func() {
		err := g.buffer.Run(committing)
		stopServing(err)
		bufferDone <- err
	}()
	telling := make(chan struct{})
	go func() { defer close(telling); g.journal.Run(serving) }()
	httpDone, mqttDone := make(chan error, 1), make(chan error, 1)
	go func() {
		err := g.http.Run(serving)
		stopServing(err)
		httpDone <- err
	}()
	go func() {
		// The MQTT server stops in two steps around the buffer's end: first it reads no more, then it writes the last
		// acknowledgements and closes.
		mqttDone <- g.mqtt.Run(serving, func() error {
			err := <-httpDone
			<-telling
			if g.buffer.Err() == nil { // the next start replays nothing
				late, cancel := context.WithTimeout(committing, checkpointTime)
				err = errors.Join(err, g.journal.Checkpoint(late))
				cancel()
			}
			stopCommitting()
			return errors.Join(err, <-bufferDone)
		})
	}()
	close(g.ready)
	return <-mqttDone
}

// checkpointTime bounds the journal's last telling at a stop.
const checkpointTime = 5 * time.Second

// WritePrometheus writes the metrics of all parts.
func (g *Gateway) WritePrometheus(w io.Writer) {
	g.buffer.WritePrometheus(w)
	g.mqtt.WritePrometheus(w)
	g.http.WritePrometheus(w)
}

// Status is the state of all parts, for /status.
func (g *Gateway) Status() any {
	return map[string]any{"buffer": g.buffer.Status(), "mqtt": g.mqtt.Status(), "http": g.http.Status()}
}
