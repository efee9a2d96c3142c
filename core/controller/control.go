package controller

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/meta"
	"sluice/core/shard"
)

// A connection of kind "control" or "join" carries requests and their answers, one after the
// other: a length (4 bytes, big-endian) and so many bytes of CBOR.
const (
	kindControl = "control"
	kindJoin    = "join"

	controlVersion = 1
	// frameBytesMax bounds a request: 100,000 partitions with assignments are some 2 MiB.
	frameBytesMax = 16 << 20
	// idleConnsMax are kept open to each node: pings, waits and forwarded commands overlap.
	idleConnsMax = 4
	// commandsMax are forwarded at once by one node; more wait their turn. The leader makes one
	// after the other anyway.
	commandsMax = 64
	// callTimeout is the deadline of a call whose context has none.
	callTimeout = 10 * time.Second
	// serveIdle is how long a connection may say nothing; pooled ones are used twice a second by
	// the leader and dialled anew by others.
	serveIdle = time.Minute
)

// errStatus are the refusals that the other side acts on.
var (
	// errNotLeader is returned by a node that does not lead the metadata, or has just lost that.
	errNotLeader = errors.New("not the metadata leader")
	// errRemote is returned for any other failure of the other side.
	errRemote = errors.New("control request failed")
)

type op uint8

const (
	opPing op = iota + 1
	opIndex
	opAwait
	opCommand
	opJoin
	opRegister
)

// Requests of membership.
const (
	opRemoved op = iota + 20 // the node was removed from the cluster
	opOverview
	opElect
)

// Requests of repair.
const (
	opRenew op = iota + 40 // this node's replica is damaged: take it out of its group, so that it can begin anew
)

type status uint8

const (
	statusOK status = iota
	statusNotLeader
	statusFailed
)

type controlRequest struct {
	Version   uint8           `cbor:"1,keyasint"`
	Op        op              `cbor:"2,keyasint"`
	TimeoutMs int64           `cbor:"3,keyasint"`
	Body      cbor.RawMessage `cbor:"4,keyasint,omitempty"`
}

type controlResponse struct {
	Status  status          `cbor:"1,keyasint"`
	Message string          `cbor:"2,keyasint,omitempty"`
	Body    cbor.RawMessage `cbor:"3,keyasint,omitempty"`
}

var wireDecoding = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxArrayElements: 1 << 20, MaxMapPairs: 1 << 20}.DecMode()
	if err != nil {
		panic("BUG: cbor options: " + err.Error())
	}
	return m
}()

func pack(v any) cbor.RawMessage {
	raw, err := cbor.Marshal(v)
	if err != nil {
		panic("BUG: encode control message: " + err.Error())
	}
	return raw
}

func writeFrame(w io.Writer, v any) error {
	body := pack(v)
	if len(body) > frameBytesMax {
		return fmt.Errorf("write control frame: %d bytes, at most %d", len(body), frameBytesMax)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("write control frame: %w", err)
	}
	return nil
}

func readFrame(r *bufio.Reader, into any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read control frame: %w", err)
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > frameBytesMax {
		return fmt.Errorf("read control frame: %d bytes, at most %d", n, frameBytesMax)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("read control frame: %w", err)
	}
	if err := wireDecoding.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read control frame: %w", err)
	}
	return nil
}

