package workload

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// reconnectBackoff is how long a client leaves a node alone that has let a request time out. Without it franz-go connects again at once for each
// request that waits for that node, each with a time limit of its own, one after the other, before it asks the new leader. (The Java client has
// reconnect.backoff.ms for that.)
const reconnectBackoff = 500 * time.Millisecond

// dialer opens one client's connections.
type dialer struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	mu   sync.Mutex
	till map[string]time.Time // when a silent node may be tried again
}

func newDialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) *dialer {
	return &dialer{dial: dial, till: map[string]time.Time{}}
}

func (d *dialer) open(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	left := time.Until(d.till[address])
	d.mu.Unlock()
	if left > 0 {
		// What a node says that is not there: clients ask another one then.
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	conn, err := d.dial(ctx, network, address)
	if err != nil {
		d.silent(address)
		return nil, err
	}
	return &watchedConn{Conn: conn, d: d, address: address}, nil
}

func (d *dialer) silent(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.till[address] = time.Now().Add(reconnectBackoff)
}

// watchedConn notices when an answer does not come in time.
type watchedConn struct {
	net.Conn
	d       *dialer
	address string
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.d.silent(c.address)
	}
	return n, err
}
