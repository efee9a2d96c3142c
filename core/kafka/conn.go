package kafka

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// repliesInFlightMax bounds the requests of one connection that are served and not yet answered. Kafka handles one at a time; more of them let
	// an idempotent producer's five batches be proposed without waiting for each other.
	repliesInFlightMax = 64
	// readBufferBytes takes several small requests in one read; larger frames are read past it.
	readBufferBytes = 4 << 10
	// frameStallTimeout is how long a frame may make no progress beyond the slowest rate that is waited for.
	frameStallTimeout = 30 * time.Second
	// frameBytesPerSecondMin is that rate: a gateway behind a poor radio link still gets its batch through.
	frameBytesPerSecondMin = 16 << 10
	// handshakeTimeout bounds TLS's handshake.
	handshakeTimeout = 10 * time.Second
	// firstRequestTimeout is how long a connection may say nothing at first: clients speak at once, and connections are few.
	firstRequestTimeout = 30 * time.Second
)

// Errors that end a connection.
var (
	// errStopping is returned when the server stops.
	errStopping = errors.New("server is stopping")
	// errIdle is returned when nothing was asked for the idle timeout.
	errIdle = errors.New("idle")
	// errHandshake is returned when TLS's handshake failed.
	errHandshake = errors.New("TLS handshake failed")
	// errSlowReader is returned when a connection did not read a large response while others waited for the memory it holds.
	errSlowReader = errors.New("response was not read while others needed its memory")
	// errPanic is returned when a handler panicked.
	errPanic = errors.New("handler panicked")
)

// A Conn is one connection of a client.
type Conn struct {
	ID           uint64
	RemoteAddr   net.Addr
	ListenerName string
	// Principal is who authenticated, as Kafka writes it; "User:ANONYMOUS" until somebody does. Set by the handler of the authentication, within Serve.
	Principal string

	server   *Server
	nc       net.Conn
	stopped  chan struct{} // closed when the server stops
	inFlight atomic.Int32
	evicted  atomic.Bool // closed for being slow to read a large response
	window   window
	values   sync.Map
}

func newConn(s *Server, listener string, nc net.Conn) *Conn {
	return &Conn{
		ID: s.nextID.Add(1), RemoteAddr: nc.RemoteAddr(), ListenerName: listener, Principal: "User:ANONYMOUS",
		server: s, nc: nc, stopped: make(chan struct{}),
	}
}

// Value returns what SetValue stored for the key on this connection, or nil.
func (c *Conn) Value(key any) any {
	v, _ := c.values.Load(key)
	return v
}

// SetValue stores a value for as long as the connection lives.
func (c *Conn) SetValue(key, value any) { c.values.Store(key, value) }

// Stopping is closed when the server stops: replies that wait for something that may take long answer early then.
func (c *Conn) Stopping() <-chan struct{} { return c.stopped }

// Close ends the connection without an answer, for a reason that is logged. What is answered already is not taken back.
func (c *Conn) Close(reason string) {
	c.server.log.warn("connection closed", "remote", c.RemoteAddr, "listener", c.ListenerName, "reason", reason)
	c.nc.Close()
}

// Host returns the client's address without port.
func (c *Conn) Host() string {
	host, _, err := net.SplitHostPort(c.RemoteAddr.String())
	if err != nil {
		return c.RemoteAddr.String()
	}
	return host
}

// pending is a request that was served and waits for its turn to be answered.
type pending struct {
	req   *Request
	reply Reply
	began time.Time
	held  hold // until it is answered
}

// serve runs the connection's reader in this goroutine and its writer in another, until one of them ends.
func (c *Conn) serve(parent context.Context) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	replies := make(chan pending, repliesInFlightMax)
	written := make(chan error, 1)
	go func() {
		err := c.write(ctx, replies)
		cancel(err) // wakes what the reader's Serve waits for
		c.nc.Close()
		for p := range replies {
			c.done(p)
		}
		written <- err
	}()
	unwatch := c.watch(parent, cancel)
	err := c.read(ctx, parent, replies)
	close(replies)
	if !errors.Is(err, errStopping) {
		cancel(err) // nobody reads what is still waited for
	}
	werr := <-written
	unwatch()
	cancel(nil)
	c.nc.Close()
	c.report(err, werr)
}

// watch makes a stop of the server end the reader at once and the writer after the grace.
func (c *Conn) watch(parent context.Context, cancel context.CancelCauseFunc) (unwatch func()) {
	var timer *time.Timer
	var once sync.WaitGroup
	once.Add(1)
	stop := context.AfterFunc(parent, func() {
		defer once.Done()
		close(c.stopped)
		c.nc.SetReadDeadline(time.Unix(1, 0))
		timer = time.AfterFunc(c.server.opts.Grace, func() {
			cancel(errStopping)
			c.nc.Close()
		})
	})
	return func() {
		if stop() {
			return
		}
		once.Wait()
		timer.Stop()
	}
}

// report logs why a connection ended, when that was not simply its client closing it.
func (c *Conn) report(rerr, werr error) {
	err := rerr
	if werr != nil && !errors.Is(werr, context.Canceled) {
		err = werr
	}
	reason := closeReason(err)
	c.server.metrics.closed(reason).Inc()
	switch reason {
	case "client", "stopping", "idle", "network":
		c.server.opts.Logger.Debug("connection closed", "remote", c.RemoteAddr, "listener", c.ListenerName, "reason", err)
	default:
		c.server.log.warn("connection closed", "remote", c.RemoteAddr, "listener", c.ListenerName, "reason", err)
	}
}

