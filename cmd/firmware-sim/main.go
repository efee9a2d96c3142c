// Command firmware-sim runs a city of simulated sensors, or replays a recording, over MQTT.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	firmwaresim "sluice/firmware-sim"
)

var version = "unknown" // set by the linker

// errUsage marks what is the caller's mistake: exit code 2.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "firmware-sim:", err)
	if errors.Is(err, errUsage) || strings.HasPrefix(err.Error(), "unknown ") {
		os.Exit(2)
	}
	os.Exit(1)
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "firmware-sim", Short: "A city of simulated sensors over MQTT", Version: version,
		Long:         "A city of simulated sensors: temperature, air quality, traffic, noise, parking and street lighting in every zone.\nWithout a subcommand it runs the default city, 1,008 devices in six zones, against tcp://127.0.0.1:1883.",
		SilenceUsage: true, SilenceErrors: true, Args: noArgs,
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %v; see --help", errUsage, err) })
	run := runFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error { return run(c.Context()) }
	c.AddCommand(replayCommand(), scenarioCommand())
	return c
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: unknown command or argument %q; see --help", errUsage, args[0])
	}
	return nil
}

// runFlags defines the flags of a run and returns it.
func runFlags(c *cobra.Command) func(context.Context) error {
	var file, broker, listen string
	var devices int
	var verbose bool
	f := c.Flags()
	f.StringVarP(&file, "scenario", "s", "", "scenario file (YAML; see `firmware-sim scenario`)")
	f.StringVarP(&broker, "broker", "b", "", "MQTT broker (default tcp://127.0.0.1:1883)")
	f.IntVarP(&devices, "devices", "n", 0, "at least so many devices, spread evenly")
	f.StringVar(&listen, "listen", "127.0.0.1:8091", "address of /metrics, /healthz and /status; empty for none")
	f.BoolVarP(&verbose, "verbose", "v", false, "say what single devices do")
	return func(ctx context.Context) error {
		s, err := scenario(file, broker, devices)
		if err != nil {
			return err
		}
		level := slog.LevelInfo
		if verbose {
			level = slog.LevelDebug
		}
		return run(ctx, s, listen, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	}
}

func scenario(file, broker string, devices int) (firmwaresim.Scenario, error) {
	s := firmwaresim.Default()
	if file != "" {
		var err error
		if s, err = firmwaresim.Load(file); err != nil {
			return s, err
		}
	}
	if broker != "" {
		s.Broker = broker
	}
	if devices > 0 {
		s.SetDevices(devices)
	}
	return s, s.Validate()
}

func run(ctx context.Context, s firmwaresim.Scenario, listen string, log *slog.Logger) error {
	fleet, err := firmwaresim.NewFleet(s, log)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if listen != "" {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("listen for metrics: %w; choose another address with --listen", err)
		}
		g.Go(func() error { return fleet.ServeHTTP(ctx, l) })
	}
	fmt.Printf("firmware-sim: %d devices in %d zones publish to %s, metrics at http://%s/metrics\n", s.Devices(), len(s.Zones), s.Broker, listen)
	g.Go(func() error { return fleet.Run(ctx) })
	return g.Wait()
}

func replayCommand() *cobra.Command {
	var p firmwaresim.Replay
	var quiet bool
	c := &cobra.Command{
		Use: "replay FILE.csv --topic TOPIC", Short: "Publish a recording (timestamp,value) row by row",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: one file is needed, - for standard input", errUsage)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&p.Broker, "broker", "b", "tcp://127.0.0.1:1883", "MQTT broker")
	f.StringVarP(&p.Topic, "topic", "t", "", "MQTT topic (required)")
	f.StringVar(&p.ClientID, "client-id", "", "MQTT client id (default: made from the topic)")
	f.Uint8Var(&p.QoS, "qos", 1, "quality of service: 0, 1 or 2")
	f.Float64Var(&p.Speed, "speed", 0, "1 = as recorded, 60 = a minute in a second, 0 = as fast as the broker takes it")
	f.StringVar(&p.Username, "username", "", "MQTT user")
	f.StringVar(&p.Password, "password", "", "MQTT password")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
	c.RunE = func(c *cobra.Command, args []string) error {
		if p.Topic == "" || p.QoS > 2 || p.Speed < 0 {
			return fmt.Errorf("%w: --topic is required, --qos is 0, 1 or 2, --speed is 0 or more", errUsage)
		}
		return replay(c.Context(), p, args[0], quiet)
	}
	return c
}

func replay(ctx context.Context, p firmwaresim.Replay, file string, quiet bool) error {
	in := os.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if !quiet {
		p.Progress = func(rows int) {
			if rows%1000 == 0 {
				fmt.Fprintf(os.Stderr, "\r%d rows", rows)
			}
		}
	}
	n, err := p.Run(ctx, in)
	if !quiet {
		fmt.Fprintf(os.Stderr, "\r%d rows of %s acknowledged on %s\n", n, filepath.Base(file), p.Topic)
	}
	return err
}

func scenarioCommand() *cobra.Command {
	return &cobra.Command{
		Use: "scenario", Short: "Print the default scenario as a file to begin with", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return firmwaresim.Write(c.OutOrStdout(), firmwaresim.Default())
		},
	}
}
