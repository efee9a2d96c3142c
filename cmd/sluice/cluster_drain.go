package main

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"sluice/core/controller"
)

func clusterDrainCommand() *cobra.Command {
	var d door
	var wait bool
	c := &cobra.Command{
		Use: "drain NODE", Short: "Move all replicas, leaderships and the metadata vote off a node", Args: args(cobra.ExactArgs(1)),
		Long: "Move all replicas, leaderships and the metadata vote off a node. The command shows how far it is and ends when the node is\n" +
			"empty. Interrupted, or with --wait=false, the cluster goes on; `sluice cluster undrain` ends it.",
	}
	d.flags(c)
	c.Flags().BoolVar(&wait, "wait", true, "wait until the node is empty")
	c.RunE = func(c *cobra.Command, list []string) error {
		node, err := nodeArg(c, list[0])
		if err != nil {
			return err
		}
		if err := d.call(c, http.MethodPost, "/cluster/drain", drainBody{Node: node}, nil); err != nil {
			return fmt.Errorf("drain node %d: %w", node, err)
		}
		if wait {
			if err := d.follow(c, func(o *controller.Overview) (string, bool) { return drainText(o, node) }); err != nil {
				return err
			}
		}
		return printNodeChange(c, node, map[bool]string{true: "empty", false: "draining"}[wait])
	}
	return c
}

// drainText says how far a drain is.
func drainText(o *controller.Overview, node int32) (text string, done bool) {
	n := findNode(o, node)
	switch {
	case n == nil:
		return fmt.Sprintf("node %d is no longer in the cluster", node), true
	case n.Replicas == 0 && n.Metadata == "follower":
		return "", true
	case n.Replicas == 0:
		return fmt.Sprintf("node %d: no replicas left, hands its part in the metadata over", node), false
	}
	text = fmt.Sprintf("node %d: %d replicas left, %d leaders; %s", node, n.Replicas, n.Leaders, movingText(o))
	for _, b := range o.Blocked {
		if int32(b.Node) == node {
			return text + "\n" + blockedText(o), false
		}
	}
	return text, false
}

func clusterUndrainCommand() *cobra.Command {
	var d door
	c := &cobra.Command{Use: "undrain NODE", Short: "Let a node have replicas again", Args: args(cobra.ExactArgs(1))}
	d.flags(c)
	c.RunE = func(c *cobra.Command, list []string) error {
		node, err := nodeArg(c, list[0])
		if err != nil {
			return err
		}
		if err := d.call(c, http.MethodPost, "/cluster/drain", drainBody{Node: node, Off: true}, nil); err != nil {
			return fmt.Errorf("undrain node %d: %w", node, err)
		}
		return printNodeChange(c, node, "in use")
	}
	return c
}

// changedNode is what commands about one node print with -o json.
type changedNode struct {
	Node  int32  `json:"node"`
	State string `json:"state"`
}

func printNodeChange(c *cobra.Command, node int32, state string) error {
	if wantsJSON(c) {
		return printJSON(c, changedNode{node, state})
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "node %d: %s\n", node, state)
	return err
}
