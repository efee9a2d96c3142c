package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/vfs"
)

const testShard = meta.ShardID(7)

// patience is how long tests wait for what must happen; they go on as soon as it does. Only a failure waits that long.
const patience = 2 * time.Minute

// cluster is some nodes in one process, with real sockets. Each pair of nodes is connected through
// a gate per direction that a test can close.
type cluster struct {
	t     testing.TB
	mu    sync.Mutex
	nodes map[meta.NodeID]*member
	gates map[[2]meta.NodeID]*gate
	tune  func(meta.NodeID, *Options)
}

type member struct {
	c     *cluster
	id    meta.NodeID
	self  meta.Server
	disk  *vfs.Mem
	fault *vfs.Fault
	node  *Node
	group *Group
	sm    *kv
	stop  func() error
}

func newCluster(t testing.TB, size int, tune func(meta.NodeID, *Options)) *cluster {
	c := &cluster{t: t, nodes: map[meta.NodeID]*member{}, gates: map[[2]meta.NodeID]*gate{}, tune: tune}
	t.Cleanup(c.close)
	for i := range size {
		c.add(meta.NodeID(i + 1))
	}
	for _, m := range c.nodes {
		if err := m.node.Bootstrap(testShard, c.servers()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range size {
		c.nodes[meta.NodeID(i+1)].open()
	}
	return c
}

func (c *cluster) servers() []meta.Server {
	var s []meta.Server
	for i := range len(c.nodes) {
		s = append(s, c.nodes[meta.NodeID(i+1)].self)
	}
	return s
}

// add starts a node with an empty disk.
func (c *cluster) add(id meta.NodeID) *member {
	disk := vfs.NewMem()
	m := &member{
		c: c, id: id, disk: disk, fault: vfs.NewFault(disk),
		self: meta.Server{Node: id, Incarnation: fmt.Sprintf("disk%d", id)},
	}
	c.mu.Lock()
	c.nodes[id] = m
	c.mu.Unlock()
	m.start()
	return m
}

func testLogger() *slog.Logger {
	if os.Getenv("SHARD_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (m *member) start() {
	o := Options{
		FS: m.fault, Dir: "data", ClusterID: func() string { return "test" }, Self: m.self,
		Listen: "127.0.0.1:0", Resolve: func(to meta.NodeID) (string, bool) { return m.c.resolve(m.id, to) },
		Heartbeat: DefaultHeartbeat, Logger: testLogger(),
	}
	if o.Logger != nil {
		o.Logger = o.Logger.With("node", int(m.id))
	}
	if m.c.tune != nil {
		m.c.tune(m.id, &o)
	}
	n, err := NewNode(o)
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.c.mu.Lock()
	m.node = n
	m.c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	m.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
}

func (m *member) open() *Group {
	m.sm = &kv{}
	g, err := m.node.Open(testShard, m.sm)
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.group = g
	return g
}

// restart starts the node again after it was stopped.
func (m *member) restart() {
	m.start()
	m.open()
}

// crash stops the node as a power cut does: what was not synced is lost.
func (m *member) crash() {
	disk := m.disk.CrashClone(nil)
	for _, g := range m.node.Groups() {
		g.halt()
	}
	m.stop()
	m.disk, m.fault = disk, vfs.NewFault(disk)
}

func (c *cluster) close() {
	var wg sync.WaitGroup
	for _, m := range c.nodes {
		wg.Go(func() {
			m.fault.SetHook(nil)
			m.stop()
		})
	}
	wg.Wait()
	c.mu.Lock()
	gates := c.gates
	c.gates = nil
	c.mu.Unlock()
	for _, g := range gates {
		g.close()
	}
}

func (c *cluster) resolve(from, to meta.NodeID) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.nodes[to]
	if m == nil || m.node == nil || c.gates == nil {
		return "", false
	}
	key := [2]meta.NodeID{from, to}
	if c.gates[key] == nil {
		c.gates[key] = newGate(c.t)
	}
	c.gates[key].aim(m.node.Addr().String())
	return c.gates[key].addr(), true
}

// partition cuts or restores all connections between one node and the others.
func (c *cluster) partition(id meta.NodeID, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := range c.nodes {
		for _, key := range [][2]meta.NodeID{{a, id}, {id, a}} {
			if a == id {
				continue
			}
			if c.gates[key] == nil {
				c.gates[key] = newGate(c.t)
			}
			c.gates[key].set(cut)
		}
	}
}

// link restores the connections between two nodes alone.
func (c *cluster) link(a, b meta.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range [][2]meta.NodeID{{a, b}, {b, a}} {
		c.gates[key].set(false)
	}
}

// gate forwards connections to an address unless it is shut.
type gate struct {
	l  net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	to    string
	shut  bool
	held  bool
	conns map[net.Conn]struct{}
	mute  map[net.Conn]struct{} // what comes in there goes nowhere
}

func newGate(t testing.TB) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, conns: map[net.Conn]struct{}{}, mute: map[net.Conn]struct{}{}}
	g.wg.Go(g.run)
	return g
}

