package kafka

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnsentBytes checks that accepted connections are bounded as said, without a bound of what is on its way.
func TestUnsentBytes(t *testing.T) {
	for _, want := range []int{0, 1 << 20} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan *net.TCPConn, 1)
		s := startOn(t, Options{Handler: HandlerFunc(echo), UnsentBytes: want}, &spyListener{Listener: l, accepted: accepted})
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(frameOf(metadataRequest("a"), 1)); err != nil {
			t.Fatal(err)
		}
		receiveMetadata(t, c) // it is set up by now
		if want == 0 {
			want = unsentBytesDefault
		}
		if got := unsentBytes(t, <-accepted); got != want {
			t.Errorf("%d bytes, want %d", got, want)
		}
		c.Close()
		s()
	}
}

func unsentBytes(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) { n, optErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) }); err != nil || optErr != nil {
		t.Fatal(err, optErr)
	}
	return n
}

// spyListener shows what it accepts.
type spyListener struct {
	net.Listener
	accepted chan *net.TCPConn
}

func (l *spyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tc, ok := c.(*net.TCPConn); ok && err == nil {
		l.accepted <- tc
	}
	return c, err
}
