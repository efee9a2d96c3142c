// Package mqtt is the gateway's MQTT server: 3.1, 3.1.1 and 5 over TCP, TLS and WebSocket.
//
// PUBACK, PUBREC and PUBCOMP go out after the sync that covers what they acknowledge, without the connection's reader waiting for
// it: readers put messages into the buffer, the buffer tells the connection, all of one commit at a time. Inbound QoS 2 ids and
// the last QoS 1 messages of a session are in the buffer's journal, so that a resend after a power cut is recognised.
//
// Of mochi-mqtt it uses the codec for the packets off the hot path, guarded. Sessions, connections and the index of subscriptions
// are its own; DESIGN.md of package edge says why.
package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"sluice/edge/buffer"
	"sluice/edge/ingest"
)

// Options of Open.
type Options struct {
	Door      *ingest.Door
	Journal   *ingest.Journal
	Users     *Users
	StateFile string
	Logger    *slog.Logger
}

// Server is open between Open and the end of Run.
type Server struct {
	config    Config
	door      *ingest.Door
	users     *Users
	logger    *slog.Logger
	store     *store
	metrics   *meters
	subs      index
	retained  retained
	listeners []net.Listener
	web       *webServer
	addrs     Addrs
	ctx       context.Context
	cancel    context.CancelFunc
	conns     sync.WaitGroup // readers
	reapers   sync.WaitGroup
	open      atomic.Int64
	waiting   atomic.Int64 // bytes for devices that have not read them
	stopping  atomic.Bool  // no reader closes its connection any more

	// delivery is held while a commit's messages are handed out, and by whoever must see none of them half handed out.
	delivery sync.Mutex
	applied  atomic.Int64 // all records below are handed out
	stored   atomic.Int64 // the store has all of that below

	mu struct {
		sync.Mutex
		sessions map[string]*session
		waiting  map[*session]struct{} // offline, for their expiry or will
		conns    map[*conn]struct{}
		stopping bool
	}
}

// Addrs are the addresses of the listeners; nil is off.
type Addrs struct{ TCP, TLS, WebSocket net.Addr }

