package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sluice/loadtest"
)

// errMissed is returned when a measurement misses what it demands: exit code 1.
var errMissed = errors.New("the cluster did not do what it is to do")

// nodesFlags are those of loads that run a cluster of their own, or kill and start the nodes of one that runs.
func nodesFlags(c *cobra.Command, n *loadtest.Nodes) {
	f := c.Flags()
	f.StringVar(&n.Cluster, "cluster", "", "data directory of a running deploy/cluster.sh (default: an own cluster of three)")
	f.StringVar(&n.Binary, "sluice", besideUs("sluice"), "the sluice program, for an own cluster")
	f.StringVar(&n.Data, "data", "", "directory of an own cluster (default: a temporary one, removed at the end)")
	f.IntVar(&n.Port, "port", 28000, "first port of an own cluster; 30 are used")
	n.Count = 3
}

// besideUs is a program in the directory of this one.
func besideUs(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// scratch makes the directory of an own cluster when none is given; remove removes that one.
func scratch(n *loadtest.Nodes) (remove func(), err error) {
	if n.Cluster != "" || n.Data != "" {
		return func() {}, nil
	}
	if n.Data, err = os.MkdirTemp("", "loadtest-"); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	return func() { _ = os.RemoveAll(n.Data) }, nil
}

func catchUpCommand(o *common) *cobra.Command {
	l := loadtest.CatchUp{}
	var megabytes, retention int64
	c := &cobra.Command{
		Use: "catchup", Short: "Kill a node, write much, start it again: what does its catch-up cost the live traffic?",
		Long: "Starts three core nodes (or takes those of deploy/cluster.sh), kills the last, writes --megabytes, starts it again and waits until it is in sync for every\n" +
			"partition. All the while records are produced at --rate with acks=all and read; their latencies count from the moment they were meant to be produced.",
		RunE: func(c *cobra.Command, _ []string) error {
			remove, err := scratch(&l.Nodes)
			if err != nil {
				return err
			}
			defer remove()
			l.Rate, l.Phase, l.Progress, l.Bytes, l.Retention = o.rate, o.until(0), o.progress(), megabytes*1e6, retention*1e6
			if l.Rate == 0 {
				l.Rate = 200
			}
			r, err := l.Run(c.Context())
			if err != nil {
				return err
			}
			if err := o.printPhases(c.OutOrStdout(), r, r.Phases); err != nil {
				return err
			}
			if o.out == "text" {
				fmt.Fprintf(c.OutOrStdout(), "written %.0f MB at %.0f MB/s; in sync %.1f s after the start (%.0f MB/s); fetched %.0f MB, %.0f of them before it was killed again\n",
					r.WrittenMB, r.WriteMBPerS, r.CatchUpSeconds, r.CatchUpMBPerS, r.FetchedMB, r.FetchedBeforeMB)
			}
			return missed(r.Failures)
		},
	}
	nodesFlags(c, &l.Nodes)
	f := c.Flags()
	f.Int64Var(&megabytes, "megabytes", 2000, "written while the node is away")
	f.IntVarP(&l.Size, "size", "s", 1000, "bytes of a record of the live traffic")
	f.Int32Var(&l.Partitions, "partitions", 12, "of the topic that is written while the node is away")
	f.BoolVar(&l.Interrupt, "interrupt", false, "kill the node again in the middle of its catch-up")
	f.Int64Var(&retention, "retention-megabytes", 0, "retention.bytes of a partition of that topic: what the node had is removed while it is away")
	return c
}

func missed(failures []string) error {
	if len(failures) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errMissed, strings.Join(failures, "; "))
}

// printPhases prints a result as JSON, or its phases as a table.
func (o *common) printPhases(w io.Writer, whole any, phases []loadtest.PhaseResult) error {
	switch o.out {
	case "json":
		return json.NewEncoder(w).Encode(whole)
	case "text":
	default:
		return fmt.Errorf("%w: output %q: json or text are possible", errUsage, o.out)
	}
	fmt.Fprintf(w, "%-34s %6s %7s %6s  %-26s %-20s  %s\n", "phase", "s", "sent", "errors", "produce ms p50/p99/max", "end to end p50/p99", "peak RSS MB (files)")
	for _, p := range phases {
		fmt.Fprintf(w, "%-34s %6.1f %7d %6d  %-26s %-20s  %s\n", p.Phase, p.Seconds, p.Sent, p.Errors, milliseconds(p.ProduceMs, "p50", "p99", "max"),
			milliseconds(p.EndToEndMs, "p50", "p99"), peaks(p.Peak))
		if p.FirstError != "" {
			fmt.Fprintf(w, "    first error: %s\n", p.FirstError)
		}
		if len(p.Seen) > 0 {
			fmt.Fprintf(w, "    seen: %s\n", counts(p.Seen))
		}
	}
	return nil
}