func (g *gate) addr() string { return g.l.Addr().String() }

func (g *gate) aim(to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to = to
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	g.shut = shut
	conns := g.conns
	if shut {
		g.conns = map[net.Conn]struct{}{}
	}
	g.mu.Unlock()
	if shut {
		for c := range conns {
			c.Close()
		}
	}
}

// hold lets all connections that are open, and those to come while it holds, carry nothing any more. They stay open.
func (g *gate) hold(held bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held = held; held {
		maps.Copy(g.mute, g.conns)
	}
}

func (g *gate) isMute(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, mute := g.mute[c]
	return mute
}

func (g *gate) close() {
	g.l.Close()
	g.mu.Lock()
	for c := range g.mute {
		c.Close()
	}
	g.mu.Unlock()
	g.set(true)
	g.wg.Wait()
}

func (g *gate) run() {
	for {
		in, err := g.l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		to, shut := g.to, g.shut
		g.mu.Unlock()
		if shut {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			continue
		}
		g.mu.Lock()
		if g.shut {
			in.Close()
			out.Close()
		}
		g.conns[in], g.conns[out] = struct{}{}, struct{}{}
		if g.held {
			g.mute[in], g.mute[out] = struct{}{}, struct{}{}
		}
		g.mu.Unlock()
		g.wg.Go(func() { g.copy(in, out) })
		g.wg.Go(func() { g.copy(out, in) })
	}
}

func (g *gate) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err == nil && !g.isMute(from) {
			_, err = to.Write(buf[:n])
		}
		if err != nil && g.isMute(from) && !errors.Is(err, net.ErrClosed) {
			break // the other end learns nothing
		}
		if err != nil {
			to.Close()
			from.Close()
			break
		}
	}
	g.mu.Lock()
	delete(g.conns, to)
	delete(g.conns, from)
	g.mu.Unlock()
}

// halfOpen lets the links between one node and the others carry nothing, without closing them, or lets new ones carry again.
func (c *cluster) halfOpen(id meta.NodeID, held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, g := range c.gates {
		if key[0] == id || key[1] == id {
			g.hold(held)
		}
	}
}

// until waits for a condition, looking at every change of the groups and now and then.
func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			c.t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// leader waits until one of the members serves.
func (c *cluster) leader(among ...meta.NodeID) *member {
	c.t.Helper()
	var found *member
	c.until("a leader serves", func() bool {
		for id, m := range c.nodes {
			if m.group == nil || (len(among) > 0 && !contains(among, id)) {
				continue
			}
			if _, ok := m.group.Serving(); ok {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func contains(ids []meta.NodeID, id meta.NodeID) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

func (c *cluster) others(id meta.NodeID) (ids []meta.NodeID) {
	for other := range c.nodes {
		if other != id {
			ids = append(ids, other)
		}
	}
	return ids
}

// put proposes at a member and waits for the commit.
func (m *member) put(entry string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := m.group.Propose([]byte(entry)).Wait(ctx)
	return err
}

// mustPut has a leader take entries, each once. One that has lost the lead, as the machine stood still for longer than its lease, gets it back.
func (m *member) mustPut(entries ...string) {
	m.c.t.Helper()
	for _, e := range entries {
		for deadline := time.Now().Add(patience); ; {
			err := m.put(e)
			if errors.Is(err, ErrUnknown) { // nobody else puts anything meanwhile
				m.lead()
				if all := m.sm.all(); len(all) > 0 && all[len(all)-1] == e {
					err = nil
				}
			}
			if err == nil {
				break
			}
			if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUnknown) || time.Now().After(deadline) {
				m.c.t.Fatalf("put %.20s: %v", e, err)
			}
			m.lead()
		}
	}
}

// insist has a leader do something until it works, as the leader.
func (m *member) insist(what string, do func() error) {
	m.c.t.Helper()
	var last error
	defer func() {
		if last != nil {
			m.c.t.Logf("%s: %v", what, last)
		}
	}()
	m.c.until(what, func() bool {
		m.lead()
		last = do()
		return last == nil
	})
}

// lead waits until the member leads, and has whoever leads instead hand over.
func (m *member) lead() {
	m.c.t.Helper()
	m.c.until("the leader leads again", func() bool {
		if _, ok := m.group.Serving(); ok {
			return true
		}
		for _, other := range m.c.nodes {
			if other == m || other.group == nil {
				continue
			}
			if _, ok := other.group.Serving(); ok {
				_ = other.group.Transfer(context.Background(), m.id) // again, where it does not work
			}
		}
		return false
	})
}

// attempts has a test tried again, each time with a cluster of its own, that only holds while a leader keeps its place and the machine does
// not stand still. What is right comes about sooner or later.
func attempts(t *testing.T, try func() error) {
	t.Helper()
	const most = 8
	for n := 1; ; n++ {
		err := try()
		if err == nil {
			return
		}
		if n == most {
			t.Fatalf("try %d: %v", n, err)
		}
		t.Logf("try %d: %v", n, err)
	}
}
