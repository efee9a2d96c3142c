package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

type topicAlter struct {
	connection
	partitions int
	set        []string
	reset      []string
}

func topicAlterCommand() *cobra.Command {
	var o topicAlter
	c := &cobra.Command{
		Use: "alter TOPIC", Short: "Add partitions to a topic, change its settings", Args: args(cobra.ExactArgs(1)),
		Example: "  sluice topic alter readings -c retention.ms=3600000 -d segment.ms",
		RunE:    o.run,
	}
	o.flags(c)
	c.Flags().IntVarP(&o.partitions, "partitions", "p", 0, "how many partitions it shall have; never fewer than it has")
	c.Flags().StringArrayVarP(&o.set, "config", "c", nil, "a setting, name=value; can be given many times")
	c.Flags().StringArrayVarP(&o.reset, "delete-config", "d", nil, "a setting that shall have its default again")
	return c
}

func (o *topicAlter) run(c *cobra.Command, topics []string) error {
	set, err := pairs(c, "config", o.set)
	switch {
	case err != nil:
		return err
	case len(set)+len(o.reset) == 0 && o.partitions == 0:
		return usage(c, errors.New("nothing to alter: give --partitions, --config or --delete-config"))
	case o.partitions < 0:
		return usage(c, fmt.Errorf("--partitions %d: must be 1 or more", o.partitions))
	}
	topic := topics[0]
	return o.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
		if err := o.settings(ctx, admin, topic, set); err != nil {
			return fmt.Errorf("alter topic %s: %w", topic, err)
		}
		if err := o.grow(ctx, admin, topic); err != nil {
			return fmt.Errorf("alter topic %s: %w", topic, err)
		}
		if wantsJSON(c) {
			t, err := describeTopic(ctx, admin, topic, false)
			return errors.Join(err, printJSON(c, t))
		}
		fmt.Fprintf(c.OutOrStdout(), "altered topic %s\n", topic)
		return nil
	})
}

func (o *topicAlter) settings(ctx context.Context, admin *kadm.Client, topic string, set map[string]string) error {
	var changes []kadm.AlterConfig
	for _, name := range sortedKeys(set) {
		value := set[name]
		changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value})
	}
	for _, name := range o.reset {
		changes = append(changes, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: name})
	}
	if len(changes) == 0 {
		return nil
	}
	responses, err := admin.AlterTopicConfigs(ctx, changes, topic)
	if err != nil {
		return err
	}
	for _, r := range responses {
		if r.Err != nil {
			return explain(r.Err, r.ErrMessage)
		}
	}
	return nil
}

func (o *topicAlter) grow(ctx context.Context, admin *kadm.Client, topic string) error {
	if o.partitions == 0 {
		return nil
	}
	responses, err := admin.UpdatePartitions(ctx, o.partitions, topic)
	if err != nil {
		return err
	}
	return explain(responses[topic].Err, responses[topic].ErrMessage)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
