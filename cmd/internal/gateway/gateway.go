// Package gateway runs the gateway's process: package edge with everything that `sluice edge`
// and the sluice-edge binary put beside it.
//
// A file of configuration is edge.Config with further sections of the process. Core nodes are not
// linked here: small boxes run this.
package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/proc"
	"sluice/edge"
)

// Config is the file of a gateway.
type Config struct {
	edge.Config `yaml:",inline"`
	PIDFile     string   `yaml:"pidFile"`
	Log         conf.Log `yaml:"log"`
}

// Default is a gateway on localhost.
func Default() Config { return Config{Config: edge.Default(), Log: conf.DefaultLog()} }

// Validate names the field and the value that are wrong.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	return c.Log.Validate()
}

// Run serves until ctx ends. serving is called once with the addresses when all of it serves.
func Run(ctx context.Context, c Config, logger *slog.Logger, serving func(addresses string)) error {
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
	g, err := edge.Open(c.Config, logger)
	if err != nil {
		return fmt.Errorf("open gateway: %w", err)
	}
	p := proc.New(logger)
	p.Add(proc.Part{Name: "gateway", Why: "devices are acknowledged whether the core is there or not", Ready: g.Ready(), Run: g.Run})
	return p.Run(ctx, func() { serving(addresses(g)) })
}

func addresses(g *edge.Gateway) string {
	var list []string
	a := g.Addrs()
	for _, l := range []struct {
		name string
		addr interface{ String() string }
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
