package controller

import (
	"io"
	"slices"

	"github.com/VictoriaMetrics/metrics"

	"sluice/core/meta"
	"sluice/core/partition"
)

type controllerMetrics struct {
	set                              *metrics.Set
	commands, commandErrors, retries *metrics.Counter
	unsettled                        *metrics.Counter // answered before every node had come so far
	dutyErrors, retentions           *metrics.Counter
	renewed, reopened                *metrics.Counter
}

func newControllerMetrics(c *Controller) *controllerMetrics {
	s := metrics.NewSet()
	m := &controllerMetrics{
		set:           s,
		commands:      s.NewCounter("sluice_controller_commands_total"),
		commandErrors: s.NewCounter("sluice_controller_command_errors_total"),
		retries:       s.NewCounter("sluice_controller_command_retries_total"),
		unsettled:     s.NewCounter("sluice_controller_unsettled_commands_total"),
		dutyErrors:    s.NewCounter("sluice_controller_shard_duty_errors_total"),
		retentions:    s.NewCounter("sluice_controller_retention_starts_total"),
	}
	gauge := func(name string, f func(*meta.Image) int) {
		s.NewGauge("sluice_controller_"+name, func() float64 { return float64(f(c.Image())) })
	}
	gauge("topics", (*meta.Image).TopicCount)
	gauge("partitions", (*meta.Image).PartitionCount)
	gauge("shards", func(i *meta.Image) int { return len(i.Shards()) })
	gauge("nodes", func(i *meta.Image) int { return len(i.Nodes()) })
	gauge("live_nodes", liveNodes)
	gauge("under_replicated_partitions", underReplicated)
	gauge("metadata_index", func(i *meta.Image) int { return int(i.Index()) })
	gauge("leader", func(*meta.Image) int { return boolToInt(c.leads()) })
	disk := func(name string, f func(*DiskState) float64) {
		s.NewGauge("sluice_controller_"+name, func() float64 {
			if own := c.disks.own(); own != nil {
				return f(own)
			}
			return 0
		})
	}
	disk("free_bytes", func(d *DiskState) float64 { return float64(d.FreeBytes) })
	disk("reserve_bytes", func(d *DiskState) float64 { return float64(d.ReserveBytes) })
	disk("low_disk", func(d *DiskState) float64 { return float64(boolRank(d.Low)) })
	s.NewGauge("sluice_repair_stopped_replicas", func() float64 { return float64(len(c.heals.status())) })
	m.renewed, m.reopened = s.NewCounter("sluice_repair_renewed_replicas_total"), s.NewCounter("sluice_repair_reopened_replicas_total")
	s.NewGauge("sluice_controller_low_disks", func() float64 { return float64(c.disks.count()) })
	s.NewGauge("sluice_controller_commands_applied", func() float64 { return float64(c.machine.applied.Load()) })
	return m
}

func boolToInt(b bool) int { return int(boolRank(b)) }

func (c *Controller) leads() bool {
	leader, ok := c.Leader()
	return ok && leader == c.Self()
}

func liveNodes(i *meta.Image) int {
	n := 0
	for _, node := range i.Nodes() {
		if !node.Fenced {
			n++
		}
	}
	return n
}

func underReplicated(i *meta.Image) int {
	n := 0
	for _, s := range i.Shards() {
		if len(s.ISR) < len(s.Voters) {
			n += s.Partitions
		}
	}
	return n
}

// Metrics returns the controller's metrics.
func (c *Controller) Metrics() *metrics.Set { return c.metrics.set }

// WritePrometheus writes the metrics of the controller, and of the shards on this node and their
// partitions.
func (c *Controller) WritePrometheus(w io.Writer) {
	c.metrics.set.WritePrometheus(w)
	c.scrub.Metrics().WritePrometheus(w)
	c.compact.set.WritePrometheus(w)
	c.node.WritePrometheus(w)
	for _, s := range c.Sets() {
		s.WritePrometheus(w)
	}
}

// Status is the controller's part of /status.
type Status struct {
	ClusterID   string
	Node        meta.NodeID
	Incarnation string
	Leader      meta.NodeID
	Index       uint64
	Topics      int
	Partitions  int
	Ready       bool
	Nodes       []meta.Node
	Disks       []NodeDisk
	Scrub       partition.ScrubStatus
	Compaction  CompactionStatus
	// Healing are the replicas of this node that have stopped and are brought back.
	Healing  []HealStatus `json:",omitempty"`
	Shards   []ShardStatus
	Moves    []MoveStatus `json:",omitempty"`
	Metadata any
}

// ShardStatus is one shard as this node sees it. Replica is nil when it has none here.
type ShardStatus struct {
	ID         meta.ShardID
	Replicas   []meta.NodeID
	ISR        []meta.NodeID
	Leader     meta.NodeID
	Term       uint64
	Partitions int
	Lost       bool `json:",omitempty"`
	Replica    any  `json:",omitempty"`
	Data       any  `json:",omitempty"` // its partitions
}

// Status describes the metadata for /status.
func (c *Controller) Status() any {
	image := c.Image()
	s := Status{
		ClusterID: c.ClusterID(), Node: c.Self(), Incarnation: c.o.Self.Incarnation, Leader: meta.NoNode,
		Index: image.Index(), Topics: image.TopicCount(), Partitions: image.PartitionCount(), Nodes: slices.Clone(image.Nodes()),
	}
	if leader, ok := c.Leader(); ok {
		s.Leader = leader
	}
	s.Moves = c.Moves()
	s.Disks, s.Scrub = c.disks.all(), c.scrub.Status()
	s.Compaction = c.compact.status()
	s.Healing = c.heals.status()
	select {
	case <-c.ready:
		s.Ready = true
	default:
	}
	if g := c.group(); g != nil {
		s.Metadata = g.Status()
	}
	for _, sh := range image.Shards() {
		s.Shards = append(s.Shards, c.shardStatus(sh))
	}
	return s
}

func (c *Controller) shardStatus(s *meta.Shard) ShardStatus {
	out := ShardStatus{ID: s.ID, Replicas: s.Nodes(), ISR: c.ISR(s.ID), Leader: meta.NoNode, Partitions: s.Partitions, Lost: c.Image().HasLost(s)}
	if leader, term, ok := c.LeaderOf(s.ID); ok {
		out.Leader, out.Term = leader, term
	}
	if r := c.replica(s.ID); r != nil {
		out.Replica, out.Data = r.group.Status(), r.set.Status()
	}
	return out
}
