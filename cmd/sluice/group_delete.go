package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

func groupDeleteCommand() *cobra.Command {
	var n connection
	var ifExists bool
	c := &cobra.Command{Use: "delete GROUP...", Short: "Delete groups without members, and their offsets", Args: args(cobra.MinimumNArgs(1))}
	n.flags(c)
	c.Flags().BoolVar(&ifExists, "if-exists", false, "a group that does not exist is no error")
	c.RunE = func(c *cobra.Command, groups []string) error {
		return n.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
			responses, err := admin.DeleteGroups(ctx, groups...)
			if err != nil && len(responses) == 0 {
				return fmt.Errorf("delete groups: %w", err)
			}
			return reportDeleted(c, groups, ifExists, "group", kerr.GroupIDNotFound, func(name string) error { return responses[name].Err })
		})
	}
	return c
}
