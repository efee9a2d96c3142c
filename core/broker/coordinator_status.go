package broker

import (
	"fmt"
	"slices"
	"strings"

	"github.com/VictoriaMetrics/metrics"

	"sluice/core/group"
)

// groupMetrics are the metrics of a node's coordinators.
type groupMetrics struct {
	set                          *metrics.Set
	loads, failures, strange     *metrics.Counter
	records, writes              *metrics.Counter
	restatements                 *metrics.Counter
	rebalances, commits, expired *metrics.Counter
	loadSeconds                  *metrics.Histogram
}

// newGroupMetrics makes the metrics; total tells what all coordinators of the node hold together.
func newGroupMetrics(total func() group.Stats) *groupMetrics {
	set := metrics.NewSet()
	for state := group.Empty; state <= group.Stable; state++ {
		name := fmt.Sprintf("sluice_group_groups{state=%q}", state)
		set.NewGauge(name, func() float64 { return float64(total().Groups[state]) })
	}
	set.NewGauge("sluice_group_members", func() float64 { return float64(total().Members) })
	set.NewGauge("sluice_group_offsets", func() float64 { return float64(total().Offsets) })
	return &groupMetrics{
		set:          set,
		loads:        set.NewCounter("sluice_group_coordinator_loads_total"),
		failures:     set.NewCounter("sluice_group_coordinator_failures_total"),
		strange:      set.NewCounter("sluice_group_coordinator_strange_records_total"),
		records:      set.NewCounter("sluice_group_written_records_total"),
		writes:       set.NewCounter("sluice_group_writes_total"),
		restatements: set.NewCounter("sluice_group_restatements_total"),
		rebalances:   set.NewCounter("sluice_group_rebalances_total"),
		commits:      set.NewCounter("sluice_group_offset_commits_total"),
		expired:      set.NewCounter("sluice_group_offset_expirations_total"),
		loadSeconds:  set.NewHistogram("sluice_group_coordinator_load_seconds"),
	}
}

// count adds what has happened between two states of one coordinator.
func (m *groupMetrics) count(before, after group.Stats) {
	m.rebalances.Add(int(after.Rebalances - before.Rebalances))
	m.commits.Add(int(after.Commits - before.Commits))
	m.expired.Add(int(after.Expired - before.Expired))
}

// total adds up what the coordinators of this node hold.
func (c *coordinators) total() group.Stats {
	var sum group.Stats
	for _, s := range c.all() {
		if p, ok := s.status(); ok {
			sum.Add(p.stats)
		}
	}
	return sum
}

// groupStatus is the part of /status that tells about groups. Counts of what has happened begin with each coordinator's term.
type groupStatus struct {
	Groups     map[string]int    `json:"groups"` // by state
	Members    int               `json:"members"`
	Offsets    int               `json:"offsets"`
	Rebalances int64             `json:"rebalances"`
	Commits    int64             `json:"commits"`
	Partitions []partitionStatus `json:"partitions"`
}

// partitionStatus is one coordinator of this node.
type partitionStatus struct {
	Partition int32  `json:"partition"`
	Term      uint64 `json:"term"`
	Loading   bool   `json:"loading,omitempty"`
	stats     group.Stats
}

// Status lists the coordinators of this node.
func (c *coordinators) Status() any {
	sum := c.total()
	status := groupStatus{
		Groups: map[string]int{}, Members: sum.Members, Offsets: sum.Offsets, Rebalances: sum.Rebalances, Commits: sum.Commits,
	}
	for state, n := range sum.Groups {
		if n > 0 {
			status.Groups[group.State(state).String()] = n
		}
	}
	for _, s := range c.all() {
		if p, ok := s.status(); ok {
			status.Partitions = append(status.Partitions, p)
		}
	}
	slices.SortFunc(status.Partitions, func(a, b partitionStatus) int { return int(a.Partition - b.Partition) })
	return status
}

// lower is how names of states and types are compared.
func lower(s string) string { return strings.ToLower(s) }
