package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/gateway"
)

func defaultEdgeFile() gateway.Config { return gateway.Default() }

func edgeCommand() *cobra.Command {
	var file string
	flags := gateway.Default()
	c := &cobra.Command{
		Use: "edge", Short: "Run a gateway: MQTT and HTTP in, a durable buffer, exactly once to the core", Args: args(cobra.NoArgs),
		Example: "  sluice edge --data /var/lib/sluice-edge\n  sluice edge -c edge.yaml",
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file; flags stand above it")
	f.StringVar(&flags.DataDir, "data", flags.DataDir, "data directory")
	f.StringVar(&flags.MQTT.Listen, "mqtt", flags.MQTT.Listen, "address for MQTT")
	f.StringVar(&flags.MQTT.WebSocket.Listen, "websocket", flags.MQTT.WebSocket.Listen, "address for MQTT over WebSocket")
	f.StringVar(&flags.HTTP.Listen, "http", flags.HTTP.Listen, "address for HTTP")
	f.StringSliceVar(&flags.Uplink.Core, "core", flags.Uplink.Core, "Kafka addresses of the cluster to forward to; empty keeps everything in the buffer")
	f.StringVar(&flags.PIDFile, "pid-file", flags.PIDFile, "file that holds the process's id while it runs")
	f.StringVar(&flags.Log.Level, "log-level", flags.Log.Level, "debug, info, warn or error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		config := gateway.Default()
		if err := loadUnderFlags(c, file, &config, func() {
			over(c, "data", &config.DataDir, flags.DataDir)
			over(c, "mqtt", &config.MQTT.Listen, flags.MQTT.Listen)
			over(c, "websocket", &config.MQTT.WebSocket.Listen, flags.MQTT.WebSocket.Listen)
			over(c, "http", &config.HTTP.Listen, flags.HTTP.Listen)
			over(c, "core", &config.Uplink.Core, flags.Uplink.Core)
			over(c, "pid-file", &config.PIDFile, flags.PIDFile)
			over(c, "log-level", &config.Log.Level, flags.Log.Level)
		}); err != nil {
			return err
		}
		return gateway.Run(c.Context(), config, config.Log.Logger(c.ErrOrStderr()), func(addresses string) {
			fmt.Fprintln(c.OutOrStdout(), "sluice edge serves:", addresses)
		})
	}
	return c
}

// loadUnderFlags reads the file, if one is named, puts the flags above it and validates the result.
func loadUnderFlags(c *cobra.Command, file string, into conf.Validator, flags func()) error {
	if file != "" {
		if err := conf.Load(file, into); err != nil {
			return hintConfig(err)
		}
	}
	flags()
	if err := into.Validate(); err != nil {
		return usage(c, err)
	}
	return nil
}

// over sets a field from its flag when the flag was given.
func over[T any](c *cobra.Command, name string, field *T, value T) {
	if c.Flags().Changed(name) {
		*field = value
	}
}
