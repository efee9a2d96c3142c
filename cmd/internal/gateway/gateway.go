// Package gateway runs the gateway's process: package edge with the uplink beside it, as
// `sluice edge`, `sluice dev` and the sluice-edge binary do.
//
// A file of configuration is edge.Config with further sections for the process. No part of a
// core node is linked but the doors that edge and bridge share: small boxes run this.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/proc"
	"sluice/core/vfs"
	"sluice/edge"
)

// Config is the file of a gateway.
type Config struct {
	edge.Config `yaml:",inline"`
	Uplink      Uplink   `yaml:"uplink"`
	PIDFile     string   `yaml:"pidFile"`
	Log         conf.Log `yaml:"log"`
}

// Default is a gateway on localhost with a core on localhost.
func Default() Config {
	return Config{Config: edge.Default(), Uplink: defaultUplink(), Log: conf.DefaultLog()}
}

// Validate names the field and the value that are wrong.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	return errors.Join(c.Uplink.validate(), c.Log.Validate())
}

// Run serves until ctx ends, with its files on fs. serving is called once with the addresses when all of it serves.
func Run(ctx context.Context, fs vfs.FS, c Config, logger *slog.Logger, serving func(addresses string)) error {
	if c.PIDFile != "" {
		remove, err := proc.WritePIDFile(c.PIDFile)
		if err != nil {
			return err
		}
		defer remove()
	}
	if _, err := proc.RaiseFileLimit(); err != nil {
		logger.Warn("limit of open files stays as it is", "error", err)
	}
	proc.LimitMemory()
	var p *proc.Process
	var g *edge.Gateway
	if err := proc.AfterPredecessor(ctx, logger, func() (err error) {
		p = proc.New(logger)
		g, err = Open(p, fs, c, logger)
		return err
	}); err != nil {
		return err
	}
	return p.Run(ctx, func() { serving(Addresses(g)) })
}

// Open opens the gateway and its uplink on fs and adds them to a process.
func Open(p *proc.Process, fs vfs.FS, c Config, logger *slog.Logger) (*edge.Gateway, error) {
	g, err := edge.OpenFS(fs, c.Config, logger)
	if err != nil {
		return nil, fmt.Errorf("open gateway: %w", err)
	}
	up, err := openUplink(fs, c, g.Buffer(), logger)
	if err != nil {
		return nil, errors.Join(err, closeUnused(g))
	}
	p.Add(proc.Part{Name: "gateway", Why: "devices are acknowledged whether the core is there or not", Ready: g.Ready(), Run: g.Run})
	if up != nil {
		g.Show(edge.Component{Name: "uplink", Part: up})
		p.Add(proc.Part{Name: "uplink", Why: "it reads what the gateway has buffered, and must let go of the buffer before that closes", Run: up.Run})
	}
	return g, nil
}

// closeUnused gives back what a gateway holds that was opened and shall not run.
func closeUnused(g *edge.Gateway) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return g.Run(ctx)
}

// Addresses says where the gateway listens, for a person.
func Addresses(g *edge.Gateway) string {
	var list []string
	a := g.Addrs()
	for _, l := range []struct {
		name string
		addr net.Addr
	}{{"mqtt", a.TCP}, {"mqtts", a.TLS}, {"websocket", a.WebSocket}} {
		if l.addr != nil {
			list = append(list, l.name+" "+l.addr.String())
		}
	}
	if http := g.HTTPAddr(); http != "" {
		list = append(list, "http http://"+http)
	}
	return strings.Join(list, ", ")
}
