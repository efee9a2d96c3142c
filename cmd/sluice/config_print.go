package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
)

func configPrintCommand() *cobra.Command {
	var kind string
	c := &cobra.Command{
		Use: "print [FILE]", Short: "Print the configuration in force, defaults included, secrets left out", Args: args(cobra.MaximumNArgs(1)),
		Example: "  sluice config print core.yaml\n  sluice config print --kind core",
	}
	c.Flags().StringVar(&kind, "kind", "", "core, edge or bridge; guessed from the file when not given")
	c.RunE = func(c *cobra.Command, files []string) error {
		var v conf.Validator
		switch {
		case len(files) == 1:
			var err error
			if _, v, err = loadAny(c, kind, files[0]); err != nil {
				return hintConfig(err)
			}
		case fileKinds[kind] != nil:
			v = fileKinds[kind]()
		case kind != "":
			return usage(c, fmt.Errorf("--kind %q: must be core, edge or bridge", kind))
		default:
			return usage(c, errors.New("name a file, or --kind core, edge or bridge for the defaults"))
		}
		if !wantsJSON(c) {
			return conf.Print(c.OutOrStdout(), v)
		}
		node, err := conf.Node(v)
		if err != nil {
			return err
		}
		var tree any
		if err := node.Decode(&tree); err != nil {
			return fmt.Errorf("print configuration: %w", err)
		}
		return printJSON(c, tree)
	}
	return c
}