// callConn sends one request over c and reads the answer into out (nil to ignore it). The
// connection can be used again unless the error is of the transport.
func callConn(ctx context.Context, c *controlConn, o op, in, out any) (reusable bool, err error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(callTimeout)
	}
	if err := c.SetDeadline(deadline); err != nil {
		return false, fmt.Errorf("set deadline: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() { reusable = stop() && reusable }()
	req := controlRequest{Version: controlVersion, Op: o, TimeoutMs: time.Until(deadline).Milliseconds()}
	if in != nil {
		req.Body = pack(in)
	}
	if err := writeFrame(c, req); err != nil {
		return false, err
	}
	var resp controlResponse
	if err := readFrame(c.r, &resp); err != nil {
		return false, err
	}
	return true, resp.read(out)
}

func (r *controlResponse) read(out any) error {
	switch {
	case r.Status == statusNotLeader:
		return errNotLeader
	case r.Status != statusOK:
		return fmt.Errorf("%w: %s", errRemote, r.Message)
	case out == nil:
		return nil
	}
	if err := wireDecoding.Unmarshal(r.Body, out); err != nil {
		return fmt.Errorf("decode control answer: %w", err)
	}
	return nil
}

type controlConn struct {
	net.Conn
	r *bufio.Reader
}

func newControlConn(c net.Conn) *controlConn { return &controlConn{Conn: c, r: bufio.NewReader(c)} }

// pool holds idle connections to other nodes.
type pool struct {
	dial  func(ctx context.Context, to meta.NodeID, kind string) (net.Conn, error)
	slots chan struct{} // for commands; pings and waits are few

	mu struct {
		sync.Mutex
		closed bool
		idle   map[meta.NodeID][]*controlConn
	}
}

func newPool(node *shard.Node) *pool {
	p := &pool{dial: node.Dial, slots: make(chan struct{}, commandsMax)}
	p.mu.idle = make(map[meta.NodeID][]*controlConn)
	return p
}

// command forwards a command; see call.
func (p *pool) command(ctx context.Context, to meta.NodeID, r *commandRequest, out *meta.Result) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return fmt.Errorf("forward command to node %d: %w", to, ctx.Err())
	}
	return p.call(ctx, to, opCommand, r, out)
}

// call asks a node. Requests can be sent twice: commands carry an id, the others change nothing.
func (p *pool) call(ctx context.Context, to meta.NodeID, o op, in, out any) error {
	if c := p.take(to); c != nil {
		reusable, err := callConn(ctx, c, o, in, out)
		if reusable {
			p.give(to, c)
			return err
		}
		_ = c.Close()
		if ctx.Err() != nil {
			return fmt.Errorf("call node %d: %w", to, ctx.Err())
		}
	}
	raw, err := p.dial(ctx, to, kindControl)
	if err != nil {
		return fmt.Errorf("call node %d: %w", to, err)
	}
	c := newControlConn(raw)
	reusable, err := callConn(ctx, c, o, in, out)
	if reusable {
		p.give(to, c)
		return err
	}
	_ = c.Close()
	return fmt.Errorf("call node %d: %w", to, err)
}

func (p *pool) take(to meta.NodeID) *controlConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.mu.idle[to]
	if len(idle) == 0 {
		return nil
	}
	c := idle[len(idle)-1]
	p.mu.idle[to] = idle[:len(idle)-1]
	return c
}

func (p *pool) give(to meta.NodeID, c *controlConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed || len(p.mu.idle[to]) >= idleConnsMax {
		_ = c.Close()
		return
	}
	p.mu.idle[to] = append(p.mu.idle[to], c)
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.closed = true
	for _, idle := range p.mu.idle {
		for _, c := range idle {
			_ = c.Close()
		}
	}
	clear(p.mu.idle)
}

// handler answers one request; a nil answer and nil error is an empty success.
type handler func(ctx context.Context, r *controlRequest) (any, error)

// serveConn answers the requests of one connection until it ends.
func serveConn(ctx context.Context, raw net.Conn, handle handler) {
	c := newControlConn(raw)
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		_ = c.SetDeadline(time.Now().Add(serveIdle))
		var req controlRequest
		if err := readFrame(c.r, &req); err != nil {
			return
		}
		resp := answerRequest(ctx, &req, handle)
		_ = c.SetWriteDeadline(time.Now().Add(callTimeout))
		if err := writeFrame(c, resp); err != nil {
			return
		}
	}
}

func answerRequest(ctx context.Context, req *controlRequest, handle handler) *controlResponse {
	if req.Version > controlVersion {
		return &controlResponse{Status: statusFailed, Message: "control request of a newer release"}
	}
	timeout := callTimeout
	if ms := req.TimeoutMs; ms > 0 && ms < commandTimeout.Milliseconds() {
		timeout = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := handle(ctx, req)
	switch {
	case errors.Is(err, errNotLeader):
		return &controlResponse{Status: statusNotLeader}
	case err != nil:
		return &controlResponse{Status: statusFailed, Message: err.Error()}
	case out == nil:
		return &controlResponse{}
	}
	return &controlResponse{Body: pack(out)}
}
