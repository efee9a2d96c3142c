package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/gateway"
)

func defaultEdgeFile() gateway.Config { return gateway.Default() }

func edgeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "edge", Short: "Run a gateway: MQTT and HTTP in, a durable buffer, exactly once to the core", Args: args(cobra.NoArgs),
		Example: "  sluice edge --data /var/lib/sluice-edge\n  sluice edge -c edge.yaml",
	}
	load := gateway.Flags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		config, err := load()
		if errors.Is(err, conf.ErrInvalid) {
			return hintConfig(err)
		}
		if err != nil {
			return usage(c, err)
		}
		logger := config.Log.Logger(c.ErrOrStderr())
		fs, err := disk(logger, config.DataDir)
		if err != nil {
			return err
		}
		return gateway.Run(c.Context(), fs, config, logger, func(addresses string) {
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
