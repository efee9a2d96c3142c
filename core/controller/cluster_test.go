package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"sluice/core/internal/leaks"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/vfs"
)

func TestMain(m *testing.M) {
	debug.SetMemoryLimit(memoryLimit)
	leaks.Main(m, patience)
}

// memoryLimit makes the collector look more often when several clusters have their disks in memory at once: those that have ended go first.
const memoryLimit = 2 << 30

// patience bounds every wait of these tests. It is generous: the machine may be busy, and only a failure waits that long.
const patience = 2 * time.Minute

// member is one node of a test cluster, over real sockets and a file system in memory.
type member struct {
	*Controller
	t      *testing.T
	o      Options
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func testLogger(node meta.NodeID) *slog.Logger {
	if os.Getenv("SLUICE_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", node)
}

func options(id meta.NodeID, join ...string) Options {
	return Options{
		FS: vfs.NewMem(), DataDir: "/data", Listen: "127.0.0.1:0", Join: join,
		Self:              meta.Node{ID: id, KafkaHost: "localhost", KafkaPort: 9000 + int32(id), Rack: fmt.Sprint("rack", id)},
		RetentionInterval: 100 * time.Millisecond, PreferredDelay: 3 * time.Second, Heartbeat: heartbeat, Logger: testLogger(id),
	}
}

// launch opens and runs a node.
func launch(t *testing.T, o Options) *member {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	o.Listen, o.Join = c.Addr(), nil // a restart finds it where it was
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{Controller: c, t: t, o: o, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		m.err = c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-m.done
	})
	return m
}

func (m *member) awaitReady() *member {
	m.t.Helper()
	select {
	case <-m.Ready():
	case <-m.done:
		m.t.Fatalf("node %d stopped: %v", m.Self(), m.err)
	case <-time.After(patience):
		m.t.Fatalf("node %d is not ready", m.Self())
	}
	return m
}

func start(t *testing.T, o Options) *member { t.Helper(); return launch(t, o).awaitReady() }

// stop ends the node cleanly.
func (m *member) stop() {
	m.t.Helper()
	m.cancel()
	<-m.done
	if m.err != nil {
		m.t.Fatalf("node %d: %v", m.Self(), m.err)
	}
}

// crash ends the node without a word to the others.
func (m *member) crash() {
	m.t.Helper()
	_ = m.node.Close()
	m.cancel()
	<-m.done
}

func (m *member) restart() *member { m.t.Helper(); return start(m.t, m.o) }

// eventually waits until cond holds, looking whenever the image changes.
func (m *member) eventually(what string, cond func() bool) {
	m.t.Helper()
	m.without(what, func() string {
		if cond() {
			return ""
		}
		return "not yet"
	})
}

// without waits until nothing is wrong any more, looking whenever the image changes, and says at the end what was.
func (m *member) without(what string, wrong func() string) {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		changed := m.Changed()
		last := wrong()
		if last == "" {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-m.done:
			m.t.Fatalf("node %d stopped while waiting for %s: %v", m.Self(), what, m.err)
		case <-deadline:
			m.t.Fatalf("node %d: %s did not happen: %s: %+v", m.Self(), what, last, m.Status())
		}
	}
}

func trio(t *testing.T) []*member {
	t.Helper()
	a := start(t, options(1))
	b := start(t, options(2, a.Addr()))
	c := start(t, options(3, "127.0.0.1:1", b.Addr())) // the first address answers nobody
	all := []*member{a, b, c}
	a.eventually("three voters", func() bool { return voters(a) == 3 })
	return all
}

func voters(m *member) int {
	n := 0
	for _, r := range m.group().Replicas() {
		if r.Voter {
			n++
		}
	}
	return n
}

// create creates topics. Where the answer did not come in time it asks again, as a client does: the first try may have made them.
func (m *member) create(topics ...meta.NewTopic) {
	m.t.Helper()
	again := false
	m.without("the creation of topics", func() string {
		for _, r := range m.CreateTopics(context.Background(), topics, false) {
			switch {
			case r.Err == nil, again && r.Err.Code == meta.CodeTopicAlreadyExists:
			case r.Err.Code == meta.CodeRequestTimedOut:
				again = true
				return fmt.Sprintf("%s: %v", r.Name, r.Err)
			default:
				m.t.Fatalf("create %s through node %d: %v", r.Name, m.Self(), r.Err)
			}
		}
		return ""
	})
	for i := range topics { // it was not waited for when it had missed a ping
		m.eventually("the topic in the image", func() bool { return m.Image().Topic(topics[i].Name) != nil })
	}
}

