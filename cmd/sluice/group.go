package main

import "github.com/spf13/cobra"

func groupCommand() *cobra.Command {
	return parent("group", "List, describe, delete groups of consumers, and move their offsets",
		groupListCommand(), groupDescribeCommand(), groupDeleteCommand(), groupResetCommand())
}
