package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipeListener accepts the other ends of pipes; it lets synctest drive connections.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (l *pipeListener) dial() net.Conn {
	a, b := net.Pipe()
	l.conns <- b
	return a
}

// testServer is a running server; it stops with the test.
type testServer struct {
	*Server
	l    *pipeListener
	logs *bytes.Buffer
	stop func() error
}

// lockedWriter is a log that is read while it is written.
type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func testTable() *Table {
	return NewTable([]Versions{{0, 3, 13}, {1, 4, 18}, {3, 0, 13}, {18, 0, 4}, {10, 0, 6}, {11, 2, 9}, {12, 1, 4}})
}

func startServer(t *testing.T, o Options) *testServer {
	t.Helper()
	s := &testServer{l: newPipeListener(), logs: &bytes.Buffer{}}
	o.Logger = slog.New(slog.NewTextHandler(&lockedWriter{w: s.logs}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if o.Versions == nil {
		o.Versions = testTable()
	}
	s.Server = NewServer(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, Listener{Name: "PLAINTEXT", Listener: s.l}) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return s
}

// startOn runs a server on one listener until stop is called.
func startOn(t *testing.T, o Options, l net.Listener) (stop func()) {
	t.Helper()
	if o.Versions == nil {
		o.Versions = testTable()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- NewServer(o).Run(ctx, Listener{Name: "CLIENTS", Listener: l}) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	}
}

// echo answers Metadata requests with the request's first topic as cluster id.
func echo(_ context.Context, r *Request) Reply {
	req, ok := r.Body.(*kmsg.MetadataRequest)
	if !ok {
		return func(context.Context) Response { return kmsg.ResponseForKey(r.Key) }
	}
	resp := kmsg.NewPtrMetadataResponse()
	resp.ClusterID = req.Topics[0].Topic
	return func(context.Context) Response { return resp }
}

func metadataRequest(topic string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 12
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, mt)
	return req
}

func frameOf(req kmsg.Request, correlationID int32) []byte {
	return kmsg.NewRequestFormatter().AppendRequest(nil, req, correlationID)
}

// send writes without waiting for the server to read: a pipe has no buffer.
func send(c net.Conn, b []byte) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		done <- err
	}()
	return done
}

// receive reads one response frame into resp and returns its correlation id.
func receive(t *testing.T, c net.Conn, resp kmsg.Response) int32 {
	t.Helper()
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		t.Fatalf("read response length: %v", err)
	}
	b := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("read response: %v", err)
	}
	body := b[4:]
	if resp.IsFlexible() && resp.Key() != keyApiVersions {
		body = body[1:]
	}
	if err := resp.ReadFrom(body); err != nil {
		t.Fatalf("decode response: %v", err)
	}
	return int32(binary.BigEndian.Uint32(b))
}

func receiveMetadata(t *testing.T, c net.Conn) (int32, string) {
	t.Helper()
	resp := kmsg.NewPtrMetadataResponse()
	resp.Version = 12
	id := receive(t, c, resp)
	return id, *resp.ClusterID
}

// expectClosed checks that the server closes the connection without answering.
func expectClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); n != 0 || (err != nil && !errors.Is(err, io.ErrClosedPipe)) {
		t.Errorf("want a closed connection, read %d bytes, %v", n, err)
	}
}

func TestRepliesComeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			answer := echo(ctx, r)
			if r.CorrelationID != 1 {
				return answer
			}
			return func(ctx context.Context) Response { <-release; return answer(ctx) }
		})})
		c, other := s.l.dial(), s.l.dial()
		defer c.Close()
		defer other.Close()
		var all []byte
		for i := range int32(5) {
			all = append(all, frameOf(metadataRequest(fmt.Sprint("t", i)), i+1)...)
		}
		sent := send(c, all)
		// The first request waits; another connection is served meanwhile.
		send(other, frameOf(metadataRequest("other"), 9))
		if id, name := receiveMetadata(t, other); id != 9 || name != "other" {
			t.Errorf("other connection got %d %s", id, name)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		close(release)
		for i := range int32(5) {
			if id, name := receiveMetadata(t, c); id != i+1 || name != fmt.Sprint("t", i) {
				t.Errorf("response %d: got %d %s", i, id, name)
			}
		}
	})
}

func TestRepliesInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var served atomic.Int32
		release := make(chan struct{})
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			served.Add(1)
			answer := echo(ctx, r)
			return func(ctx context.Context) Response { <-release; return answer(ctx) }
		})})
		c := s.l.dial()
		defer c.Close()
		const n = 3 * repliesInFlightMax
		sent := send(c, bytes.Repeat(frameOf(metadataRequest("t"), 1), n))
		synctest.Wait()
		if got := served.Load(); got > repliesInFlightMax+2 { // one is with the writer, one with the reader
			t.Errorf("%d requests were served while none was answered", got)
		}
		close(release)
		for range n {
			receiveMetadata(t, c)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

func TestUnknownApiVersionsVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo)})
		c := s.l.dial()
		defer c.Close()
		// A version from the future has a header nobody knows: only its first eight bytes count.
		frame := binary.BigEndian.AppendUint32(nil, 20)
		frame = append(frame, 0, 18, 0, 99, 0, 0, 0, 7)
		frame = append(frame, bytes.Repeat([]byte{0xee}, 12)...)
		send(c, frame)
		resp := kmsg.NewPtrApiVersionsResponse()
		if id := receive(t, c, resp); id != 7 {
			t.Errorf("correlation id %d", id)
		}
		if resp.ErrorCode != errUnsupportedVersion || len(resp.ApiKeys) != len(testTable().All()) {
			t.Errorf("answered %+v", resp)
		}
		// The connection goes on.
		send(c, frameOf(metadataRequest("after"), 8))
		if id, name := receiveMetadata(t, c); id != 8 || name != "after" {
			t.Errorf("then got %d %s", id, name)
		}
	})
}

func TestUnsupportedVersionOfKnownKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo)})
		// Heartbeat v0 is not in the table but has a shape with one error code.
		c := s.l.dial()
		defer c.Close()
		req := kmsg.NewPtrHeartbeatRequest()
		send(c, frameOf(req, 3))
		resp := kmsg.NewPtrHeartbeatResponse()
		if id := receive(t, c, resp); id != 3 || resp.ErrorCode != errUnsupportedVersion {
			t.Errorf("answered %d %+v", id, resp)
		}
		// Produce v2 has no place for an error, and Metadata v99 no known shape.
		produce := kmsg.NewPtrProduceRequest()
		produce.Version = 2
		future := frameOf(metadataRequest("t"), 4)
		future[7] = 99
		for _, frame := range [][]byte{frameOf(produce, 4), future} {
			c := s.l.dial()
			send(c, frame)
			expectClosed(t, c)
			c.Close()
		}
	})
}

func TestGarbageClosesOnlyItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo)})
		good := s.l.dial()
		defer good.Close()
		truncated := frameOf(metadataRequest("t"), 1)
		binary.BigEndian.PutUint32(truncated, uint32(len(truncated)-lengthBytes-3))
		for name, b := range map[string][]byte{
			"http":      []byte("GET / HTTP/1.1\r\nHost: broker\r\n\r\n"),
			"tls":       {0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x00},
			"negative":  {0xff, 0xff, 0xff, 0xff},
			"tiny":      {0, 0, 0, 1},
			"huge":      {0x7f, 0xff, 0xff, 0xff},
			"key":       {0, 0, 0, 8, 0x7f, 0x00, 0, 0, 0, 0, 0, 0},
			"truncated": truncated[:len(truncated)-3],
		} {
			c := s.l.dial()
			send(c, b)
			expectClosed(t, c)
			c.Close()
			synctest.Wait()
			if !strings.Contains(s.logs.String(), "connection closed") {
				t.Errorf("%s: nothing logged", name)
			}
			s.logs.Reset()
		}
		send(good, frameOf(metadataRequest("still"), 1))
		if _, name := receiveMetadata(t, good); name != "still" {
			t.Errorf("good connection got %s", name)
		}
	})
}

func TestPanicClosesOnlyItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			switch name := *r.Body.(*kmsg.MetadataRequest).Topics[0].Topic; name {
			case "serve":
				panic("BUG: in serve")
			case "reply":
				return func(context.Context) Response { panic("BUG: in reply") }
			}
			return echo(ctx, r)
		})})
		good := s.l.dial()
		defer good.Close()
		for _, where := range []string{"serve", "reply"} {
			c := s.l.dial()
			send(c, frameOf(metadataRequest(where), 1))
			expectClosed(t, c)
			c.Close()
			synctest.Wait()
			if !strings.Contains(s.logs.String(), "BUG: in "+where) {
				t.Errorf("panic in %s was not logged: %s", where, s.logs)
			}
		}
		send(good, frameOf(metadataRequest("still"), 1))
		if _, name := receiveMetadata(t, good); name != "still" {
			t.Errorf("good connection got %s", name)
		}
	})
}

func TestAcksZeroIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			if r.Key == keyProduce {
				return nil
			}
			return echo(ctx, r)
		})})
		c := s.l.dial()
		defer c.Close()
		req := kmsg.NewPtrProduceRequest()
		req.Version = 9
		send(c, append(bytes.Repeat(frameOf(req, 1), 3), frameOf(metadataRequest("after"), 2)...))
		if id, name := receiveMetadata(t, c); id != 2 || name != "after" {
			t.Errorf("got %d %s", id, name)
		}
	})
}

