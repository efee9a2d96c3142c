// Command sluice is the whole house in one binary: a core node, a gateway, the bridge, and the
// tools that operate a cluster over the Kafka protocol.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage (flags, arguments, configuration).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/proc"
)

func main() {
	ctx, stop := proc.Signals(context.Background())
	defer stop()
	os.Exit(run(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr}))
}

// streams are where a command reads and writes.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, args []string, s streams) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return proc.ExitOK
	}
	fmt.Fprintln(s.err, "sluice:", oneLine(err))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintln(s.err, "hint:", hint)
	}
	if isUsage(err) {
		return proc.ExitUsage
	}
	return proc.ExitFailure
}

func rootCommand() *cobra.Command {
	root := parent("sluice", "Carries sensor data from the device to whoever analyses it",
		coreCommand(), edgeCommand(), bridgeCommand(), devCommand(),
		clusterCommand(), topicCommand(), groupCommand(), produceCommand(), consumeCommand(),
		logCommand(), configCommand(), versionCommand())
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	root.PersistentFlags().StringP("output", "o", "text", "how results are printed: text or json")
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if o := outputOf(c); o != "text" && o != "json" {
			return usage(c, fmt.Errorf("--output %q: must be text or json", o))
		}
		return nil
	}
	return root
}

// parent is a command that only has others below it.
func parent(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, SuggestionsMinimumDistance: 2}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			_ = c.Help()
			return usage(c, errors.New("a command is missing"))
		}
		err := fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return hint(usage(c, err), "did you mean "+strings.Join(near, " or ")+"?")
		}
		return usage(c, err)
	}
	c.Args = cobra.ArbitraryArgs
	c.AddCommand(children...)
	return c
}

// usageError is a command line that cannot be meant.
type usageError struct {
	err  error
	path string
}

func (u usageError) Error() string { return u.err.Error() }
func (u usageError) Unwrap() error { return u.err }

func usage(c *cobra.Command, err error) error { return usageError{err, c.CommandPath()} }

func isUsage(err error) bool {
	var u usageError
	return errors.As(err, &u) || errors.Is(err, conf.ErrInvalid)
}

// args checks the number of arguments, as a matter of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, list []string) error {
		if err := check(c, list); err != nil {
			return usage(c, err)
		}
		return nil
	}
}

// hintedError tells the person what to do about it.
type hintedError struct {
	error
	hint string
}

func (h hintedError) Unwrap() error { return h.error }

func hint(err error, text string) error { return hintedError{err, text} }

func hintOf(err error) string {
	var h hintedError
	if errors.As(err, &h) {
		return h.hint
	}
	var u usageError
	if errors.As(err, &u) {
		return "see " + u.path + " --help"
	}
	return kafkaHint(err)
}

// oneLine joins the parts of a joined error.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