// forget deletes a topic. As create, it asks again where the answer did not come in time.
func (m *member) forget(topic *meta.Topic) {
	m.t.Helper()
	again := false
	m.without("the deletion of "+topic.Name, func() string {
		err := m.DeleteTopics(context.Background(), []meta.TopicID{topic.ID})[0]
		var refused *meta.Error
		switch {
		case err == nil, errors.As(err, &refused) && again && refused.Code == meta.CodeUnknownTopicID:
			return ""
		case refused == nil || refused.Code != meta.CodeRequestTimedOut:
			m.t.Fatalf("delete %s through node %d: %v", topic.Name, m.Self(), err)
		}
		again = true
		return err.Error()
	})
}

// served waits until a topic is served: everybody knows the same leader of each partition, and the leader has the partition. An answer
// to its creation promises that of the nodes that were alive; on a busy machine a node can miss a ping, and leaders change.
func served(t *testing.T, all []*member, topic string) {
	t.Helper()
	for _, m := range all {
		m.without(topic+" to be served", func() string { return m.unserved(all, topic) })
	}
}

// unserved says why a topic is not served, "" when it is.
func (m *member) unserved(all []*member, topic string) string {
	tp := m.Image().Topic(topic)
	if tp == nil {
		return fmt.Sprintf("node %d does not know %s", m.Self(), topic)
	}
	for _, p := range tp.Partitions {
		leader, _, ok := m.LeaderOf(p.Shard)
		if !ok {
			return fmt.Sprintf("node %d knows no leader of %s-%d", m.Self(), topic, p.Index)
		}
		at := slices.IndexFunc(all, func(l *member) bool { return l.Self() == leader })
		if at < 0 {
			continue
		}
		part, g, ok := all[at].Local(tp.ID, p.Index)
		if !ok || part.Name() != topic {
			return fmt.Sprintf("leader %d does not have %s-%d", leader, topic, p.Index)
		}
		if _, ok := g.Serving(); !ok {
			return fmt.Sprintf("leader %d does not serve %s-%d", leader, topic, p.Index)
		}
	}
	return ""
}

// fullISR waits until every node names all replicas of a topic.
func fullISR(t *testing.T, all []*member, topic string) {
	t.Helper()
	for _, m := range all {
		m.without("all replicas of "+topic+" in sync", func() string {
			for _, p := range m.Image().Topic(topic).Partitions {
				if s := m.Image().Shard(p.Shard); len(m.ISR(p.Shard)) != len(s.Voters) {
					return fmt.Sprintf("node %d: ISR of %s-%d is %v of %v", m.Self(), topic, p.Index, m.ISR(p.Shard), s.Nodes())
				}
			}
			return ""
		})
	}
}

