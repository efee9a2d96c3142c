package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

// listedGroup is what `group list -o json` prints of each group.
type listedGroup struct {
	Group       string `json:"group"`
	State       string `json:"state"`
	Protocol    string `json:"protocol"`
	Coordinator int32  `json:"coordinator"`
}

func groupListCommand() *cobra.Command {
	var n connection
	var states []string
	c := &cobra.Command{Use: "list", Short: "List groups", Args: args(cobra.NoArgs)}
	n.flags(c)
	c.Flags().StringSliceVar(&states, "state", nil, "only groups in these states (Stable, Empty, ...)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return n.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
			groups, err := admin.ListGroups(ctx, states...)
			if err != nil {
				return fmt.Errorf("list groups: %w", err)
			}
			out := []listedGroup{}
			for _, g := range groups.Sorted() {
				out = append(out, listedGroup{g.Group, g.State, g.ProtocolType, g.Coordinator})
			}
			return printGroups(c, out)
		})
	}
	return c
}

func printGroups(c *cobra.Command, groups []listedGroup) error {
	if wantsJSON(c) {
		return printJSON(c, groups)
	}
	table := newTable(c, "GROUP", "STATE", "PROTOCOL", "COORDINATOR")
	for _, g := range groups {
		table.row(g.Group, g.State, g.Protocol, strconv.Itoa(int(g.Coordinator)))
	}
	return table.flush()
}
