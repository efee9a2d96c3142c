package firmwaresim

import (
	"errors"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

var errDown = errors.New("the simulated link is down")

// link is a device's way to the broker. It can be cut: the connection breaks without a farewell, and no new one opens until the link is back.
type link struct {
	mu struct {
		sync.Mutex
		conn net.Conn
		down time.Time // until then
	}
}

// open is a paho.OpenConnectionFunc for brokers spoken to over plain TCP.
func (l *link) open(uri *url.URL, o paho.ClientOptions) (net.Conn, error) {
	l.mu.Lock()
	down := time.Now().Before(l.mu.down)
	l.mu.Unlock()
	if down {
		return nil, errDown
	}
	c, err := net.DialTimeout("tcp", uri.Host, o.ConnectTimeout)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.conn = c
	return c, nil
}

// cut breaks the link for a while.
func (l *link) cut(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.down = time.Now().Add(d)
	if l.mu.conn != nil {
		// Not Close: paho takes a connection closed on this side for its own doing and does not notice the loss.
		l.mu.conn.SetDeadline(time.Unix(1, 0))
	}
}

// plain tells whether the broker is spoken to over plain TCP, the only way that a link can be put into.
func plain(broker string) bool {
	u, err := url.Parse(broker)
	return err == nil && (u.Scheme == "tcp" || u.Scheme == "mqtt")
}
