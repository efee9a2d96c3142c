package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/shard"
	"sluice/core/vfs"
)

func leaderOf(t *testing.T, all []*member) *member {
	t.Helper()
	var found *member
	all[0].eventually("a metadata leader", func() bool {
		for _, m := range all {
			if m.lead.serving() == nil {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func others(all []*member, not *member) []*member {
	return slices.DeleteFunc(slices.Clone(all), func(m *member) bool { return m == not })
}

func TestTopicsAreCreatedUnderLeaderStops(t *testing.T) {
	all := trio(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	created := make([][]string, len(all))
	victim := leaderOf(t, all)
	for i, m := range all {
		if m == victim {
			continue
		}
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("t-%d-%d", m.Self(), n)
				r := m.CreateTopics(context.Background(), []meta.NewTopic{plain(name)}, false)[0]
				if r.Err != nil && r.Err.Code == meta.CodeRequestTimedOut {
					continue // made or not: nobody was told
				}
				if r.Err != nil {
					t.Errorf("create %s: %v", name, r.Err)
					return
				}
				created[i] = append(created[i], name)
			}
		})
	}
	survivors := others(all, victim)
	enough := func(n int) {
		survivors[0].eventually("more topics", func() bool { return survivors[0].Image().TopicCount() >= n })
	}
	enough(4)
	victim.crash()
	enough(survivors[0].Image().TopicCount() + 10)
	victim = victim.restart()
	enough(survivors[0].Image().TopicCount() + 10)
	close(stop)
	wg.Wait()
	for _, names := range created {
		for _, name := range names {
			victim.eventually("the restarted node to know "+name, func() bool { return victim.Image().Topic(name) != nil })
		}
	}
	survivors[0].eventually("everything in sync", func() bool { return underReplicated(survivors[0].Image()) == 0 })
}

func TestDeadNodeIsNotWaitedForTwice(t *testing.T) {
	all := trio(t)
	all[0].create(plain("before"))
	victim := others(all, leaderOf(t, all))[0]
	victim.crash()
	rest := others(all, victim)
	rest[0].create(plain("one"))
	least := patience
	for n := range 3 {
		begin := time.Now()
		rest[0].create(meta.NewTopic{Name: fmt.Sprint("two", n), Partitions: 1, ReplicationFactor: 1})
		least = min(least, time.Since(begin))
	}
	if least > settleTimeout { // each has waited for the dead node in vain
		t.Fatalf("each of three topics took more than %s", settleTimeout)
	}
	rest[0].eventually("fenced", func() bool { n, _ := rest[0].Image().Node(victim.Self()); return n.Fenced })
	served(t, rest, "two0")
	victim = victim.restart()
	victim.eventually("a ready node not to be fenced", func() bool { n, _ := victim.Image().Node(victim.Self()); return !n.Fenced })
	served(t, append(rest, victim), "two2")
}

func TestStoppedNodeIsFencedAtOnce(t *testing.T) {
	all := trio(t)
	victim := leaderOf(t, all)
	rest := others(all, victim)
	for try := 1; ; try++ {
		victim.stop()
		gone := time.Now()
		rest[0].eventually("fenced", func() bool { n, _ := rest[0].Image().Node(victim.Self()); return n.Fenced })
		took := time.Since(gone)
		if took <= fenceAfter {
			break
		}
		if try == 5 { // a machine that stands still for seconds does not do so each time
			t.Fatalf("the others heard of it after %s: by its silence, not by its goodbye", took)
		}
		t.Logf("the others heard of it after %s", took)
		victim = victim.restart()
	}
	rest[1].create(plain("t"))
	served(t, rest, "t")
	victim = victim.restart()
	served(t, append(rest, victim), "t")
}

// TestRegistrationOutlivesAnEarlierSilence: the leader has waited in vain for a node's answer, and was about to say that it is gone, when it registered.
func TestRegistrationOutlivesAnEarlierSilence(t *testing.T) {
	beside(t)
	m := start(t, options(1))
	l, gone := m.lead, meta.Node{ID: 2, Incarnation: "x"}
	asked := time.Now()
	l.plan.Lock() // the registration is on its way
	fenced := make(chan bool)
	go func() { fenced <- l.fence(t.Context(), gone, asked) }()
	l.setDown(gone.Server(), false)
	l.plan.Unlock()
	if <-fenced {
		t.Error("a node that has registered is said to be gone, as it was silent before")
	}
	if !l.fence(t.Context(), gone, time.Now()) {
		t.Error("a node that was not heard of since is not said to be gone")
	}
}

func TestAllRestart(t *testing.T) {
	beside(t)
	all := trio(t)
	all[1].create(plain("t"), plain(meta.OffsetsTopic))
	id := all[0].Image().Topic("t").ID
	for _, m := range all {
		m.crash()
	}
	again := make([]*member, len(all))
	for i, m := range all {
		again[i] = launch(t, m.o)
	}
	for _, m := range again {
		m.awaitReady()
		if topic := m.Image().Topic("t"); topic == nil || topic.ID != id {
			t.Fatalf("node %d is ready without the topic", m.Self())
		}
	}
	again[0].create(plain("after"))
	served(t, again, "after")
	again[0].eventually("everything in sync", func() bool { return underReplicated(again[0].Image()) == 0 })
	served(t, again, "t")
}

func TestChangedAddresses(t *testing.T) {
	beside(t)
	all := trio(t)
	all[0].create(plain("t"))
	moved := others(all, leaderOf(t, all))[0]
	moved.stop()
	moved.o.Listen = "127.0.0.1:0"
	moved = moved.restart()
	for _, m := range others(all, all[slices.IndexFunc(all, func(m *member) bool { return m.Self() == moved.Self() })]) {
		m.eventually("the new address", func() bool { n, _ := m.Image().Node(moved.Self()); return n.Addr == moved.Addr() })
	}
	all[slices.IndexFunc(all, func(m *member) bool { return m.Self() == moved.Self() })] = moved
	all[0].eventually("everything in sync", func() bool { return underReplicated(all[0].Image()) == 0 })
	moved.create(plain("u"))
	served(t, all, "u")
}

func TestJoinUnderTakenID(t *testing.T) {
	beside(t)
	a := start(t, options(1))
	start(t, options(2, a.Addr()))
	c := launch(t, options(2, a.Addr()))
	select {
	case <-c.done:
	case <-time.After(patience):
		t.Fatal("a second node 2 was let in")
	}
	if !errors.Is(c.err, ErrRefused) || !strings.Contains(c.err.Error(), "another data directory") {
		t.Fatal(c.err)
	}
}

func TestOtherClusterIsRefused(t *testing.T) {
	a, b := start(t, options(1)), start(t, options(2))
	if a.ClusterID() == b.ClusterID() {
		t.Fatal("two clusters have one id")
	}
	// Node 1 is told that node 2, of another cluster, is its peer.
	if err := a.id.change(func(f *identityJSON) { f.Peers = []peer{{ID: 2, Addr: b.Addr()}} }); err != nil {
		t.Fatal(err)
	}
	err := a.pool.call(context.Background(), 2, opPing, nil, nil)
	if !errors.Is(err, shard.ErrRefused) {
		t.Fatal(err)
	}
}

// A node whose directory is lost comes back under its id as a new member, is brought into the
// metadata group and its shards, and gets its data.
func TestLostDirectoryIsReplaced(t *testing.T) {
	beside(t)
	all := trio(t)
	all[0].create(plain("t"), meta.NewTopic{Name: "alone", Partitions: 6, ReplicationFactor: 1})
	fill(t, all, "t", 20)
	victim := others(all, leaderOf(t, all))[1]
	rest := others(all, victim)
	victim.crash()
	o := options(victim.Self(), rest[0].Addr())
	fresh := start(t, o)
	all = append(rest, fresh)
	rest[0].eventually("the new directory in all groups", func() bool {
		if voters(leaderOf(t, rest)) != 3 || underReplicated(rest[0].Image()) != 0 {
			return false
		}
		for id, r := range fresh.replicaMap() {
			if s := rest[0].Image().Shard(id); !s.Lost && !slices.ContainsFunc(r.group.Replicas(), func(x shard.Replica) bool { return x.Server == fresh.id.server() && x.Voter }) {
				return false
			}
		}
		return len(fresh.replicaMap()) > 0
	})
	topic := fresh.Image().Topic("t")
	for _, p := range topic.Partitions {
		part := func(m *member) *partition.Partition { x, _, _ := m.Local(topic.ID, p.Index); return x }
		fresh.eventually("the records", func() bool {
			mine, theirs := part(fresh), part(rest[0])
			return mine != nil && theirs != nil && mine.End() == theirs.End() && mine.End() == 20
		})
	}
	if lost := len(lostShards(fresh.Image())); lost != 2 {
		t.Errorf("%d shards are lost, want the two single-replica ones of the node", lost)
	}
	fresh.create(meta.NewTopic{Name: "alone2", Partitions: 6, ReplicationFactor: 1})
	served(t, all, "alone2")
}

// fill appends n records to each partition of a topic.
func fill(t *testing.T, all []*member, topic string, n int) {
	t.Helper()
	tp := all[0].Image().Topic(topic)
	for _, p := range tp.Partitions {
		appendRecords(t, all, partition.Key{Topic: tp.ID, Index: p.Index}, n, time.Now().UnixMilli())
	}
}

// producers gives each call of appendRecords a producer of its own.
var producers atomic.Int64

// appendRecords appends n records, one by one and each once, wherever the partition's leader is: leadership goes back to preferred leaders
// meanwhile. What was not answered is sent again with its sequence, as an idempotent producer does.
func appendRecords(t *testing.T, all []*member, key partition.Key, n int, timestamp int64) {
	t.Helper()
	producer := producers.Add(1)
	for i := range n {
		b := record.NewBuilder(record.BuilderOptions{ProducerID: producer, BaseSequence: int32(i)})
		b.Add(timestamp, nil, bytes.Repeat([]byte("x"), 100), nil)
		entry := partition.EncodeAppend([]partition.Append{{Key: key, Batches: b.Build(nil)}})
		all[0].without("a leader to take a record", func() string {
			var refused []string
			for _, m := range all {
				err := m.append(key, slices.Clone(entry))
				if err == nil {
					return ""
				}
				refused = append(refused, fmt.Sprintf("node %d: %v", m.Self(), err))
			}
			return strings.Join(refused, ", ")
		})
	}
}

var errNoReplica = errors.New("no replica")

// append proposes an entry with one append. Without an error it is committed.
func (m *member) append(key partition.Key, entry []byte) error {
	_, g, ok := m.Local(key.Topic, key.Index)
	if !ok {
		return errNoReplica
	}
	out, err := g.Propose(entry).Wait(context.Background())
	if err != nil {
		return err
	}
	return out.([]partition.AppendResult)[0].Err
}

func TestRetention(t *testing.T) {
	m := start(t, options(1))
	m.create(meta.NewTopic{Name: "old", Partitions: 1, ReplicationFactor: 1, Configs: map[string]string{"retention.ms": "1000"}},
		meta.NewTopic{Name: "kept", Partitions: 1, ReplicationFactor: 1, Configs: map[string]string{"retention.ms": "1000", "cleanup.policy": "compact"}})
	hourAgo := time.Now().Add(-time.Hour).UnixMilli()
	for _, name := range []string{"old", "kept"} {
		appendRecords(t, []*member{m}, partition.Key{Topic: m.Image().Topic(name).ID}, 5, hourAgo)
	}
	old, _, _ := m.Local(m.Image().Topic("old").ID, 0)
	kept, _, _ := m.Local(m.Image().Topic("kept").ID, 0)
	m.eventually("the expired records to go", func() bool { return old.Start() == 5 })
	if kept.Start() != 0 {
		t.Fatal("a compacted topic lost records by retention")
	}
}

func TestDataDirectoryKeepsItsOwner(t *testing.T) {
	o := options(1)
	m := start(t, o)
	if _, err := Open(o); !errors.Is(err, ErrInUse) {
		t.Fatalf("opened twice: %v", err)
	}
	m.stop()
	o.Self.ID = 2
	if _, err := Open(o); !errors.Is(err, ErrOtherNode) {
		t.Fatalf("opened as another node: %v", err)
	}
	for _, name := range []string{identityFile, identityCopy} {
		removeFile(t, o.FS, "/data/"+name)
	}
	if _, err := Open(o); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("opened without identity: %v", err)
	}
	if err := vfs.WriteFile(o.FS, "/data/"+identityFile, []byte(`{"version":9,"nodeId":2,"incarnation":"x"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errors.Is(err, ErrNewer) {
		t.Fatalf("opened a newer directory: %v", err)
	}
}

func TestOpenedAndNeverRun(t *testing.T) {
	o := options(1)
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, o)
}
