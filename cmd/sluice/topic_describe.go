package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

// describedTopic is what `topic describe -o json` prints of each topic.
type describedTopic struct {
	Topic      string               `json:"topic"`
	ID         string               `json:"id"`
	Internal   bool                 `json:"internal,omitempty"`
	Partitions []describedPartition `json:"partitions"`
	Configs    map[string]string    `json:"configs"` // those that the topic sets itself, or all with --all
}

type describedPartition struct {
	Partition   int32   `json:"partition"`
	Leader      int32   `json:"leader"`
	LeaderEpoch int32   `json:"leaderEpoch"`
	Replicas    []int32 `json:"replicas"`
	ISR         []int32 `json:"isr"`
	Offline     []int32 `json:"offline,omitempty"`
	Start       int64   `json:"start"`
	End         int64   `json:"end"`
}

func topicDescribeCommand() *cobra.Command {
	var n connection
	var all bool
	c := &cobra.Command{Use: "describe TOPIC...", Short: "Show partitions, offsets and settings of topics", Args: args(cobra.MinimumNArgs(1))}
	n.flags(c)
	c.Flags().BoolVarP(&all, "all", "a", false, "also settings that the topic leaves at their defaults")
	c.RunE = func(c *cobra.Command, topics []string) error {
		return n.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
			out := make([]describedTopic, 0, len(topics))
			for _, name := range topics {
				t, err := describeTopic(ctx, admin, name, all)
				if err != nil {
					return fmt.Errorf("describe topic %s: %w", name, err)
				}
				out = append(out, t)
			}
			if wantsJSON(c) {
				return printJSON(c, out)
			}
			return printDescribed(c, out)
		})
	}
	return c
}

func describeTopic(ctx context.Context, admin *kadm.Client, name string, all bool) (describedTopic, error) {
	details, err := admin.ListTopics(ctx, name)
	if err == nil {
		err = details[name].Err
	}
	if err != nil {
		return describedTopic{}, err
	}
	d := details[name]
	out := describedTopic{Topic: name, ID: topicID(d.ID), Internal: d.IsInternal, Configs: map[string]string{}}
	// Offsets may be unknown for a partition without a leader: shown as -1.
	starts, _ := admin.ListStartOffsets(ctx, name)
	ends, _ := admin.ListEndOffsets(ctx, name)
	for _, p := range d.Partitions.Sorted() {
		out.Partitions = append(out.Partitions, describedPartition{
			Partition: p.Partition, Leader: p.Leader, LeaderEpoch: p.LeaderEpoch, Replicas: p.Replicas, ISR: p.ISR, Offline: p.OfflineReplicas,
			Start: offsetOf(starts, name, p.Partition), End: offsetOf(ends, name, p.Partition),
		})
	}
	return out, describeSettings(ctx, admin, &out, all)
}

func offsetOf(list kadm.ListedOffsets, topic string, partition int32) int64 {
	if o, ok := list.Lookup(topic, partition); ok && o.Err == nil {
		return o.Offset
	}
	return -1
}

func describeSettings(ctx context.Context, admin *kadm.Client, t *describedTopic, all bool) error {
	configs, err := admin.DescribeTopicConfigs(ctx, t.Topic)
	if err != nil {
		return fmt.Errorf("describe settings: %w", err)
	}
	r, err := configs.On(t.Topic, nil)
	if err != nil {
		return err
	}
	if r.Err != nil {
		return explain(r.Err, r.ErrMessage)
	}
	for _, c := range r.Configs {
		if all || c.Source == 1 { // DYNAMIC_TOPIC_CONFIG
			t.Configs[c.Key] = c.MaybeValue()
		}
	}
	return nil
}

func printDescribed(c *cobra.Command, topics []describedTopic) error {
	for _, t := range topics {
		fmt.Fprintf(c.OutOrStdout(), "topic %s  id %s  partitions %d\n", t.Topic, t.ID, len(t.Partitions))
		for _, name := range sortedKeys(t.Configs) {
			fmt.Fprintf(c.OutOrStdout(), "  %s=%s\n", name, t.Configs[name])
		}
		table := newTable(c, "  PARTITION", "LEADER", "EPOCH", "REPLICAS", "ISR", "START", "END")
		for _, p := range t.Partitions {
			table.row("  "+strconv.Itoa(int(p.Partition)), strconv.Itoa(int(p.Leader)), strconv.Itoa(int(p.LeaderEpoch)), joinInts(p.Replicas), joinInts(p.ISR),
				strconv.FormatInt(p.Start, 10), strconv.FormatInt(p.End, 10))
		}
		if err := table.flush(); err != nil {
			return err
		}
	}
	return nil
}
