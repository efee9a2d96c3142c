package main

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"sluice/core/controller"
)

func clusterBalanceCommand() *cobra.Command {
	var d door
	var wait bool
	c := &cobra.Command{
		Use: "balance", Short: "Spread replicas and leaders evenly over the nodes", Args: args(cobra.NoArgs),
		Long: "Spread replicas over racks and nodes, and leaders over nodes, moving as little as possible. With auto.balance.enable, which is\n" +
			"the default, this happens by itself when a node has joined or come back empty.",
	}
	d.flags(c)
	c.Flags().BoolVar(&wait, "wait", true, "wait until it is done")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := d.call(c, http.MethodPost, "/cluster/balance", struct{}{}, nil); err != nil {
			return fmt.Errorf("balance the cluster: %w", err)
		}
		if wait {
			if err := d.follow(c, balanceText); err != nil {
				return err
			}
		}
		if wantsJSON(c) {
			return printJSON(c, map[string]bool{"balanced": wait})
		}
		_, err := fmt.Fprintln(c.OutOrStdout(), map[bool]string{true: "balanced", false: "balancing"}[wait])
		return err
	}
	return c
}

func balanceText(o *controller.Overview) (text string, done bool) {
	shards, _, _ := moving(o)
	if !o.Balancing && shards == 0 {
		return "", true
	}
	return movingText(o), false
}
