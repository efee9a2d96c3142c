package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func outputOf(c *cobra.Command) string { return c.Flag("output").Value.String() }

func wantsJSON(c *cobra.Command) bool { return outputOf(c) == "json" }

// printJSON writes one value, indented.
func printJSON(c *cobra.Command, v any) error {
	e := json.NewEncoder(c.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table prints aligned columns under a head.
type table struct{ w *tabwriter.Writer }

func newTable(c *cobra.Command, head ...string) *table {
	t := &table{tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)}
	if len(head) > 0 {
		t.row(head...)
	}
	return t
}

func (t *table) row(cells ...string) { fmt.Fprintln(t.w, strings.Join(cells, "\t")) }

func (t *table) flush() error { return t.w.Flush() }

// joinInts writes a list of numbers as Kafka's tools do: 1,2,3.
func joinInts(list []int32) string {
	text := make([]string, len(list))
	for i, n := range list {
		text[i] = fmt.Sprint(n)
	}
	return strings.Join(text, ",")
}

// pairs splits name=value arguments.
func pairs(c *cobra.Command, flag string, list []string) (map[string]string, error) {
	out := make(map[string]string, len(list))
	for _, item := range list {
		name, value, ok := strings.Cut(item, "=")
		if !ok || name == "" {
			return nil, usage(c, fmt.Errorf("--%s %q: must be name=value", flag, item))
		}
		out[name] = value
	}
	return out, nil
}
