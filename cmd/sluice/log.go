package main

import "github.com/spf13/cobra"

func logCommand() *cobra.Command {
	return parent("log", "Look into log files", logDumpCommand())
}
