// Command sluice-edge is the gateway alone, for small boxes: what `sluice edge` runs, without the core.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage (flags, arguments, configuration).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/gateway"
	"sluice/cmd/internal/proc"
	"sluice/core/vfs"
)

var version = "unknown" // set by the linker

func main() {
	ctx, stop := proc.Signals(context.Background())
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, args []string, out, errors io.Writer) int {
	c := command()
	c.SetArgs(args)
	c.SetOut(out)
	c.SetErr(errors)
	err := c.ExecuteContext(ctx)
	if err == nil {
		return proc.ExitOK
	}
	fmt.Fprintln(errors, "sluice-edge:", err)
	if isUsage(err) {
		return proc.ExitUsage
	}
	return proc.ExitFailure
}

// errUsage marks a command line that cannot be meant.
var errUsage = errors.New("see --help")

func isUsage(err error) bool { return errors.Is(err, errUsage) || errors.Is(err, conf.ErrInvalid) }

func command() *cobra.Command {
	c := &cobra.Command{
		Use: "sluice-edge", Short: "A gateway: MQTT and HTTP in, a durable buffer, exactly once to the core", Version: version,
		SilenceErrors: true, SilenceUsage: true, Example: "  sluice-edge --data /var/lib/sluice-edge --core core-1:9092\n  sluice-edge -c edge.yaml",
	}
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unexpected argument %q: %w", args[0], errUsage)
		}
		return nil
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", err, errUsage) })
	load := gateway.Flags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		config, err := load()
		if err != nil {
			return fmt.Errorf("%w: %w", err, errUsage)
		}
		return gateway.Run(c.Context(), vfs.OS, config, config.Log.Logger(c.ErrOrStderr()), func(addresses string) {
			fmt.Fprintln(c.OutOrStdout(), "sluice-edge serves:", addresses)
		})
	}
	return c
}
