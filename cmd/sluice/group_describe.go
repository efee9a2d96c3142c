package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// describedGroup is what `group describe -o json` prints of each group.
type describedGroup struct {
	Group       string            `json:"group"`
	State       string            `json:"state"`
	Protocol    string            `json:"protocol"`
	Coordinator int32             `json:"coordinator"`
	Members     []describedMember `json:"members"`
	Offsets     []groupOffset     `json:"offsets"`
	Lag         int64             `json:"lag"`
}

type describedMember struct {
	Member   string  `json:"member"`
	Instance *string `json:"instance,omitempty"`
	Client   string  `json:"client"`
	Host     string  `json:"host"`
}

type groupOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // -1 when nothing was committed
	End       int64  `json:"end"`
	Lag       int64  `json:"lag"`
	Member    string `json:"member,omitempty"`
}

func groupDescribeCommand() *cobra.Command {
	var n connection
	c := &cobra.Command{Use: "describe GROUP...", Short: "Show members, committed offsets and lag of groups", Args: args(cobra.MinimumNArgs(1))}
	n.flags(c)
	c.RunE = func(c *cobra.Command, groups []string) error {
		return n.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
			lags, err := admin.Lag(ctx, groups...)
			if err != nil {
				return fmt.Errorf("describe groups: %w", err)
			}
			out := make([]describedGroup, 0, len(groups))
			for _, name := range groups {
				g, err := describeGroup(lags[name])
				if err != nil {
					return fmt.Errorf("describe group %s: %w", name, err)
				}
				out = append(out, g)
			}
			if wantsJSON(c) {
				return printJSON(c, out)
			}
			return printDescribedGroups(c, out)
		})
	}
	return c
}

func describeGroup(l kadm.DescribedGroupLag) (describedGroup, error) {
	if err := l.Error(); err != nil {
		return describedGroup{}, err
	}
	if l.State == "Dead" {
		return describedGroup{}, kerr.GroupIDNotFound
	}
	out := describedGroup{
		Group: l.Group, State: l.State, Protocol: l.Protocol, Coordinator: l.Coordinator.NodeID,
		Members: []describedMember{}, Offsets: []groupOffset{}, Lag: l.Lag.Total(),
	}
	for _, m := range l.Members {
		out.Members = append(out.Members, describedMember{m.MemberID, m.InstanceID, m.ClientID, m.ClientHost})
	}
	for _, p := range l.Lag.Sorted() {
		o := groupOffset{Topic: p.Topic, Partition: p.Partition, Committed: p.Commit.At, End: p.End.Offset, Lag: p.Lag}
		if p.Member != nil {
			o.Member = p.Member.MemberID
		}
		out.Offsets = append(out.Offsets, o)
	}
	return out, nil
}

func printDescribedGroups(c *cobra.Command, groups []describedGroup) error {
	for _, g := range groups {
		fmt.Fprintf(c.OutOrStdout(), "group %s  state %s  members %d  lag %d  coordinator %d\n", g.Group, g.State, len(g.Members), g.Lag, g.Coordinator)
		table := newTable(c, "  TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER")
		for _, o := range g.Offsets {
			table.row("  "+o.Topic, strconv.Itoa(int(o.Partition)), strconv.FormatInt(o.Committed, 10), strconv.FormatInt(o.End, 10), strconv.FormatInt(o.Lag, 10), o.Member)
		}
		if err := table.flush(); err != nil {
			return err
		}
	}
	return nil
}
