package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"sluice/bridge/dashboard"
	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/gateway"
	"sluice/cmd/internal/proc"
	firmwaresim "sluice/firmware-sim"
)

// dev is everything on one machine, in one process.
type dev struct {
	data     string
	core     conf.Core
	edge     gateway.Config
	page     string
	sim      string
	scenario string
	devices  int
	log      conf.Log
}

func devCommand() *cobra.Command {
	d := dev{data: filepath.Join(".data", "dev"), core: conf.DefaultCore(), edge: gateway.Default(), page: "127.0.0.1:8090", sim: "127.0.0.1:8091", log: conf.DefaultLog()}
	d.log.Level = "warn" // people look at one line with addresses
	d.devices = -1
	c := &cobra.Command{
		Use: "dev", Short: "Run a core node, a gateway, a simulated city and its page, in one process", Args: args(cobra.NoArgs),
		Long: "Runs a core node, a gateway, a simulated city and its live page, in one process on one data directory.\n" +
			"What it finds there it goes on with. For three nodes as separate processes see `make cluster`.",
	}
	f := c.Flags()
	f.StringVar(&d.data, "data", d.data, "data directory")
	f.StringVar(&d.core.Kafka, "kafka", d.core.Kafka, "address for Kafka clients")
	f.StringVar(&d.core.Node, "node", d.core.Node, "address for other nodes")
	f.StringVar(&d.core.HTTP, "http", d.core.HTTP, "the core's address for /metrics, /healthz and /status")
	f.StringVar(&d.edge.MQTT.Listen, "mqtt", d.edge.MQTT.Listen, "address for MQTT")
	f.StringVar(&d.edge.MQTT.WebSocket.Listen, "websocket", d.edge.MQTT.WebSocket.Listen, "address for MQTT over WebSocket")
	f.StringVar(&d.edge.HTTP.Listen, "edge-http", d.edge.HTTP.Listen, "the gateway's address for HTTP")
	f.StringVar(&d.page, "page", d.page, "address of the page")
	f.StringVar(&d.sim, "sim", d.sim, "the simulator's address for /metrics, /healthz and /status")
	f.StringVar(&d.scenario, "scenario", d.scenario, "scenario file of the simulated city (default: 1,008 devices in six zones)")
	f.IntVar(&d.devices, "devices", d.devices, "simulated devices, at least; 0 for none (default: as the scenario says)")
	f.StringVar(&d.log.Level, "log-level", d.log.Level, "debug, info, warn or error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := d.prepare(); err != nil {
			return usage(c, err)
		}
		return d.run(c.Context(), d.log.Logger(c.ErrOrStderr()), func(line string) { fmt.Fprintln(c.OutOrStdout(), line) })
	}
	return c
}

// prepare puts the parts together: each below the data directory, each speaking to the next.
func (d *dev) prepare() error {
	d.core.Data, d.edge.DataDir = filepath.Join(d.data, "core"), filepath.Join(d.data, "edge")
	d.edge.Uplink.Core = []string{d.core.Kafka}
	if err := d.core.Validate(); err != nil {
		return fmt.Errorf("core: %w", err)
	}
	if err := d.edge.Validate(); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	return d.log.Validate()
}

// run starts the parts in the direction opposite to the record's, so that each finds the next one serving, and stops them in the record's direction.
func (d *dev) run(ctx context.Context, logger *slog.Logger, serving func(line string)) error {
	fleet, err := d.fleet(logger)
	if err != nil {
		return err
	}
	page, err := dashboard.Open(dashboard.Options{Brokers: []string{d.core.Kafka}, Listen: d.page, Logger: logger.With("component", "dashboard")})
	if err != nil {
		return hint(err, "choose another address with --page")
	}
	var core coreAddresses
	var edge string
	p := proc.New(logger)
	p.Add(part("core", "everything else is its client", func(ctx context.Context, ready func()) error {
		return runCore(ctx, d.core, logger, func(a coreAddresses) { core = a; ready() })
	}))
	p.Add(proc.Part{Name: "page", Why: "shows what arrives from the first record on", Run: page.Run})
	p.Add(part("edge", "takes the devices' messages", func(ctx context.Context, ready func()) error {
		fs, err := disk(logger, d.edge.DataDir)
		if err != nil {
			return err
		}
		return gateway.Run(ctx, fs, d.edge, logger, func(a string) { edge = a; ready() })
	}))
	if fleet != nil {
		p.Add(proc.Part{Name: "simulator", Why: "devices come last and fall silent first", Run: func(ctx context.Context) error { return d.simulate(ctx, fleet) }})
	}
	return p.Run(ctx, func() {
		serving(fmt.Sprintf("sluice dev: page http://%s  kafka %s  %s  core http://%s  simulator http://%s/metrics  data %s", page.Addr(), core.Kafka, edge, core.HTTP, d.sim, d.data))
	})
}

// part makes a part of a process out of something that says itself when it serves.
func part(name, why string, run func(ctx context.Context, ready func()) error) proc.Part {
	ready := make(chan struct{})
	return proc.Part{Name: name, Why: why, Ready: ready, Run: func(ctx context.Context) error { return run(ctx, func() { close(ready) }) }}
}

// fleet is the simulated city, nil when there are to be no devices.
func (d *dev) fleet(logger *slog.Logger) (*firmwaresim.Fleet, error) {
	if d.devices == 0 {
		return nil, nil
	}
	s := firmwaresim.Default()
	if d.scenario != "" {
		var err error
		if s, err = firmwaresim.Load(d.scenario); err != nil {
			return nil, err
		}
	}
	s.Broker = "tcp://" + d.edge.MQTT.Listen
	if d.devices > 0 {
		s.SetDevices(d.devices)
	}
	return firmwaresim.NewFleet(s, logger.With("component", "simulator"))
}

func (d *dev) simulate(ctx context.Context, fleet *firmwaresim.Fleet) error {
	l, err := net.Listen("tcp", d.sim)
	if err != nil {
		return hint(fmt.Errorf("listen for the simulator's metrics: %w", err), "choose another address with --sim")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return fleet.ServeHTTP(ctx, l) })
	g.Go(func() error { return fleet.Run(ctx) })
	return g.Wait()
}