// closeReason sorts the ends of connections into a few names.
func closeReason(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return "client"
	case errors.Is(err, errStopping):
		return "stopping"
	case errors.Is(err, errIdle):
		return "idle"
	case errors.Is(err, errHandshake):
		return "handshake"
	case errors.Is(err, errNoMemory), errors.Is(err, errTooSlow), errors.Is(err, errSlowReader):
		return "overload"
	case errors.Is(err, errPanic):
		return "panic"
	case errors.Is(err, ErrFrameSize), errors.Is(err, ErrUnknownKey), errors.Is(err, ErrMalformed), errors.Is(err, ErrVersion):
		return "garbage"
	}
	return "network"
}

// read reads and serves requests until the client is gone or sent what is no request.
func (c *Conn) read(ctx, parent context.Context, replies chan<- pending) error {
	if err := c.handshake(ctx); err != nil {
		return err
	}
	br := bufio.NewReaderSize(c.nc, readBufferBytes)
	idle := min(c.server.opts.IdleTimeout, firstRequestTimeout)
	for {
		if err := c.awaitFrame(parent, br, idle); err != nil {
			return err
		}
		idle = c.server.opts.IdleTimeout
		f, err := c.readFrame(ctx, parent, br)
		if err != nil && parent.Err() != nil {
			return errStopping
		}
		if err != nil {
			return err
		}
		p, err := c.handle(ctx, &f)
		if err != nil {
			f.release()
			return err
		}
		if p.reply == nil {
			c.done(p)
			continue
		}
		c.inFlight.Add(1)
		select {
		case replies <- p:
		case <-ctx.Done():
			c.inFlight.Add(-1)
			c.done(p)
			return context.Cause(ctx)
		}
	}
}

// handshake does TLS's, when the connection has it.
func (c *Conn) handshake(ctx context.Context) error {
	tc, ok := c.nc.(*tls.Conn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", errHandshake, err)
	}
	return nil
}

// awaitFrame waits for the first byte of a frame. A connection that waits for an answer is not idle.
func (c *Conn) awaitFrame(parent context.Context, br *bufio.Reader, idle time.Duration) error {
	for {
		c.nc.SetReadDeadline(time.Now().Add(idle))
		if parent.Err() != nil { // after setting it, as the stop sets it too
			return errStopping
		}
		_, err := br.Peek(1)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case parent.Err() != nil:
			return errStopping
		case c.inFlight.Load() == 0:
			return fmt.Errorf("%w for %v", errIdle, idle)
		}
	}
}

// handle decodes and serves one frame.
func (c *Conn) handle(ctx context.Context, f *frame) (pending, error) {
	p := pending{began: time.Now()}
	v, _ := c.server.opts.Versions.Get(f.key)
	if f.version < v.Min || f.version > v.Max {
		resp := c.server.opts.Versions.refusal(f.key, f.version)
		if resp == nil {
			return p, fmt.Errorf("%w: %s v%d, served are %d to %d", ErrVersion, kmsg.NameForKey(f.key), f.version, v.Min, v.Max)
		}
		p.req = &Request{Key: f.key, Version: resp.GetVersion(), CorrelationID: f.correlationID, Conn: c}
		p.reply = func(context.Context) Response { return resp }
		f.release()
		return p, nil
	}
	req, err := c.server.decode(f)
	if err != nil {
		return p, err
	}
	req.Conn, p.req = c, req
	if p.reply, err = c.serveOne(ctx, req); err != nil {
		return p, err
	}
	if f.key == keyProduce { // its records are proposed, nothing of the frame is needed any more
		f.release()
	}
	p.held, f.held = f.held, hold{}
	return p, nil
}

// serveOne calls the handler and turns its panic into the end of this connection.
func (c *Conn) serveOne(ctx context.Context, req *Request) (reply Reply, err error) {
	defer c.recovered(req, &err)
	return c.server.opts.Handler.Serve(ctx, req), nil
}

// recovered is deferred around calls into the handler.
func (c *Conn) recovered(req *Request, err *error) {
	if v := recover(); v != nil {
		c.server.opts.Logger.Error("handler panicked", "api", kmsg.NameForKey(req.Key), "version", req.Version, "client", req.ClientID,
			"remote", c.RemoteAddr, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		*err = fmt.Errorf("%w in %s v%d: %v", errPanic, kmsg.NameForKey(req.Key), req.Version, v)
	}
}

// write awaits and writes replies in order until there are no more or the connection ends.
func (c *Conn) write(ctx context.Context, replies <-chan pending) error {
	w := newFrameWriter(c.nc, c)
	defer w.free()
	for p := range replies {
		if ctx.Err() != nil {
			c.done(p)
			return context.Cause(ctx)
		}
		err := c.answer(ctx, w, p)
		c.inFlight.Add(-1)
		c.done(p)
		if err != nil {
			return err
		}
	}
	return nil
}

// answer awaits one reply and writes it.
func (c *Conn) answer(ctx context.Context, w *frameWriter, p pending) error {
	resp, err := c.await(ctx, p)
	if err != nil || resp == nil {
		return err
	}
	if s, ok := resp.(Streamer); ok {
		defer s.Release()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	resp.SetVersion(p.req.Version)
	n, err := w.response(p.req.CorrelationID, resp)
	c.server.metrics.sent.Add(int(n))
	if err != nil && c.evicted.Load() {
		err = errSlowReader
	}
	if err != nil {
		return fmt.Errorf("write response of %s v%d: %w", kmsg.NameForKey(p.req.Key), p.req.Version, err)
	}
	return nil
}

// await calls the reply, guarded like Serve.
func (c *Conn) await(ctx context.Context, p pending) (resp Response, err error) {
	defer c.recovered(p.req, &err)
	return p.reply(ctx), nil
}

// done gives back what a request holds, and counts it.
func (c *Conn) done(p pending) {
	p.held.release()
	c.server.metrics.request(p.req.Key, time.Since(p.began))
}
