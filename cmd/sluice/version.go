package main

import (
	"fmt"
	"regexp"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker for a release.
var version = ""

func versionCommand() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Print the version", Args: args(cobra.NoArgs)}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if wantsJSON(c) {
			return printJSON(c, map[string]string{"version": versionText(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		}
		fmt.Fprintf(c.OutOrStdout(), "sluice %s %s %s/%s\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	return c
}

// versionText is the release, else the commit that was built.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "dev-" + s.Value[:12]
		}
	}
	return "dev"
}

var notInVersion = regexp.MustCompile(`[^a-zA-Z0-9.-]`)

// cleanVersion is the version as ApiVersions accepts it.
func cleanVersion() string { return notInVersion.ReplaceAllString(versionText(), "-") }
