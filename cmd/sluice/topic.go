package main

import "github.com/spf13/cobra"

func topicCommand() *cobra.Command {
	return parent("topic", "Create, list, describe, alter, move and delete topics",
		topicCreateCommand(), topicListCommand(), topicDescribeCommand(), topicAlterCommand(), topicMoveCommand(), topicDeleteCommand())
}