func milliseconds(m map[string]float64, names ...string) string {
	var list []string
	for _, name := range names {
		list = append(list, strconv.FormatFloat(m[name], 'f', 1, 64))
	}
	return strings.Join(list, " / ")
}

func peaks(m map[string]loadtest.Peak) string {
	var list []string
	for name, p := range m {
		list = append(list, fmt.Sprintf("%s %.0f (%d)", name, p.RSSMB, p.Files))
	}
	slices.Sort(list)
	return strings.Join(list, "  ")
}

func counts(m map[string]int64) string {
	var list []string
	for name, n := range m {
		list = append(list, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func overloadCommand(o *common) *cobra.Command {
	var l loadtest.Overload
	var rssMax int64
	var gateway bool
	c := &cobra.Command{
		Use: "overload", Short: "Bad clients of every kind, while a well-behaved pair measures its own latency",
		Long: "Starts three core nodes (or takes those of deploy/cluster.sh) and does to them what bad clients do, one scenario after another, while a producer and a consumer\n" +
			"at --rate measure their latency from the moment a record was meant to be produced, and the nodes' memory is sampled. Exit code 1 when a node takes more than\n" +
			"--rss-max-megabytes, the well-behaved pair gets an error, or its p99 is above --p99-max.\n" +
			"Scenarios: " + strings.Join(loadtest.OverloadScenarios(), ", "),
		RunE: func(c *cobra.Command, _ []string) error {
			remove, err := scratch(&l.Nodes)
			if err != nil {
				return err
			}
			defer remove()
			l.Rate, l.Phase, l.Progress, l.RSSMax = o.rate, o.until(0), o.progress(), rssMax*1e6
			if l.Rate == 0 {
				l.Rate = 50
			}
			for _, name := range l.Scenarios {
				if !slices.Contains(loadtest.OverloadScenarios(), name) {
					return fmt.Errorf("%w: there is no scenario %q; there are %s", errUsage, name, strings.Join(loadtest.OverloadScenarios(), ", "))
				}
			}
			run := l.Run
			if gateway {
				run = l.RunGateway
			}
			r, err := run(c.Context())
			if err != nil {
				return err
			}
			if err := o.printPhases(c.OutOrStdout(), r, r.Phases); err != nil {
				return err
			}
			return missed(r.Failures)
		},
	}
	nodesFlags(c, &l.Nodes)
	f := c.Flags()
	f.StringSliceVar(&l.Scenarios, "scenario", nil, "only these")
	f.BoolVar(&gateway, "gateway", false, "a gateway of its own instead of a cluster; its scenarios are mqtt-... and http-...")
	f.IntVar(&l.Connections, "connections", 10_000, "of the scenarios connections and mqtt-connections")
	f.IntVarP(&l.Size, "size", "s", 200, "bytes of a record of the well-behaved pair")
	f.Int64Var(&rssMax, "rss-max-megabytes", 2000, "that a node may take")
	f.DurationVar(&l.P99Max, "p99-max", 0, "that the well-behaved producer may see (default: not judged)")
	return c
}

// overloadClientsCommand is what overload starts for the clients of a scenario.
func overloadClientsCommand() *cobra.Command {
	return &cobra.Command{Use: loadtest.AttackCommand, Hidden: true, RunE: func(c *cobra.Command, _ []string) error {
		var a loadtest.Attack
		if err := json.NewDecoder(c.InOrStdin()).Decode(&a); err != nil {
			return fmt.Errorf("%w: read the attack: %v", errUsage, err)
		}
		seen, err := a.Run(c.Context())
		if err != nil {
			return err
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(seen)
	}}
}
