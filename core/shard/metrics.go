package shard

import (
	"fmt"
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/core/meta"
	"sluice/core/raftlog"
)

type groupMetrics struct {
	set           *metrics.Set
	syncSeconds   *metrics.Histogram
	syncs         *metrics.Counter
	logBytes      *metrics.Counter
	commitSeconds *metrics.Histogram
	waitSeconds   *metrics.Histogram
	readToSend    *metrics.Counter
	leaderChanges *metrics.Counter
	forgotten     *metrics.Counter
	dropped       *metrics.Counter
	checkpoints   *metrics.Counter
	pointBytes    *metrics.Counter
}

func newGroupMetrics(g *Group) *groupMetrics {
	s := metrics.NewSet()
	name := func(what string) string { return fmt.Sprintf(`sluice_shard_%s{shard="%d"}`, what, g.id) }
	m := &groupMetrics{
		set:           s,
		syncSeconds:   s.NewHistogram(name("log_sync_seconds")),
		syncs:         s.NewCounter(name("log_syncs_total")),
		logBytes:      s.NewCounter(name("log_written_bytes_total")),
		commitSeconds: s.NewHistogram(name("commit_seconds")),
		waitSeconds:   s.NewHistogram(name("propose_wait_seconds")),
		readToSend:    s.NewCounter(name("log_read_to_send_bytes_total")),
		leaderChanges: s.NewCounter(name("leader_changes_total")),
		forgotten:     s.NewCounter(name("forgotten_confirmations_total")),
		dropped:       s.NewCounter(name("stale_connections_total")),
		checkpoints:   s.NewCounter(name("checkpoints_total")),
		pointBytes:    s.NewCounter(name("checkpoint_written_bytes_total")),
	}
	gauge := func(what string, fn func() float64) { s.NewGauge(name(what), fn) }
	gauge("applied_entries_total", func() float64 { return float64(g.fsm.entries.Load()) })
	gauge("applied_bytes_total", func() float64 { return float64(g.fsm.bytes.Load()) })
	gauge("in_flight_bytes", func() float64 { _, n := g.queue.inFlight(); return float64(n) })
	gauge("window_bytes", func() float64 { return float64(g.queue.windowBytes()) })
	gauge("serving", func() float64 { return truth(g.isServing()) })
	gauge("doubtful", func() float64 { return truth(g.doubtful()) })
	gauge("failed", func() float64 { return truth(g.Err() != nil) })
	return m
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m *groupMetrics) sync(took time.Duration, bytes int64) {
	m.syncs.Inc()
	m.logBytes.AddInt64(bytes)
	m.syncSeconds.Update(took.Seconds())
}

func (m *groupMetrics) checkpoint(bytes int64) {
	m.checkpoints.Inc()
	m.pointBytes.AddInt64(bytes)
}

func (g *Group) isServing() bool {
	_, ok := g.Serving()
	return ok
}

// WritePrometheus writes the group's metrics.
func (g *Group) WritePrometheus(w io.Writer) { g.metrics.set.WritePrometheus(w) }

// WritePrometheus writes the metrics of all open groups.
func (n *Node) WritePrometheus(w io.Writer) {
	for _, g := range n.Groups() {
		g.WritePrometheus(w)
	}
}

// GroupStatus describes a replica for /status.
type GroupStatus struct {
	Shard      meta.ShardID
	State      string
	Leader     meta.NodeID
	Term       uint64
	Serving    bool
	Complete   bool
	Applied    uint64
	Commit     uint64
	Checkpoint uint64
	Log        raftlog.Info
	Replicas   []ReplicaStatus
	InFlight   int
	Error      string `json:",omitempty"`
}

// ReplicaStatus is one line of a GroupStatus.
type ReplicaStatus struct {
	Server    string
	Voter     bool
	InSync    bool
	LastIndex uint64
}

// Status describes the replica for /status: a GroupStatus.
func (g *Group) Status() any {
	leader, term, _ := g.Leader()
	count, _ := g.queue.inFlight()
	index, _ := g.points.current()
	s := GroupStatus{
		Shard: g.id, State: g.raft().State().String(), Leader: leader, Term: term,
		Serving: g.isServing(), Complete: g.sm.Complete(), Applied: g.AppliedIndex(),
		Commit: g.CommitIndex(), Checkpoint: index, Log: g.log.Info(), InFlight: count,
	}
	for _, r := range g.Replicas() {
		s.Replicas = append(s.Replicas, ReplicaStatus{r.Server.String(), r.Voter, r.InSync, r.LastIndex})
	}
	if err := g.Err(); err != nil {
		s.Error = err.Error()
	}
	return s
}

// Status describes all open groups for /status.
func (n *Node) Status() any {
	all := []any{}
	for _, g := range n.Groups() {
		all = append(all, g.Status())
	}
	return all
}
