package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func configCheckCommand() *cobra.Command {
	var kind string
	c := &cobra.Command{Use: "check FILE...", Short: "Say whether configuration files are right, and what is wrong", Args: args(cobra.MinimumNArgs(1))}
	c.Flags().StringVar(&kind, "kind", "", "core, edge or bridge; guessed from the file when not given")
	c.RunE = func(c *cobra.Command, files []string) error {
		type checked struct {
			File string `json:"file"`
			Kind string `json:"kind"`
		}
		var out []checked
		for _, name := range files {
			found, _, err := loadAny(c, kind, name)
			if err != nil {
				return hintConfig(err)
			}
			out = append(out, checked{name, found})
		}
		if wantsJSON(c) {
			return printJSON(c, out)
		}
		for _, f := range out {
			fmt.Fprintf(c.OutOrStdout(), "%s: ok (%s)\n", f.File, f.Kind)
		}
		return nil
	}
	return c
}