func TestSingleNode(t *testing.T) {
	m := start(t, options(1))
	m.create(plain("t"), meta.NewTopic{Name: "u", Partitions: 5, ReplicationFactor: 1, Configs: map[string]string{"segment.bytes": "2097152"}})
	served(t, []*member{m}, "t")
	served(t, []*member{m}, "u")
	topic := m.Image().Topic("u")
	p, _, _ := m.Local(topic.ID, 4)
	if got := p.Config().SegmentBytes; got != 2<<20 {
		t.Fatalf("segment.bytes %d", got)
	}
	ctx := context.Background()
	for _, err := range m.AlterConfigs(ctx, []meta.ConfigChange{{Type: meta.ResourceTopic, Name: "u", Set: map[string]string{"segment.bytes": "3145728"}}}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Config().SegmentBytes; got != 3<<20 {
		t.Fatalf("segment.bytes %d after the change was answered", got)
	}
	if err := m.CreatePartitions(ctx, "u", 7, nil, false); err != nil {
		t.Fatal(err)
	}
	served(t, []*member{m}, "u")
	for _, err := range m.DeleteTopics(ctx, []meta.TopicID{topic.ID}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !p.Removed() || m.Image().Topic("u") != nil {
		t.Fatal("the topic is still served after its deletion was answered")
	}
	var refused *meta.Error
	if err := m.DeleteTopics(ctx, []meta.TopicID{topic.ID})[0]; !errors.As(err, &refused) || refused.Code != meta.CodeUnknownTopicID {
		t.Fatalf("second deletion: %v", err)
	}
	m.eventually("removals confirmed", func() bool {
		return !slices.ContainsFunc(m.Image().Shards(), func(s *meta.Shard) bool { return len(m.Image().Removals(s.ID)) > 0 })
	})
	before := m.Image()
	m.stop()
	m = m.restart()
	if m.Image().ClusterID() != before.ClusterID() || len(m.ClusterID()) != 22 {
		t.Fatalf("cluster %q became %q", before.ClusterID(), m.Image().ClusterID())
	}
	if n := m.Image().PartitionCount(); n != before.PartitionCount() {
		t.Fatalf("%d partitions after the restart, %d before", n, before.PartitionCount())
	}
	m.eventually("leader", func() bool { _, _, ok := m.LeaderOf(1); return ok })
}

func TestValidateOnly(t *testing.T) {
	m := start(t, options(1))
	r := m.CreateTopics(context.Background(), []meta.NewTopic{plain("t"), plain("b d")}, true)
	if r[0].Err != nil || r[0].Partitions != 3 || r[0].ReplicationFactor != 1 || !r[0].ID.IsZero() {
		t.Fatalf("%+v", r[0])
	}
	if r[1].Err == nil || r[1].Name != "b d" {
		t.Fatalf("%+v", r[1])
	}
	m.create(plain("t"))
	if err := m.CreatePartitions(context.Background(), "t", 9, nil, true); err != nil {
		t.Fatal(err)
	}
	if n := len(m.Image().Topic("t").Partitions); n != 3 || m.Image().TopicCount() != 1 {
		t.Fatalf("%d partitions", n)
	}
}

func TestProducerIDsAreGivenOnce(t *testing.T) {
	m := start(t, options(1))
	first, err := m.AllocateProducerIDs(context.Background(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	m.stop()
	m = m.restart()
	second, err := m.AllocateProducerIDs(context.Background(), 10)
	if err != nil || second < first+1000 {
		t.Fatal(first, second, err)
	}
}

func TestThreeNodes(t *testing.T) {
	beside(t)
	all := trio(t)
	for i, m := range all {
		name := fmt.Sprint("by", i+1)
		m.create(plain(name), meta.NewTopic{Name: name + "one", Partitions: 4, ReplicationFactor: 1})
		served(t, all, name)
		served(t, all, name+"one")
		fullISR(t, all, name)
		fullISR(t, all, name+"one")
	}
	all[1].create(plain(meta.OffsetsTopic))
	served(t, all, meta.OffsetsTopic)
	for _, m := range all {
		m.eventually("everything in sync, preferred leaders", func() bool {
			for _, s := range m.Image().Shards() {
				leader, _, ok := m.LeaderOf(s.ID)
				if !ok || leader != s.Preferred() || len(m.ISR(s.ID)) != len(s.Voters) {
					return false
				}
			}
			return underReplicated(m.Image()) == 0
		})
	}
	topic := all[0].Image().Topic("by1")
	var parts []*partition.Partition
	for _, m := range all {
		m.eventually("a replica of a topic with three", func() bool { _, _, ok := m.Local(topic.ID, 0); return ok })
		p, _, _ := m.Local(topic.ID, 0)
		parts = append(parts, p)
	}
	all[2].forget(topic)
	for i, m := range all {
		m.eventually("the topic forgotten", func() bool { return m.Image().Topic("by1") == nil })
		m.eventually("replicas removed", parts[i].Removed)
	}
}

// TestTopicIsCreatedAfterAStandstill: a leader that has heard from nobody for a moment does not say that brokers are missing.
func TestTopicIsCreatedAfterAStandstill(t *testing.T) {
	beside(t)
	all := trio(t)
	leader := leaderOf(t, all)
	for _, m := range others(all, leader) {
		leader.lead.setDown(m.id.server(), true) // until the next ping
	}
	leader.create(plain("t"))
	served(t, all, "t")
	for _, m := range others(all, leader) {
		leader.lead.setDown(m.id.server(), true)
	}
	leader.without("further partitions", func() string {
		err := leader.CreatePartitions(t.Context(), "t", 5, nil, false)
		var refused *meta.Error
		if errors.As(err, &refused) && refused.Code == meta.CodeInvalidReplicationFactor {
			t.Fatal(err)
		}
		if len(leader.Image().Topic("t").Partitions) == 5 {
			return ""
		}
		return wordOf(err)
	})
	served(t, all, "t")
}
