package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/core/controller"
	"sluice/core/internal/leaks"
	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/shard"
	"sluice/core/vfs"
)

func TestMain(m *testing.M) { leaks.Main(m, testTimeout) }

// testTimeout bounds what a test waits for; it is far above what anything takes, on a busy machine as well.
const testTimeout = 3 * time.Minute

// testCluster is one to three nodes in this process, on real sockets and a real file system.
type testCluster struct {
	t     testing.TB
	nodes []*testNode
}

// testNode is one node. It keeps its directory and addresses when it is stopped and started again.
type testNode struct {
	now      func() time.Time // nil: time.Now
	t        testing.TB
	id       meta.NodeID
	dir      string
	kafka    string // address for clients
	internal string // address for nodes
	join     []string
	fs       vfs.FS
	reserve  int64

	ctl    *controller.Controller
	broker *Broker
	stop   func() error
	down   bool // a test has stopped it for good
}

// startCluster starts n nodes in racks rack1 to rack3, ids from 1 on, and waits until all of them serve. They stop with the test.
func startCluster(t testing.TB, n int) *testCluster {
	t.Helper()
	return startClusterWith(t, n, func(*testNode) {})
}

// startClusterWith is startCluster with nodes that a test has changed before they start.
func startClusterWith(t testing.TB, n int, change func(*testNode)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	dir := t.TempDir()
	for i := range n {
		node := &testNode{t: t, id: meta.NodeID(i + 1), dir: filepath.Join(dir, fmt.Sprint("node", i+1)), kafka: "127.0.0.1:0", internal: "127.0.0.1:0", fs: vfs.OS}
		if i > 0 {
			node.join = []string{c.nodes[0].internal}
		}
		c.nodes = append(c.nodes, node)
		change(node)
		node.start()
	}
	t.Cleanup(c.stop)
	c.awaitLive()
	return c
}

