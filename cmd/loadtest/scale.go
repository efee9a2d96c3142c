package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sluice/loadtest/scale"
)

func scaleCommand(o *common) *cobra.Command {
	var s scale.Config
	var pidFiles []string
	c := &cobra.Command{
		Use: "scale", Short: "What partitions cost: memory, idle processor time, files, times to create, start, fail over",
		Long: "Starts three nodes of --sluice for each of --sizes, creates so many partitions at replication factor 3, and measures; or, without --sluice, looks at the\n" +
			"cluster at --brokers, whose processes on this machine --pid-files name (nothing is killed then).",
		Example: "  loadtest scale --sluice bin/sluice --data /tmp/scale -o text\n" +
			"  loadtest scale -b 127.0.0.1:9092,127.0.0.1:9192,127.0.0.1:9292 --pid-files .data/cluster/core-1.pid,... --sizes 1000",
		RunE: func(c *cobra.Command, _ []string) error {
			s.Brokers, s.Progress = o.brokers, o.progress()
			for _, name := range pidFiles {
				pid, err := readPID(name)
				if err != nil {
					return err
				}
				s.PIDs = append(s.PIDs, pid)
			}
			r, err := s.Run(c.Context())
			if len(r.Rows) == 0 {
				return err
			}
			if o.out == "text" {
				return errors.Join(r.Text(c.OutOrStdout()), err)
			}
			e := json.NewEncoder(c.OutOrStdout())
			e.SetIndent("", " ")
			return errors.Join(e.Encode(r), err)
		},
	}
	f := c.Flags()
	f.StringVar(&s.Sluice, "sluice", "", "program to run three core nodes of; empty: measure the cluster at --brokers")
	f.StringSliceVar(&s.Args, "node-args", nil, "further arguments of each node")
	f.StringVar(&s.Data, "data", ".data/scale", "directory for the nodes' data, removed when done")
	f.BoolVar(&s.Keep, "keep", false, "leave the nodes' data")
	f.IntVar(&s.Port, "port", 26000, "first port of the nodes; each takes three of the next ten")
	f.StringSliceVar(&pidFiles, "pid-files", nil, "files with the process ids of the nodes at --brokers, in the same order")
	f.StringSliceVar(&s.HTTP, "http", nil, "HTTP addresses of the nodes at --brokers, in the same order")
	f.IntSliceVar(&s.Sizes, "sizes", []int{10, 100, 1000, 3000, 10000}, "numbers of partitions")
	f.IntVar(&s.TopicPartitions, "topic-partitions", 1000, "partitions of a topic")
	f.DurationVar(&s.Settle, "settle", 5*time.Second, "rest before memory is looked at")
	f.DurationVar(&s.Idle, "idle", 20*time.Second, "how long processor time without load is counted")
	f.IntSliceVar(&s.Written, "written", []int{1, 5000}, "how many partitions are written to at once; 0: no produce load")
	f.DurationVar(&s.Load, "load", 10*time.Second, "how long each produce load takes")
	f.IntVarP(&s.RecordBytes, "size", "s", 200, "bytes of a value")
	f.BoolVar(&s.Failures, "failures", true, "kill and restart the nodes (only those that were started here)")
	return c
}

func readPID(name string) (int, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read process id: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read process id of %s: %w", name, err)
	}
	return pid, nil
}
