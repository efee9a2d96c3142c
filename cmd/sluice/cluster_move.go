package main

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"sluice/core/controller"
	"sluice/core/meta"
)

func clusterMoveCommand() *cobra.Command {
	var d door
	var to []int32
	var wait bool
	c := &cobra.Command{
		Use: "move SHARD --to NODE,NODE,...", Short: "Give a shard its replicas on these nodes, the first one leading", Args: args(cobra.ExactArgs(1)),
		Example: "  sluice cluster move 3 --to 4,1,2",
	}
	d.flags(c)
	c.Flags().Int32SliceVar(&to, "to", nil, "nodes of the replicas, the preferred leader first")
	c.Flags().BoolVar(&wait, "wait", true, "wait until the replicas are there")
	c.RunE = func(c *cobra.Command, list []string) error {
		shard, err := strconv.ParseUint(list[0], 10, 32)
		switch {
		case err != nil:
			return usage(c, fmt.Errorf("%q: must be the id of a shard", list[0]))
		case len(to) == 0:
			return usage(c, errors.New("--to is missing"))
		}
		if err := d.call(c, http.MethodPost, "/cluster/move", moveBody{Shard: uint32(shard), To: to}, nil); err != nil {
			return fmt.Errorf("move shard %d: %w", shard, err)
		}
		if wait {
			if err := d.follow(c, func(o *controller.Overview) (string, bool) { return moveText(o, meta.ShardID(shard), to) }); err != nil {
				return err
			}
		}
		if wantsJSON(c) {
			return printJSON(c, map[string]any{"shard": shard, "replicas": to, "moved": wait})
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "shard %d: replicas on %s%s\n", shard, joinInts(to), map[bool]string{false: " are wanted"}[wait])
		return err
	}
	return c
}

// moveText says how far the move of a shard is.
func moveText(o *controller.Overview, id meta.ShardID, to []int32) (text string, done bool) {
	at := slices.IndexFunc(o.Shards, func(s controller.ShardOverview) bool { return s.ID == id })
	if at < 0 {
		return "", true
	}
	s := &o.Shards[at]
	switch {
	case !slices.Equal(s.Replicas, nodeIDs(to)):
		return fmt.Sprintf("shard %d: replicas on %s are wanted by now", id, joinNodes(s.Replicas)), true
	case len(s.Adding) == 0 && len(s.Removing) == 0 && s.Leader != meta.NoNode:
		return "", true
	}
	return fmt.Sprintf("shard %d: leader %s, in sync %s, %s", id, leaderText(s), joinNodes(s.InSync), movesText(s)), false
}
