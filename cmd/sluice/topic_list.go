package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

// listedTopic is what `topic list -o json` prints of each topic.
type listedTopic struct {
	Topic      string `json:"topic"`
	ID         string `json:"id"`
	Partitions int    `json:"partitions"`
	Replicas   int    `json:"replicas"`
	Internal   bool   `json:"internal,omitempty"`
}

func topicListCommand() *cobra.Command {
	var n connection
	var internal, long bool
	c := &cobra.Command{Use: "list", Short: "List topics", Args: args(cobra.NoArgs)}
	n.flags(c)
	c.Flags().BoolVarP(&internal, "internal", "i", false, "also the cluster's own topics")
	c.Flags().BoolVarP(&long, "long", "l", false, "also partitions, replicas and ids")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return n.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
			details, err := admin.ListTopicsWithInternal(ctx)
			if err != nil {
				return fmt.Errorf("list topics: %w", err)
			}
			return printTopics(c, details, internal, long)
		})
	}
	return c
}

func printTopics(c *cobra.Command, details kadm.TopicDetails, internal, long bool) error {
	out := []listedTopic{}
	for _, d := range details.Sorted() {
		if d.Err == nil && (internal || !d.IsInternal) {
			out = append(out, listedTopic{d.Topic, topicID(d.ID), len(d.Partitions), d.Partitions.NumReplicas(), d.IsInternal})
		}
	}
	if wantsJSON(c) {
		return printJSON(c, out)
	}
	if !long {
		for _, t := range out {
			fmt.Fprintln(c.OutOrStdout(), t.Topic)
		}
		return nil
	}
	table := newTable(c, "TOPIC", "PARTITIONS", "REPLICAS", "ID")
	for _, t := range out {
		table.row(t.Topic, strconv.Itoa(t.Partitions), strconv.Itoa(t.Replicas), t.ID)
	}
	return table.flush()
}
