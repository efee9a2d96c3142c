package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

type groupReset struct {
	connection
	topics []string
	to     string
	dryRun bool
}

func groupResetCommand() *cobra.Command {
	var o groupReset
	c := &cobra.Command{
		Use: "reset-offsets GROUP", Short: "Move the committed offsets of a group without members", Args: args(cobra.ExactArgs(1)),
		Example: "  sluice group reset-offsets pages --topic readings --to earliest\n" +
			"  sluice group reset-offsets pages --topic readings:0,2 --to 2026-01-31T12:00:00Z --dry-run",
		RunE: o.run,
	}
	o.flags(c)
	c.Flags().StringArrayVarP(&o.topics, "topic", "t", nil, "topic or topic:partition,...; all that the group has offsets of when not given")
	c.Flags().StringVar(&o.to, "to", "", "earliest, latest, an offset, a time (RFC 3339), or -DURATION for as long ago")
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "only show what would be committed")
	return c
}

// movedOffset is what `group reset-offsets -o json` prints of each partition.
type movedOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (o *groupReset) run(c *cobra.Command, groups []string) error {
	if o.to == "" {
		return usage(c, errors.New("--to is missing"))
	}
	where, err := parsePosition(o.to)
	if err != nil {
		return usage(c, fmt.Errorf("--to %w", err))
	}
	wanted, err := parseTopicPartitions(o.topics)
	if err != nil {
		return usage(c, err)
	}
	return o.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
		moved, err := o.plan(ctx, admin, groups[0], wanted, where)
		if err == nil && !o.dryRun {
			err = commit(ctx, admin, groups[0], moved)
		}
		if err != nil {
			return fmt.Errorf("reset offsets of group %s: %w", groups[0], err)
		}
		return printMoved(c, moved)
	})
}

// parseTopicPartitions reads topic and topic:1,2; no partitions means all.
func parseTopicPartitions(list []string) (map[string][]int32, error) {
	out := make(map[string][]int32, len(list))
	for _, item := range list {
		topic, partitions, _ := strings.Cut(item, ":")
		if topic == "" {
			return nil, fmt.Errorf("--topic %q: must be topic or topic:partition,...", item)
		}
		out[topic] = nil
		if partitions == "" {
			continue
		}
		for p := range strings.SplitSeq(partitions, ",") {
			n, err := strconv.ParseInt(p, 10, 32)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("--topic %q: %q is no partition", item, p)
			}
			out[topic] = append(out[topic], int32(n))
		}
	}
	return out, nil
}

// plan finds the offset of every wanted partition.
func (o *groupReset) plan(ctx context.Context, admin *kadm.Client, group string, wanted map[string][]int32, where position) ([]movedOffset, error) {
	if len(wanted) == 0 {
		committed, err := admin.FetchOffsets(ctx, group)
		if err != nil {
			return nil, err
		}
		if len(committed) == 0 {
			return nil, hint(kerr.GroupIDNotFound, "the group has no offsets; name the topics with --topic")
		}
		for topic, partitions := range committed {
			for p := range partitions {
				wanted[topic] = append(wanted[topic], p)
			}
		}
	}
	var out []movedOffset
	for _, topic := range sortedKeys(wanted) {
		offsets, err := where.list(ctx, admin, topic)
		if err != nil {
			return nil, err
		}
		for _, l := range offsets {
			if wanted[topic] == nil || slices.Contains(wanted[topic], l.Partition) {
				out = append(out, movedOffset{topic, l.Partition, l.Offset})
			}
		}
	}
	return out, nil
}

func commit(ctx context.Context, admin *kadm.Client, group string, moved []movedOffset) error {
	offsets := make(kadm.Offsets)
	for _, m := range moved {
		offsets.AddOffset(m.Topic, m.Partition, m.Offset, -1)
	}
	responses, err := admin.CommitOffsets(ctx, group, offsets)
	if err == nil {
		err = responses.Error()
	}
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.RebalanceInProgress) {
		return hint(err, "the group has members that commit themselves: stop its consumers first")
	}
	return err
}

func printMoved(c *cobra.Command, moved []movedOffset) error {
	if wantsJSON(c) {
		return printJSON(c, moved)
	}
	table := newTable(c, "TOPIC", "PARTITION", "OFFSET")
	for _, m := range moved {
		table.row(m.Topic, strconv.Itoa(int(m.Partition)), strconv.FormatInt(m.Offset, 10))
	}
	return table.flush()
}