// Open reads the stored sessions, registers with the journal and listens; it serves nothing. Call Recover when the journal has
// been replayed, then Run.
func Open(c Config, o Options) (_ *Server, err error) {
	s := &Server{config: c, door: o.Door, users: o.Users, logger: o.Logger, metrics: newMeters()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mu.sessions, s.mu.waiting, s.mu.conns = map[string]*session{}, map[*session]struct{}{}, map[*conn]struct{}{}
	s.retained.messages = map[string]*message{}
	s.metrics.observe(s)
	if s.store, err = openStore(o.StateFile, s); err != nil {
		return nil, err
	}
	if err = s.store.load(); err != nil {
		s.Close()
		return nil, err
	}
	o.Journal.Register(journalKind, ledger{s})
	o.Door.Serve(s)
	o.Door.Buffer().OnDeliver(s.handOut)
	if err = s.listen(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Recover hands out again what the store does not have yet.
func (s *Server) Recover() error {
	from := s.applied.Load()
	err := s.door.Buffer().Replay(from, func(_ int64, key string, value []byte) error {
		if key != ingest.OwnLocal {
			return nil
		}
		return s.handOutOwn(value)
	})
	if err != nil {
		return fmt.Errorf("recover subscribers' messages: %w", err)
	}
	s.applied.Store(s.door.Buffer().Log().End())
	return nil
}

func (s *Server) handOutOwn(own []byte) error {
	for len(own) > 0 {
		m := &message{}
		rest, err := cbor.UnmarshalFirst(own, m)
		if err != nil {
			return fmt.Errorf("decode message for subscribers: %w", err)
		}
		s.handOutOne(m)
		own = rest
	}
	return nil
}

func (s *Server) listen() error {
	listen := func(addr string) (net.Listener, error) {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen for mqtt: %w", err)
		}
		s.listeners = append(s.listeners, l)
		return l, nil
	}
	if s.config.Listen != "" {
		l, err := listen(s.config.Listen)
		if err != nil {
			return err
		}
		s.addrs.TCP = l.Addr()
	}
	if s.config.TLS.Listen != "" {
		config, err := s.config.TLS.load()
		if err != nil {
			return err
		}
		l, err := listen(s.config.TLS.Listen)
		if err != nil {
			return err
		}
		s.addrs.TLS = l.Addr()
		s.listeners[len(s.listeners)-1] = tls.NewListener(l, config)
	}
	if s.config.WebSocket.Listen != "" {
		l, err := net.Listen("tcp", s.config.WebSocket.Listen)
		if err != nil {
			return fmt.Errorf("listen for mqtt over websocket: %w", err)
		}
		s.addrs.WebSocket = l.Addr()
		s.web = newWebServer(s, l)
	}
	return nil
}

func (t *TLSConfig) load() (*tls.Config, error) {
	if t.Config != nil {
		return t.Config, nil
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("load mqtt.tls certificate: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if t.ClientCA != "" {
		pem, err := os.ReadFile(t.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("load mqtt.tls.clientCA: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("load mqtt.tls.clientCA: no certificate in %s", t.ClientCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// Addrs are the addresses it listens on.
func (s *Server) Addrs() Addrs { return s.addrs }

// Close gives back what Open took; for when Run is not reached.
func (s *Server) Close() error {
	s.cancel()
	for _, l := range s.listeners {
		l.Close()
	}
	if s.web != nil {
		s.web.listener.Close()
	}
	if s.store != nil {
		return s.store.close()
	}
	return nil
}

// Run serves until ctx ends. Then it reads no more and calls flush, which returns when all that was read is on disk and its owners
// are told; then it writes what waits, closes the connections and stores the sessions.
func (s *Server) Run(ctx context.Context, flush func() error) error {
	var all sync.WaitGroup
	for _, l := range s.listeners {
		all.Go(func() { s.accept(l) })
	}
	if s.web != nil {
		all.Go(s.web.run)
	}
	housekeeping, stopHousekeeping := context.WithCancel(context.WithoutCancel(ctx))
	all.Go(func() { s.keepTime(housekeeping) })
	storing := make(chan error, 1)
	go func() { storing <- s.store.run(housekeeping) }()

	<-ctx.Done()
	s.stopReading()
	err := flush()
	s.closeConns()
	s.reapers.Wait()
	stopHousekeeping()
	err = errors.Join(err, <-storing)
	all.Wait()
	return errors.Join(err, s.Close())
}

func (s *Server) stopReading() {
	s.mu.Lock()
	s.mu.stopping = true
	s.stopping.Store(true)
	conns := s.connsLocked()
	s.mu.Unlock()
	for _, l := range s.listeners {
		l.Close()
	}
	if s.web != nil {
		s.web.listener.Close()
	}
	past := time.Unix(1, 0)
	for _, c := range conns {
		c.cancel()
		c.nc.SetReadDeadline(past)
	}
	s.conns.Wait()
}

func (s *Server) connsLocked() []*conn {
	conns := make([]*conn, 0, len(s.mu.conns))
	for c := range s.mu.conns {
		conns = append(conns, c)
	}
	return conns
}

// closingTime is how long devices have to take their last acknowledgements at a stop.
const closingTime = 2 * time.Second

func (s *Server) closeConns() {
	s.mu.Lock()
	conns := s.connsLocked()
	s.mu.Unlock()
	late := time.NewTimer(closingTime)
	defer late.Stop()
	for _, c := range conns {
		c.disconnect(packets.ErrServerShuttingDown)
	}
	for _, c := range conns {
		select {
		case <-c.finished:
		case <-late.C:
			late.Reset(0)
			c.close()
		}
	}
}

// accept takes connections until the listener is closed.
func (s *Server) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors left, as a rule
			s.logger.Warn("cannot accept a connection", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
			continue
		}
		if t, ok := nc.(*net.TCPConn); ok {
			tuneTCP(t)
		}
		s.start(nc)
	}
}

// acceptPause is the wait after a failed accept, so that it does not spin.
const acceptPause = 50 * time.Millisecond

// start serves a connection in goroutines of its own. It returns the connection, or nil when there are too many.
func (s *Server) start(nc net.Conn) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopping || len(s.mu.conns) >= s.config.MaxConnections {
		s.metrics.denied.Inc()
		nc.Close()
		return nil
	}
	c := newConn(s, nc)
	s.mu.conns[c] = struct{}{}
	s.open.Add(1)
	s.conns.Add(1)
	go func() {
		defer s.conns.Done()
		c.serve()
		s.reapers.Go(func() { s.reap(c) })
	}()
	return c
}

// reap takes the connection off the list when its last bytes are written. At a stop closeConns sees to it that this ends.
func (s *Server) reap(c *conn) {
	late := time.NewTimer(s.config.WriteTimeout)
	defer late.Stop()
	select {
	case <-c.finished:
	case <-late.C:
		c.close()
	}
	s.mu.Lock()
	delete(s.mu.conns, c)
	s.mu.Unlock()
	s.open.Add(-1)
}

func (s *Server) allSessions() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*session, 0, len(s.mu.sessions))
	for _, sess := range s.mu.sessions {
		all = append(all, sess)
	}
	return all
}

// inboundOf is for the replay: the client's state, made when wanted.
func (s *Server) inboundOf(client string, make bool) *inbound {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess := s.mu.sessions[client]
	if sess == nil && make {
		sess = newSession(s, client)
		sess.expiry = s.clampExpiry(expiryNever)
		sess.lasts.Store(true)
		sess.until = time.Now().Add(s.recoveredFor())
		s.mu.sessions[client] = sess
		s.mu.waiting[sess] = struct{}{}
	}
	if sess == nil {
		return nil
	}
	return &sess.in
}

// recoveredFor is how long a session that only the journal knows waits for its client.
func (s *Server) recoveredFor() time.Duration {
	if s.config.SessionExpiryMax > 0 {
		return s.config.SessionExpiryMax
	}
	return 24 * time.Hour
}

// putNote writes a note without anybody waiting for it.
func (s *Server) putNote(note []byte) {
	if err := s.door.Buffer().Put(&buffer.Entry{Note: note}); err != nil && !errors.Is(err, buffer.ErrStopped) {
		s.logger.Warn("cannot write a note to the journal", "error", err)
	}
}

// WritePrometheus writes the metrics.
func (s *Server) WritePrometheus(w io.Writer) { s.metrics.set.WritePrometheus(w) }

// Status is the state for /status.
func (s *Server) Status() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string]any{
		"connections": len(s.mu.conns), "sessions": len(s.mu.sessions), "subscriptions": s.subs.count.Load(), "retained": s.retained.count(),
		"listen": s.config.Listen, "webSocket": s.config.WebSocket.Listen, "tls": s.config.TLS.Listen,
	}
}

// sendBufferBytes is what the kernel holds for a device that does not read. It would take megabytes by itself, of memory that nobody counts.
const sendBufferBytes = 128 << 10

// tuneTCP has acknowledgements go out at once, and little wait in the kernel.
func tuneTCP(t *net.TCPConn) {
	t.SetNoDelay(true)
	t.SetWriteBuffer(sendBufferBytes)
}
