package chaos

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every connection with what it says.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until either end closes
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

// proxied starts a proxy before an echo and connects to it.
func proxied(t *testing.T) (*proxy, net.Conn, context.CancelFunc) {
	p, err := newProxy("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return p, c, stop
}

func say(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
}

func hear(c net.Conn, n int, within time.Duration) ([]byte, error) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	got := make([]byte, n)
	m, err := io.ReadFull(c, got)
	return got[:m], err
}

// patience bounds waits for what must come: only a failure waits so long.
const patience = time.Minute

func TestProxyForwardsInOrder(t *testing.T) {
	_, c, _ := proxied(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { _, _ = c.Write(want) }() // the answer tells
	if got, err := hear(c, len(want), patience); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestProxyDelaysEachDirection(t *testing.T) {
	p, c, _ := proxied(t)
	p.delay(60*time.Millisecond, 40*time.Millisecond)
	begun := time.Now()
	say(t, c, []byte("ping"))
	if _, err := hear(c, 4, patience); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 100*time.Millisecond {
		t.Errorf("there and back took %v, want 100 ms or more", took)
	}
}

func TestProxyHoldsWithoutClosing(t *testing.T) {
	p, c, _ := proxied(t)
	say(t, c, []byte("a"))
	if _, err := hear(c, 1, patience); err != nil {
		t.Fatal(err)
	}
	p.hold()
	say(t, c, []byte("b"))
	if got, err := hear(c, 1, 200*time.Millisecond); len(got) != 0 || !err.(net.Error).Timeout() {
		t.Fatalf("held, and %q came, %v", got, err)
	}
	p.release()
	if got, err := hear(c, 1, patience); err != nil || string(got) != "b" {
		t.Fatalf("released: %q, %v", got, err)
	}
}

func TestProxyClosesBothEnds(t *testing.T) {
	_, c, stop := proxied(t)
	say(t, c, []byte("a"))
	if _, err := hear(c, 1, patience); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := hear(c, 1, patience); err == nil {
		t.Error("the proxy is gone, and the connection goes on")
	}
}

func TestProxyEndsWhileItHolds(t *testing.T) {
	p, c, stop := proxied(t)
	p.hold()
	say(t, c, []byte("a"))
	stop() // returns only when every goroutine has
	if _, err := hear(c, 1, patience); err == nil {
		t.Error("the connection goes on")
	}
}

func TestSlowAndHalfOpen(t *testing.T) {
	p, _, _ := proxied(t)
	p.shape(Fault{Kind: Slow, Value: 42})
	if p.late(false) != 42*time.Millisecond || p.late(true) != 14*time.Millisecond {
		t.Errorf("delays %v and %v", p.late(false), p.late(true))
	}
	holdAll([]*proxy{p})
	if p.gate() == nil {
		t.Error("it forwards")
	}
}
