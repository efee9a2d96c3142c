package shard

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"sluice/core/meta"
)

// failingListener fails some times before it works.
type failingListener struct {
	net.Listener
	failures int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestAcceptSurvivesTheLimitOfFiles checks that a node which has no file left for a while goes on afterwards.
func TestAcceptSurvivesTheLimitOfFiles(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	n := &Node{o: m.node.o, log: m.node.log}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.mu.conns = map[net.Conn]struct{}{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.listener = &failingListener{Listener: l, failures: 2}
	done := make(chan error, 1)
	go func() { done <- n.accept() }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); len(b) > 0 || isTimeout(err) {
		t.Errorf("garbage was answered with %q, %v", b, err)
	}
	n.shut()
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.wg.Wait()
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// TestSilentStrangersKeepNobodyOut checks that a node gets through to another one whose listener is full of connections that say nothing.
func TestSilentStrangersKeepNobodyOut(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	m.node.Handle("echo", func(context.Context, meta.NodeID, net.Conn) {})
	for range maxPrefaceConns + 10 {
		conn, err := net.Dial("tcp", m.node.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := m.node.Dial(context.Background(), 1, "echo")
	if err != nil {
		t.Fatalf("a node does not get through: %v", err)
	}
	conn.Close()
}
