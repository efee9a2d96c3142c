package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// connectionsMaxDefault leaves most of a process's 20,000 file descriptors to segments.
	connectionsMaxDefault = 8192
	// idleTimeoutDefault is Kafka's connections.max.idle.ms.
	idleTimeoutDefault = 10 * time.Minute
	// graceDefault is how long a stopping server lets replies be written that are already awaited.
	graceDefault = 2 * time.Second
	// acceptRetryDelay is the pause after a failed accept (no descriptors left, usually), so that it does not spin.
	acceptRetryDelay = 50 * time.Millisecond
	// unsentBytesDefault keeps a sender busy between two wake-ups, and is what is left of an answer in the kernel when its reader has stopped.
	unsentBytesDefault = 256 << 10
)

// Options of a Server. Zero fields take defaults.
type Options struct {
	Handler  Handler
	Versions *Table
	Logger   *slog.Logger // nil discards
	// ConnectionsMax bounds the connections of all listeners; further ones are closed at once (Kafka's max.connections).
	ConnectionsMax int
	// ConnectionsPerHostMax bounds those from one address (Kafka's max.connections.per.ip); 0: as many as there may be.
	ConnectionsPerHostMax int
	// MemoryBytes bounds the frames of all connections together (see lanes); the largest frame always fits.
	MemoryBytes int64
	// UnsentBytes is what the kernel may hold of a connection's answers beyond what its reader has room for.
	UnsentBytes int
	// IdleTimeout closes a connection on which nothing was asked and nothing is answered for so long.
	IdleTimeout time.Duration
	// Grace is how long a stop waits for replies.
	Grace time.Duration
	// Authenticated says whether a connection may send frames of full size. Nil: all may.
	Authenticated func(*Conn) bool
}

// A Listener is a socket with the name that its connections carry.
type Listener struct {
	Name string
	net.Listener
	TLS *tls.Config // nil: plain
}

// A Server serves connections. NewServer starts nothing; Run owns all goroutines.
type Server struct {
	opts    Options
	log     *limitedLog
	metrics *serverMetrics
	lanes   lanes
	// responses are the large ones that are being written.
	responses responses
	control   sync.Mutex // held while a large request without records is decoded: its objects may be many times its size
	nextID    atomic.Uint64

	mu struct {
		sync.Mutex
		conns map[*Conn]struct{}
		hosts map[string]int // connections by client address, when they are bounded
	}
}

// NewServer returns a server.
func NewServer(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ConnectionsMax <= 0 {
		o.ConnectionsMax = connectionsMaxDefault
	}
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = memoryBytesDefault
	}
	if o.UnsentBytes <= 0 {
		o.UnsentBytes = unsentBytesDefault
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = idleTimeoutDefault
	}
	if o.Grace <= 0 {
		o.Grace = graceDefault
	}
	if o.Authenticated == nil {
		o.Authenticated = func(*Conn) bool { return true }
	}
	s := &Server{opts: o, log: &limitedLog{log: o.Logger}, lanes: newLanes(o.MemoryBytes)}
	s.mu.conns = make(map[*Conn]struct{})
	s.mu.hosts = make(map[string]int)
	s.metrics = newServerMetrics(s)
	return s
}

// Run serves the listeners until ctx ends or one of them fails, and closes them. When ctx ends no further requests are read, replies that are awaited are written
// for at most the grace, and all goroutines are gone when it returns.
func (s *Server) Run(ctx context.Context, listeners ...Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg, accepting sync.WaitGroup
	for _, l := range listeners {
		accepting.Add(1)
		go func() {
			defer accepting.Done()
			cancel(s.accept(ctx, l, &wg))
		}()
	}
	<-ctx.Done()
	for _, l := range listeners {
		l.Close()
	}
	accepting.Wait()
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// accept serves the connections of one listener until it is closed.
func (s *Server) accept(ctx context.Context, l Listener, wg *sync.WaitGroup) error {
	for {
		nc, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on listener %s: %w", l.Name, err)
		}
		if err != nil {
			s.log.warn("accept failed", "listener", l.Name, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetryDelay):
			}
			continue
		}
		s.start(ctx, l, nc, wg)
	}
}

// start serves one accepted connection in goroutines of its own, or closes it when there are too many.
func (s *Server) start(ctx context.Context, l Listener, nc net.Conn, wg *sync.WaitGroup) {
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetNoDelay(true) // a reply must not wait for the acknowledgement of the one before it
		limitUnsent(tc, s.opts.UnsentBytes)
	}
	if l.TLS != nil {
		nc = tls.Server(nc, l.TLS)
	}
	c := newConn(s, l.Name, nc)
	if err := s.add(c); err != nil {
		s.metrics.refused.Inc()
		s.log.warn("connection refused", "listener", l.Name, "remote", c.RemoteAddr, "reason", err)
		nc.Close()
		return
	}
	s.metrics.accepted.Inc()
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer s.remove(c)
		c.serve(ctx)
	}()
}

// add counts a connection; the error says which bound it exceeds.
func (s *Server) add(c *Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.conns) >= s.opts.ConnectionsMax {
		return fmt.Errorf("there are %d connections, as many as may be", len(s.mu.conns))
	}
	if most := s.opts.ConnectionsPerHostMax; most > 0 {
		host := c.Host()
		if s.mu.hosts[host] >= most {
			return fmt.Errorf("there are %d connections from %s, as many as may be from one address", most, host)
		}
		s.mu.hosts[host]++
	}
	s.mu.conns[c] = struct{}{}
	return nil
}

func (s *Server) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.conns, c)
	if s.opts.ConnectionsPerHostMax <= 0 {
		return
	}
	host := c.Host()
	if s.mu.hosts[host]--; s.mu.hosts[host] <= 0 {
		delete(s.mu.hosts, host)
	}
}

// Connections returns the number of open connections.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.conns)
}
