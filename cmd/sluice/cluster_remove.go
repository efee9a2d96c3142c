package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func clusterRemoveCommand() *cobra.Command {
	var d door
	var body removeBody
	c := &cobra.Command{
		Use: "remove NODE", Short: "Remove a node that is drained, or dead, from the cluster", Args: args(cobra.ExactArgs(1)),
		Long: "Remove a node from the cluster. One that is alive must be drained first and ends by itself when it is removed. With --force a\n" +
			"dead one is removed with its replicas: other nodes take its place, or the shards go on with fewer replicas until one can.\n" +
			"The node cannot come back with the data directory that it had.",
	}
	d.flags(c)
	c.Flags().BoolVar(&body.Force, "force", false, "remove a dead node that has replicas")
	c.Flags().BoolVar(&body.LoseData, "lose-data", false, "with --force: also if it has the only replica of something, which is given up")
	c.RunE = func(c *cobra.Command, list []string) error {
		node, err := nodeArg(c, list[0])
		if err != nil {
			return err
		}
		if body.LoseData && !body.Force {
			return usage(c, errors.New("--lose-data: needs --force"))
		}
		body.Node = node
		if err := d.call(c, http.MethodPost, "/cluster/remove", body, nil); err != nil {
			return hintRemove(fmt.Errorf("remove node %d: %w", node, err), node, body.Force)
		}
		return printNodeChange(c, node, "removed")
	}
	return c
}

func hintRemove(err error, node int32, force bool) error {
	var refused refusedError
	if !errors.As(err, &refused) || force {
		return err
	}
	return hint(err, fmt.Sprintf("`sluice cluster drain %d` empties it; --force removes a node that is dead for good", node))
}