// TestConnClose checks that a handler can end a connection that it has no answer for.
func TestConnClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(func(_ context.Context, r *Request) Reply {
			r.Conn.Close("no acks to refuse with")
			return nil
		})})
		c := s.l.dial()
		defer c.Close()
		req := kmsg.NewPtrProduceRequest()
		req.Version = 9
		send(c, frameOf(req, 1))
		expectClosed(t, c)
		synctest.Wait()
		if !strings.Contains(s.logs.String(), "no acks to refuse with") {
			t.Errorf("not logged: %s", s.logs)
		}
	})
}

func TestFrameLimitBeforeAuthentication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{
			Handler:       HandlerFunc(echo),
			Authenticated: func(c *Conn) bool { return c.Value("in") != nil },
		})
		c := s.l.dial()
		defer c.Close()
		send(c, binary.BigEndian.AppendUint32(nil, frameBytesMaxUnauthenticated+1))
		expectClosed(t, c)
	})
}

func TestIdleConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = time.Minute
		s := startServer(t, Options{IdleTimeout: idle, Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			answer := echo(ctx, r)
			return func(ctx context.Context) Response {
				select {
				case <-time.After(5 * idle): // as a group's join may
				case <-ctx.Done():
				}
				return answer(ctx)
			}
		})})
		c := s.l.dial()
		defer c.Close()
		send(c, frameOf(metadataRequest("long"), 1))
		began := time.Now()
		if _, name := receiveMetadata(t, c); name != "long" || time.Since(began) != 5*idle {
			t.Errorf("got %s after %v", name, time.Since(began))
		}
		answered := time.Now()
		expectClosed(t, c)
		if took := time.Since(answered); took > idle {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestStalledFrameIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo)})
		c := s.l.dial()
		defer c.Close()
		began := time.Now()
		send(c, frameOf(metadataRequest("t"), 1)[:14])
		expectClosed(t, c)
		if took := time.Since(began); took > frameStallTimeout+time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestTooManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo), ConnectionsMax: 2})
		a, b := s.l.dial(), s.l.dial()
		third := s.l.dial()
		expectClosed(t, third)
		third.Close()
		a.Close()
		synctest.Wait()
		c := s.l.dial()
		send(c, frameOf(metadataRequest("t"), 1))
		receiveMetadata(t, c)
		b.Close()
		c.Close()
	})
}

func TestStopWritesWhatIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			answer := echo(ctx, r)
			return func(ctx context.Context) Response {
				<-r.Conn.Stopping()
				<-release
				return answer(ctx)
			}
		})})
		c := s.l.dial()
		defer c.Close()
		send(c, frameOf(metadataRequest("last"), 1))
		synctest.Wait()
		stopped := make(chan error, 1)
		go func() { stopped <- s.stop() }()
		synctest.Wait()
		close(release)
		if _, name := receiveMetadata(t, c); name != "last" {
			t.Errorf("got %s", name)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Grace: time.Second, Handler: HandlerFunc(func(_ context.Context, r *Request) Reply {
			return func(ctx context.Context) Response { <-ctx.Done(); return nil }
		})})
		c := s.l.dial()
		defer c.Close()
		send(c, frameOf(metadataRequest("never"), 1))
		synctest.Wait()
		began := time.Now()
		if err := s.stop(); err != nil || time.Since(began) != time.Second {
			t.Errorf("stopped after %v: %v", time.Since(began), err)
		}
	})
}

func TestClientLeavesWhileAReplyIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		s := startServer(t, Options{Handler: HandlerFunc(func(_ context.Context, r *Request) Reply {
			return func(ctx context.Context) Response { <-ctx.Done(); close(ended); return nil }
		})})
		c := s.l.dial()
		if err := <-send(c, frameOf(metadataRequest("t"), 1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the reply is awaited now
		c.Close()
		<-ended
		synctest.Wait()
		if n := s.Connections(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestWarningsAreLimited(t *testing.T) {
	var out bytes.Buffer
	l := &limitedLog{log: slog.New(slog.NewTextHandler(&out, nil))}
	now := time.Now()
	logged := 0
	for range 10 * warningsPerWindow {
		if _, ok := l.allow(now); ok {
			logged++
		}
	}
	if suppressed, ok := l.allow(now.Add(2 * warningWindow)); !ok || suppressed != 9*warningsPerWindow || logged != warningsPerWindow {
		t.Errorf("logged %d, then suppressed %d, %v", logged, suppressed, ok)
	}
}
