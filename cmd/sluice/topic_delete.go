package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

func topicDeleteCommand() *cobra.Command {
	var n connection
	var ifExists bool
	c := &cobra.Command{Use: "delete TOPIC...", Short: "Delete topics with all their records", Args: args(cobra.MinimumNArgs(1))}
	n.flags(c)
	c.Flags().BoolVar(&ifExists, "if-exists", false, "a topic that does not exist is no error")
	c.RunE = func(c *cobra.Command, topics []string) error {
		return n.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
			responses, err := admin.DeleteTopics(ctx, topics...)
			if err != nil {
				return fmt.Errorf("delete topics: %w", err)
			}
			return reportDeleted(c, topics, ifExists, "topic", kerr.UnknownTopicOrPartition, func(name string) error {
				return explain(responses[name].Err, responses[name].ErrMessage)
			})
		})
	}
	return c
}

// deletedItem is what `topic delete -o json` and `group delete -o json` print.
type deletedItem struct {
	Name    string `json:"name"`
	Deleted bool   `json:"deleted"`
	Error   string `json:"error,omitempty"`
}

func reportDeleted(c *cobra.Command, names []string, ifExists bool, what string, missing error, errOf func(string) error) error {
	var errs []error
	out := make([]deletedItem, 0, len(names))
	for _, name := range names {
		item, err := deletedItem{Name: name, Deleted: true}, errOf(name)
		switch {
		case ifExists && errors.Is(err, missing):
			item.Deleted = false
		case err != nil:
			err = fmt.Errorf("delete %s %s: %w", what, name, err)
			item.Deleted, item.Error = false, err.Error()
			errs = append(errs, err)
		}
		out = append(out, item)
		if item.Deleted && !wantsJSON(c) {
			fmt.Fprintf(c.OutOrStdout(), "deleted %s %s\n", what, name)
		}
	}
	if wantsJSON(c) {
		errs = append(errs, printJSON(c, out))
	}
	return errors.Join(errs...)
}
