package chaos

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// proxyDial bounds the way from the proxy to its target.
	proxyDial = 5 * time.Second
	// proxyChunk is read at once; proxyAhead chunks may wait for their time, then the sender is no longer read: 16 MiB a direction at most.
	proxyChunk = 64 << 10
	proxyAhead = 256
)

// proxy stands between two ends of TCP connections and delivers late, or not at all.
type proxy struct {
	listener net.Listener
	target   string
	mu       struct {
		sync.Mutex
		forth, back time.Duration // delay of each direction
		held        chan struct{} // while it is open nothing is forwarded; nil: forwards
	}
}

// newProxy listens on an address for a target; nothing is accepted before run.
func newProxy(listen, target string) (*proxy, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for proxy: %w", err)
	}
	return &proxy{listener: l, target: target}, nil
}

func (p *proxy) port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// delay sets how late each direction delivers: from who connected, and to them.
func (p *proxy) delay(forth, back time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.forth, p.mu.back = forth, back
}

// hold stops forwarding without closing anything; release goes on.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.held == nil {
		p.mu.held = make(chan struct{})
	}
}

func (p *proxy) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.held != nil {
		close(p.mu.held)
		p.mu.held = nil
	}
}

func (p *proxy) gate() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.held
}

func (p *proxy) late(back bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if back {
		return p.mu.back
	}
	return p.mu.forth
}

// run forwards until ctx ends; then every connection is closed.
func (p *proxy) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.listener.Close() })
	defer stop()
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		all.Go(func() { p.serve(ctx, conn) })
	}
}

// serve forwards one connection until either end closes it or ctx ends.
func (p *proxy) serve(ctx context.Context, from net.Conn) {
	defer from.Close()
	d := net.Dialer{Timeout: proxyDial}
	to, err := d.DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer to.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _, _ = from.Close(), to.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { defer cancel(); p.forward(ctx, to, from, false) })
	both.Go(func() { defer cancel(); p.forward(ctx, from, to, true) })
	both.Wait()
}

type chunk struct {
	data []byte
	due  time.Time
}

// forward reads on while what was read waits for its time, so that a delay does not become a bound on the rate.
func (p *proxy) forward(ctx context.Context, to, from net.Conn, back bool) {
	chunks := make(chan chunk, proxyAhead)
	go func() {
		defer close(chunks)
		for {
			data := make([]byte, proxyChunk)
			n, err := from.Read(data)
			if n > 0 {
				select {
				case chunks <- chunk{data[:n], time.Now().Add(p.late(back))}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for c := range chunks {
		if !p.deliver(ctx, to, c) {
			return
		}
	}
}

// deliver writes a chunk when it is due and nothing is held.
func (p *proxy) deliver(ctx context.Context, to net.Conn, c chunk) bool {
	if d := time.Until(c.due); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
	}
	for held := p.gate(); held != nil; held = p.gate() {
		select {
		case <-held:
		case <-ctx.Done():
			return false
		}
	}
	_, err := to.Write(c.data)
	return err == nil
}
