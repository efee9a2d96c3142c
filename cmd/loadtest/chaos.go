package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sluice/loadtest/chaos"
)

// errBroken is returned when the cluster has not kept its promises.
var errBroken = errors.New("the cluster has not kept its promises")

// Short runs see every kind of fault once and fit into a ring of tests.
const (
	shortFaults   = 25
	shortDuration = 5 * time.Minute
	shortAgain    = 3
)

func chaosCommand(o *common) *cobra.Command {
	var c chaos.Options
	var kinds []string
	var short bool
	var result string
	cmd := &cobra.Command{
		Use: "chaos", Short: "Break a cluster in every way, and say whether it keeps its promises",
		Long: "Starts three core nodes and a gateway in network namespaces of their own, lets clients work, breaks one thing after the other, and checks that\n" +
			"nothing acknowledged is lost, doubled or reordered, that replicas are equal byte for byte, and that writes go on within 3 s. A seed makes the\n" +
			"schedule. Needs Linux, root, iproute2, iptables and e2fsprogs. Exit code 1 when a promise is broken, 2 when this machine cannot run it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				c.Seed = rand.Uint64N(1_000_000)
			}
			if short {
				c.Faults, c.DurationMax = shortFaults, shortDuration
				if !cmd.Flags().Changed("again") {
					c.Again = shortAgain
				}
			}
			if o.rate > 0 {
				c.Rate = o.rate
			}
			for _, k := range kinds {
				c.Only = append(c.Only, chaos.Kind(k))
			}
			if !o.quiet {
				c.Progress = cmd.ErrOrStderr()
			}
			return runChaos(cmd.Context(), c, cmd.OutOrStdout(), cmd.ErrOrStderr(), result)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Binary, "binary", "bin/sluice-chaos", "the program: sluice, built with its fault switchboard or without")
	f.StringVar(&c.Dir, "dir", ".data/chaos", "where the run's directory is made")
	f.Uint64Var(&c.Seed, "seed", 0, "of the schedule (default: a random one)")
	f.IntVar(&c.Faults, "faults", 200, "how many")
	f.DurationVar(&c.DurationMax, "duration-max", 50*time.Minute, "no fault begins after this time")
	f.BoolVar(&short, "short", false, fmt.Sprintf("--faults %d --duration-max %v --again %d: every kind once", shortFaults, shortDuration, shortAgain))
	f.IntVar(&c.Again, "again", 0, "how many faults that cost too much may be done once more, to tell an outage from a busy machine")
	f.StringSliceVar(&kinds, "only", nil, "only faults of these kinds")
	f.BoolVar(&c.Gateway, "gateway", true, "with a gateway, and devices that publish over it")
	f.Float64Var(&c.DeviceRate, "device-rate", 80, "messages a second over the gateway; --rate is for those straight to the cluster (default 300)")
	f.BoolVar(&c.Keep, "keep", false, "keep data and logs also when all is well")
	f.StringVar(&result, "result", "", "also write the JSON to this file")
	c.Nodes, c.Rate = 3, 300
	return cmd
}

func runChaos(ctx context.Context, c chaos.Options, out, progress io.Writer, file string) error {
	fmt.Fprintf(progress, "seed %d, at most %d faults in %v\n", c.Seed, c.Faults, c.DurationMax)
	report, err := chaos.Run(ctx, c)
	if errors.Is(err, chaos.ErrUnfit) || errors.Is(err, chaos.ErrOptions) {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if report != nil {
		data, encodeErr := json.MarshalIndent(report, "", " ")
		if encodeErr != nil {
			return fmt.Errorf("encode report: %w", encodeErr)
		}
		if file != "" {
			err = errors.Join(err, os.WriteFile(file, append(data, '\n'), 0o644))
		}
		report.WriteText(progress)
		fmt.Fprintf(out, "%s\n", data)
	}
	if err == nil && !report.OK() {
		err = errBroken
	}
	return err
}
