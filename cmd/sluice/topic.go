package main

import "github.com/spf13/cobra"

func topicCommand() *cobra.Command {
	return parent("topic", "Create, list, describe, alter and delete topics",
		topicCreateCommand(), topicListCommand(), topicDescribeCommand(), topicAlterCommand(), topicDeleteCommand())
}
