package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

type topicCreate struct {
	connection
	partitions   int32
	replicas     int16
	configs      []string
	ifNotExists  bool
	validateOnly bool
}

func topicCreateCommand() *cobra.Command {
	var o topicCreate
	c := &cobra.Command{
		Use: "create TOPIC...", Short: "Create topics", Args: args(cobra.MinimumNArgs(1)),
		Example: "  sluice topic create readings -p 6 -c retention.ms=86400000",
		RunE:    o.run,
	}
	o.flags(c)
	c.Flags().Int32VarP(&o.partitions, "partitions", "p", -1, "number of partitions; -1 for the cluster's default")
	c.Flags().Int16VarP(&o.replicas, "replicas", "r", -1, "number of replicas; -1 for the cluster's default")
	c.Flags().StringArrayVarP(&o.configs, "config", "c", nil, "a setting, name=value; can be given many times")
	c.Flags().BoolVar(&o.ifNotExists, "if-not-exists", false, "a topic that exists is no error")
	c.Flags().BoolVar(&o.validateOnly, "validate-only", false, "only check whether it could be done")
	return c
}

// createdTopic is what `topic create -o json` prints of each topic.
type createdTopic struct {
	Topic      string `json:"topic"`
	ID         string `json:"id,omitempty"`
	Partitions int32  `json:"partitions,omitempty"`
	Replicas   int16  `json:"replicas,omitempty"`
	Existed    bool   `json:"existed,omitempty"`
	Error      string `json:"error,omitempty"`
}

func (o *topicCreate) run(c *cobra.Command, topics []string) error {
	settings, err := pairs(c, "config", o.configs)
	if err != nil {
		return err
	}
	configs := make(map[string]*string, len(settings))
	for name, value := range settings {
		configs[name] = &value
	}
	return o.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
		create := admin.CreateTopics
		if o.validateOnly {
			create = admin.ValidateCreateTopics
		}
		responses, err := create(ctx, o.partitions, o.replicas, configs, topics...)
		if err != nil {
			return fmt.Errorf("create topics: %w", err)
		}
		return o.report(c, topics, responses)
	})
}

func (o *topicCreate) report(c *cobra.Command, topics []string, responses kadm.CreateTopicResponses) error {
	var errs []error
	out := make([]createdTopic, 0, len(topics))
	for _, name := range topics {
		r := responses[name]
		t := createdTopic{Topic: name, Partitions: r.NumPartitions, Replicas: r.ReplicationFactor}
		switch {
		case r.Err == nil:
			t.ID = topicID(r.ID)
		case o.ifNotExists && errors.Is(r.Err, kerr.TopicAlreadyExists):
			t = createdTopic{Topic: name, Existed: true}
		default:
			err := fmt.Errorf("create topic %s: %w", name, explain(r.Err, r.ErrMessage))
			t = createdTopic{Topic: name, Error: err.Error()}
			errs = append(errs, err)
		}
		out = append(out, t)
	}
	if wantsJSON(c) {
		return errors.Join(append(errs, printJSON(c, out))...)
	}
	for _, t := range out {
		switch {
		case t.Error != "":
		case t.Existed:
			fmt.Fprintf(c.OutOrStdout(), "topic %s exists\n", t.Topic)
		case o.validateOnly:
			fmt.Fprintf(c.OutOrStdout(), "topic %s could be created\n", t.Topic)
		default:
			fmt.Fprintf(c.OutOrStdout(), "created topic %s: %d partitions, %d replicas\n", t.Topic, t.Partitions, t.Replicas)
		}
	}
	return errors.Join(errs...)
}
