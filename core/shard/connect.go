package shard

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// serve reads a connection's preface and gives it to whom it is for.
func (n *Node) serve(raw net.Conn) {
	defer n.untrack(raw)
	c := n.serverConn(raw)
	p, g, fn, err := n.welcome(c)
	n.strangers.leave(raw)
	if err != nil {
		n.log.Debug("connection refused", "remote", raw.RemoteAddr().String(), "err", err)
		c.Close()
		return
	}
	from, _ := parseServer(p.from)
	if g != nil {
		g.serve(n.ctx, c)
		return
	}
	defer c.Close()
	fn(n.ctx, from.Node, c)
}

// welcome reads and answers the preface, within prefaceTimeout.
func (n *Node) welcome(c net.Conn) (p preface, g *Group, fn Handler, err error) {
	if err = c.SetDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return p, nil, nil, fmt.Errorf("set deadline: %w", err)
	}
	p, version, err := readPreface(c)
	if err != nil {
		return p, nil, nil, err
	}
	answer := answerVersion
	if version == prefaceVersion {
		g, fn, answer = n.judge(p)
	}
	if _, err = c.Write([]byte{answer}); err != nil {
		return p, nil, nil, fmt.Errorf("answer preface: %w", err)
	}
	if answer != answerWelcome {
		return p, nil, nil, fmt.Errorf("%w: from %q, kind %q: %s", ErrRefused, p.from, p.kind, answerText[answer])
	}
	return p, g, fn, c.SetDeadline(time.Time{})
}

// judge decides whether a connection means this server. An unknown cluster id is good for joining
// only: a Raft group without a configuration would take anybody's entries.
func (n *Node) judge(p preface) (*Group, Handler, byte) {
	cluster := n.o.ClusterID()
	if p.kind != KindJoin && (cluster == "" || p.cluster != cluster) {
		return nil, nil, answerCluster
	}
	if p.kind == KindJoin && p.cluster != "" && p.cluster != cluster {
		return nil, nil, answerCluster
	}
	if p.kind == kindRaft || p.kind == kindBeats && !n.o.early {
		from, ok := parseServer(p.from)
		if p.to != n.o.Self.String() || !ok || from.Incarnation == "" {
			return nil, nil, answerTarget
		}
		if p.kind == kindBeats {
			return nil, func(ctx context.Context, _ meta.NodeID, c net.Conn) { n.serveBeats(ctx, p.from, c) }, answerWelcome
		}
		g, ok := n.Group(p.shard)
		if !ok {
			return nil, nil, answerShard
		}
		return g, nil, answerWelcome
	}
	if to, ok := parseServer(p.to); p.to != "" && (!ok || to.Node != n.o.Self.Node) {
		return nil, nil, answerTarget
	}
	n.mu.Lock()
	fn := n.mu.handlers[p.kind]
	n.mu.Unlock()
	if fn == nil {
		return nil, nil, answerKind
	}
	return nil, fn, answerWelcome
}

// Dial connects to a node for one of the kinds that it handles. It returns an error wrapping
// ErrRefused when the node is another one than meant or does not handle the kind.
func (n *Node) Dial(ctx context.Context, to meta.NodeID, kind string) (net.Conn, error) {
	addr, ok := n.o.Resolve(to)
	if !ok {
		return nil, fmt.Errorf("dial node %d: its address is not known", to)
	}
	return n.dial(ctx, addr, preface{kind: kind, cluster: n.o.ClusterID(), to: fmt.Sprint(to)})
}

// DialAddr connects to an address whose node is not known yet, to join its cluster. Kind must be
// KindJoin.
func (n *Node) DialAddr(ctx context.Context, addr, kind string) (net.Conn, error) {
	if kind != KindJoin {
		return nil, fmt.Errorf("dial %s: kind %q needs a node", addr, kind)
	}
	return n.dial(ctx, addr, preface{kind: kind})
}

func (n *Node) dialRaft(ctx context.Context, shard meta.ShardID, to raft.ServerAddress) (net.Conn, error) {
	return n.dialServer(ctx, preface{shard: shard, kind: kindRaft}, to)
}

// dialServer connects to one incarnation of a node.
func (n *Node) dialServer(ctx context.Context, p preface, to raft.ServerAddress) (net.Conn, error) {
	server, ok := parseServer(string(to))
	if !ok {
		return nil, fmt.Errorf("dial server %q: not a server's id", to)
	}
	addr, ok := n.o.Resolve(server.Node)
	if !ok {
		return nil, fmt.Errorf("dial server %q: its address is not known", to)
	}
	p.cluster, p.to = n.o.ClusterID(), string(to)
	return n.dial(ctx, addr, p)
}

func (n *Node) dial(ctx context.Context, addr string, p preface) (net.Conn, error) {
	p.from = n.o.Self.String()
	hello, err := p.encode()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, prefaceTimeout)
	defer cancel()
	c, err := n.connect(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if err := introduce(ctx, c, hello); err != nil {
		c.Close()
		return nil, fmt.Errorf("dial %s for %s: %w", addr, p.kind, err)
	}
	return c, nil
}

func (n *Node) connect(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tune(c)
	if n.o.TLSClient == nil {
		return c, nil
	}
	config := n.o.TLSClient
	if config.ServerName == "" && !config.InsecureSkipVerify {
		config = config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(addr)
	}
	secure := tls.Client(c, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return secure, nil
}

// introduce sends the preface and waits for the answer.
func introduce(ctx context.Context, c net.Conn, hello []byte) error {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write(hello); err != nil {
		return fmt.Errorf("write preface: %w", err)
	}
	var answer [1]byte
	if _, err := c.Read(answer[:]); err != nil {
		return fmt.Errorf("read answer to preface: %w", err)
	}
	if answer[0] != answerWelcome {
		return fmt.Errorf("%w: %s", ErrRefused, answerText[answer[0]])
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}
