package main

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"
)

func clusterRecoverCommand() *cobra.Command {
	var d door
	var loseData, loseCopy bool
	c := &cobra.Command{
		Use: "recover SHARD --lose-data", Short: "Begin a shard anew whose only replica is lost, with empty partitions", Args: args(cobra.ExactArgs(1)),
		Long: "Begin a shard anew whose only replica was on a disk that is lost, or on a node that was removed by force (`cluster status` says lost).\n" +
			"Its partitions can be used again and are empty; consumers go on by their auto.offset.reset.",
	}
	d.flags(c)
	c.Flags().BoolVar(&loseData, "lose-data", false, "the records are gone, and that is accepted")
	c.Flags().BoolVar(&loseCopy, "lose-copy", false, "also a whole copy on the node that the shard was being moved to when the disk was lost")
	c.RunE = func(c *cobra.Command, list []string) error {
		shard, err := strconv.ParseUint(list[0], 10, 32)
		switch {
		case err != nil:
			return usage(c, fmt.Errorf("%q: must be the id of a shard", list[0]))
		case !loseData:
			return usage(c, errors.New("--lose-data: must be given, since the partitions will be empty"))
		}
		if err := d.call(c, http.MethodPost, "/cluster/recover", recoverBody{Shard: uint32(shard), LoseCopy: loseCopy}, nil); err != nil {
			return fmt.Errorf("recover shard %d: %w", shard, err)
		}
		if wantsJSON(c) {
			return printJSON(c, map[string]uint64{"shard": shard})
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "shard %d: begun anew, empty\n", shard)
		return err
	}
	return c
}
