package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sluice/core/controller"
	"sluice/core/meta"
)

func clusterStatusCommand() *cobra.Command {
	var d door
	c := &cobra.Command{
		Use: "status", Short: "Show nodes, shards, what moves and how far it is", Args: args(cobra.NoArgs),
		Example: "  sluice cluster status --http 10.0.0.1:9644,10.0.0.2:9644",
	}
	d.flags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		o, err := d.overview(c)
		if err != nil {
			return err
		}
		if wantsJSON(c) {
			return printJSON(c, o)
		}
		return printOverview(c, o)
	}
	return c
}

func printOverview(c *cobra.Command, o *controller.Overview) error {
	out := c.OutOrStdout()
	fmt.Fprintf(out, "cluster %s: %s, %s, balanced by itself: %s\n\n", o.Cluster, movingText(o), balancingText(o), yesNo(o.AutoBalance))
	nodes := newTable(c, "NODE", "STATE", "ADDRESS", "KAFKA", "RACK", "METADATA", "REPLICAS", "LEADERS", "DISK FREE", "VERSION")
	for _, n := range o.Nodes {
		free := "?"
		if n.DiskFreeBytes != nil {
			free = byteText(int64(*n.DiskFreeBytes))
		}
		nodes.row(id(n.ID), stateText(&n), n.Addr, n.Kafka, dash(n.Rack), n.Metadata, strconv.Itoa(n.Replicas), strconv.Itoa(n.Leaders), free, dash(n.Version))
	}
	if err := nodes.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	shards := newTable(c, "SHARD", "PARTITIONS", "LEADER", "REPLICAS", "IN SYNC", "MOVES")
	for _, s := range o.Shards {
		shards.row(strconv.Itoa(int(s.ID)), strconv.Itoa(s.Partitions), leaderText(&s), joinNodes(s.Replicas), joinNodes(s.InSync), movesText(&s))
	}
	if err := shards.flush(); err != nil {
		return err
	}
	if text := blockedText(o); text != "" {
		fmt.Fprintf(out, "\n%s\n", text)
	}
	return nil
}

func id(n meta.NodeID) string { return strconv.Itoa(int(n)) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func balancingText(o *controller.Overview) string {
	if o.Balancing {
		return "balancing"
	}
	return "not balancing"
}

func stateText(n *controller.NodeOverview) string {
	if n.Draining {
		return n.State + ", draining"
	}
	return n.State
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func leaderText(s *controller.ShardOverview) string {
	switch {
	case s.Lost:
		return "lost"
	case s.Leader == meta.NoNode:
		return "none"
	}
	return id(s.Leader)
}

func joinNodes(list []meta.NodeID) string {
	ints := make([]int32, len(list))
	for i, n := range list {
		ints[i] = int32(n)
	}
	return dash(joinInts(ints))
}

// movesText says what comes and goes, and what the copies lack.
func movesText(s *controller.ShardOverview) string {
	var parts []string
	if len(s.Adding) > 0 {
		parts = append(parts, "+"+joinNodes(s.Adding))
	}
	if len(s.Removing) > 0 {
		parts = append(parts, "-"+joinNodes(s.Removing))
	}
	for _, x := range s.Copies {
		switch {
		case x.BytesLeft > 0:
			parts = append(parts, fmt.Sprintf("%d: %s left at %s/s", x.Node, byteText(x.BytesLeft), byteText(x.BytesPerSecond)))
		case x.EntriesLeft > 0:
			parts = append(parts, fmt.Sprintf("%d: %d entries behind", x.Node, x.EntriesLeft))
		}
	}
	return dash(strings.Join(parts, " "))
}

// blockedText says which nodes cannot be emptied.
func blockedText(o *controller.Overview) string {
	shards := make(map[meta.NodeID][]int32)
	var nodes []meta.NodeID
	for _, b := range o.Blocked {
		if !slices.Contains(nodes, b.Node) {
			nodes = append(nodes, b.Node)
		}
		shards[b.Node] = append(shards[b.Node], int32(b.Shard))
	}
	var lines []string
	for _, n := range nodes {
		lines = append(lines, fmt.Sprintf("node %d cannot be emptied: no other node can take its replicas of shards %s; add a node", n, joinInts(shards[n])))
	}
	return strings.Join(lines, "\n")
}
