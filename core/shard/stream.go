package shard

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// stream is one replica's share of the node's listener: a raft.StreamLayer. All its connections end
// with it, also those that the library would wait for.
type stream struct {
	node  *Node
	shard meta.ShardID
	in    chan net.Conn
	done  chan struct{}

	mu     sync.Mutex
	closed bool
	conns  map[*streamConn]struct{}
}

func newStream(n *Node, shard meta.ShardID) *stream {
	return &stream{
		node: n, shard: shard, in: make(chan net.Conn), done: make(chan struct{}),
		conns: map[*streamConn]struct{}{},
	}
}

type streamConn struct {
	net.Conn
	s  *stream
	to raft.ServerAddress // whom it was dialled to; empty when the other side has
	// waiting is since when what was written has not been answered, in nanoseconds of Unix time; 0 when nothing waits.
	waiting atomic.Int64
	once    sync.Once
	err     error
}

// Close implements net.Conn.
func (c *streamConn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.s.mu.Lock()
		delete(c.s.conns, c)
		c.s.mu.Unlock()
	})
	return c.err
}

// own registers a connection, or closes it when the stream has ended.
func (s *stream) own(c net.Conn, to raft.ServerAddress) (net.Conn, error) {
	sc := &streamConn{Conn: c, s: s, to: to}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[sc] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	return sc, nil
}

// offer hands over a connection that another server dialled.
func (s *stream) offer(c net.Conn) bool {
	own, err := s.own(c, "")
	if err != nil {
		return false
	}
	select {
	case s.in <- own:
		return true
	case <-s.done:
		own.Close()
		return false
	}
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.in:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener: in Raft a server's address is its id.
func (s *stream) Addr() net.Addr { return raftAddr(s.node.o.Self.String()) }

type raftAddr string

func (a raftAddr) Network() string { return kindRaft }
func (a raftAddr) String() string  { return string(a) }

// Dial implements raft.StreamLayer.
func (s *stream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, prefaceTimeout))
	defer cancel()
	stop := context.AfterFunc(s.node.ctx, cancel)
	defer stop()
	c, err := s.node.dialRaft(ctx, s.shard, to)
	if err != nil {
		return nil, err
	}
	return s.own(c, to)
}

// Close implements net.Listener.
func (s *stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	conns := s.conns
	s.conns = map[*streamConn]struct{}{}
	s.mu.Unlock()
	close(s.done)
	for c := range conns {
		c.Close()
	}
	return nil
}

// mute is a stream that accepts nothing: the quick transport only dials.
type mute struct{ *stream }

func (m mute) Accept() (net.Conn, error) {
	<-m.done
	return nil, net.ErrClosed
}

// Close leaves the stream to the transport that owns it.
func (m mute) Close() error { return nil }