// awaitLive waits until the cluster would place a topic on all its nodes: one that has just joined counts once it has answered the metadata's leader.
func (c *testCluster) awaitLive() {
	c.t.Helper()
	ctx, probe := testContext(c.t), []meta.NewTopic{{Name: "probe", Partitions: 1, ReplicationFactor: int16(len(c.nodes))}}
	for {
		r := c.nodes[0].ctl.CreateTopics(ctx, probe, true)
		if len(r) == 1 && r[0].Err == nil && c.metadataVoters() == len(c.nodes) {
			return
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("the nodes do not come together: %+v", r)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// metadataVoters counts the nodes that count for the metadata's majority, which a test that stops one relies on.
func (c *testCluster) metadataVoters() int {
	for _, n := range c.nodes {
		s, ok := n.ctl.Status().(controller.Status).Metadata.(shard.GroupStatus)
		if !ok || s.Leader != n.id {
			continue
		}
		voters := 0
		for _, r := range s.Replicas {
			if r.Voter && r.InSync {
				voters++
			}
		}
		return voters
	}
	return 0
}

// start starts the node and waits until it serves.
func (n *testNode) start() {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(testLog{n.t, n.id}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	l, err := Listen("PLAINTEXT", n.kafka, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	n.kafka = addr.String()
	n.ctl, err = controller.Open(controller.Options{
		FS: n.fs, DataDir: n.dir, Listen: n.internal, Join: n.join, ReserveBytes: n.reserve, Heartbeat: heartbeat, Now: n.now, Logger: log,
		Self: meta.Node{ID: n.id, Rack: fmt.Sprint("rack", n.id), KafkaHost: addr.IP.String(), KafkaPort: int32(addr.Port)},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.internal = n.ctl.Addr()
	if n.broker, err = New(Options{Controller: n.ctl, Listeners: []kafka.Listener{l}, Now: n.now, Logger: log}); err != nil {
		n.t.Fatal(err)
	}
	n.run()
	select {
	case <-n.broker.Ready():
	case <-time.After(testTimeout):
		n.t.Fatalf("node %d is not ready", n.id)
	}
}

// run starts controller and broker; stop ends the broker first, as a process does.
func (n *testNode) run() {
	ctlCtx, stopCtl := context.WithCancel(context.Background())
	brokerCtx, stopBroker := context.WithCancel(context.Background())
	ctlDone, brokerDone := make(chan error, 1), make(chan error, 1)
	go func() { ctlDone <- n.ctl.Run(ctlCtx) }()
	go func() { brokerDone <- n.broker.Run(brokerCtx) }()
	n.stop = sync.OnceValue(func() error {
		stopBroker()
		err := <-brokerDone
		stopCtl()
		return errors.Join(err, <-ctlDone)
	})
}

func (c *testCluster) stop() {
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		wg.Go(func() {
			if err := n.stop(); err != nil {
				c.t.Errorf("node %d stopped: %v", n.id, err)
			}
		})
	}
	wg.Wait()
}

// bootstrap returns the addresses for clients.
func (c *testCluster) bootstrap() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.kafka)
	}
	return out
}

// node returns a node by id.
func (c *testCluster) node(id int32) *testNode { return c.nodes[id-1] }

// client returns a client of the cluster; it closes with the test.
func (c *testCluster) client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.bootstrap()...), kgo.UnknownTopicRetries(-1)}, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

// admin returns an administrator's client.
func (c *testCluster) admin() *kadm.Client { return kadm.NewClient(c.client()) }

// create creates a topic with as many replicas as there are nodes, and waits until all that run know it: one that had missed a ping was not waited
// for.
func (c *testCluster) create(topic string, partitions int32, configs map[string]string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	values := make(map[string]*string)
	for k, v := range configs {
		values[k] = &v
	}
	adm := c.admin()
	for again := false; ; again = true {
		r, err := adm.CreateTopic(ctx, partitions, int16(len(c.nodes)), values, topic)
		if err == nil {
			err = r.Err
		}
		switch {
		case err == nil, again && errors.Is(err, kerr.TopicAlreadyExists):
			c.known(topic)
			return
		case ctx.Err() != nil || !errors.Is(err, kerr.RequestTimedOut):
			c.t.Fatalf("create %s: %v %s", topic, err, r.ErrMessage)
		}
	}
}

// known waits until all nodes that run know a topic.
func (c *testCluster) known(topic string) {
	c.t.Helper()
	for _, n := range c.nodes {
		c.await(fmt.Sprintf("node %d to know %s", n.id, topic), func() bool { return n.down || n.ctl.Image().Topic(topic) != nil })
	}
}

// testLog writes a node's log to the test's; after the test it is silent.
type testLog struct {
	t  testing.TB
	id meta.NodeID
}

func (l testLog) Write(b []byte) (int, error) {
	if testing.Verbose() {
		l.t.Logf("node %d: %s", l.id, strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// testContext ends when a test has waited too long.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// await waits until a condition holds that the network will bring about.
func (c *testCluster) await(what string, ok func() bool) {
	c.t.Helper()
	c.without(what, func() string {
		if ok() {
			return ""
		}
		return "not yet"
	})
}

// without waits until nothing is wrong any more, and says at the end what was.
func (c *testCluster) without(what string, wrong func() string) {
	c.t.Helper()
	for deadline := time.Now().Add(testTimeout); ; <-time.After(10 * time.Millisecond) {
		last := wrong()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waited in vain for %s: %s", what, last)
		}
	}
}

// unsettled counts the changes that were answered before every node had them: on a busy machine one misses a ping now and then.
func (c *testCluster) unsettled() (n int) {
	for _, node := range c.nodes {
		var out strings.Builder
		node.ctl.WritePrometheus(&out)
		for line := range strings.Lines(out.String()) {
			if value, ok := strings.CutPrefix(line, "sluice_controller_unsettled_commands_total "); ok {
				count, err := strconv.Atoi(strings.TrimSpace(value))
				if err != nil {
					c.t.Fatal(err)
				}
				n += count
			}
		}
	}
	return n
}

// steady waits until all nodes know that a partition is led by who shall lead it, and that one serves: it stays so, then.
func (c *testCluster) steady(topic string, partition int32) (leader int32) {
	c.t.Helper()
	c.without(fmt.Sprintf("a steady leader of %s-%d", topic, partition), func() string {
		for _, n := range c.nodes {
			t := n.ctl.Image().Topic(topic)
			if t == nil {
				return fmt.Sprintf("node %d does not know the topic", n.id)
			}
			id := t.Partitions[partition].Shard
			shard := n.ctl.Image().Shard(id)
			now, _, ok := n.ctl.LeaderOf(id)
			if want := shard.Preferred(); !ok || now != want || shard.Leader != want {
				return fmt.Sprintf("node %d knows %d as the leader, and %d as reported, not %d", n.id, now, shard.Leader, want)
			}
			leader = int32(now)
		}
		t := c.node(leader).ctl.Image().Topic(topic)
		_, g, ok := c.node(leader).ctl.Local(t.ID, partition)
		if !ok {
			return fmt.Sprintf("the leader %d does not have it", leader)
		}
		if _, ok := g.Serving(); !ok {
			return fmt.Sprintf("the leader %d does not serve it", leader)
		}
		return ""
	})
	return leader
}
