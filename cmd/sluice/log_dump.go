package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"sluice/core/commitlog"
	"sluice/core/vfs"
)

func logDumpCommand() *cobra.Command {
	var o commitlog.DumpOptions
	c := &cobra.Command{
		Use: "dump PATH...", Short: "Print and check the batches of segment files: of a core's partition or a gateway's buffer", Args: args(cobra.MinimumNArgs(1)),
		Long: "Print and check the batches of segment files: of a core's partition or a gateway's buffer.\n\nA path is a segment (*.log) or a directory of them. Nothing is changed, " +
			"and the log may be in use. Every checksum is compared; the exit code is 1 when one does not fit.",
		Example: "  sluice log dump data/readings-0\n  sluice log dump --records -o json edge/buffer",
	}
	c.Flags().BoolVarP(&o.Records, "records", "r", false, "also the records: offset, time, key, value, headers")
	c.RunE = func(c *cobra.Command, paths []string) error {
		o.JSON = wantsJSON(c)
		files, err := segmentsIn(paths)
		if err != nil {
			return err
		}
		return dumpFiles(c, files, o)
	}
	return c
}

// segmentsIn lists the files that the paths mean, those of a directory by offset.
func segmentsIn(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			out = append(out, path)
			continue
		}
		found, err := filepath.Glob(filepath.Join(path, "*.log"))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, hint(fmt.Errorf("%s holds no segment (*.log)", path),
				"name a partition's directory, DATA/TOPIC-PARTITION, or a gateway's DATA/buffer; a log without records has no file")
		}
		slices.Sort(found)
		out = append(out, found...)
	}
	return out, nil
}

// dumpFiles goes on after a damaged file: the others may be wanted.
func dumpFiles(c *cobra.Command, files []string, o commitlog.DumpOptions) error {
	out := bufio.NewWriter(c.OutOrStdout())
	var errs []error
	for _, name := range files {
		if !o.JSON {
			fmt.Fprintln(out, "Dumping", name)
		}
		if err := commitlog.Dump(out, vfs.OS, name, o); err != nil {
			errs = append(errs, fmt.Errorf("dump %s: %w", name, err))
		}
	}
	return errors.Join(append(errs, out.Flush())...)
}
