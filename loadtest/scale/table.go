package scale

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Text writes the report as tables for people.
func (r Report) Text(w io.Writer) error {
	fmt.Fprintf(w, "%s, begun %s\n\n", r.Machine, r.Begun)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "partitions\tcreate s\tled s\tfirst use s\tRSS MB\theap MB\tKB/replica\theap\tfiles\tidle CPU %\t")
	for _, x := range r.Rows {
		rss, heap := mean(x.Nodes)
		fmt.Fprintf(t, "%d\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t%.1f\t%d\t%.1f\t\n", x.Partitions, x.Create, x.CreateLed, x.Used, rss/1e6, heap/1e6,
			x.RSSPerReplica/1e3, x.HeapPerReplica/1e3, filesMax(x.Nodes), x.IdleCPU)
	}
	fmt.Fprintln(t, "\t\t\t\t\t\t\t\t\t\t")
	fmt.Fprintln(t, "partitions\tone killed: led s\tused s\tback s\tstop s\tstart: led s\tused s\tafter kill of all: led s\tused s\tRSS MB after\t")
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t\n", x.Partitions, x.FailoverLed, x.FailoverUsed, x.Rejoin, x.Stop,
			x.RestartLed, x.RestartUsed, x.CrashLed, x.CrashUsed, float64(x.RSSRestarted)/1e6)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return r.textLoads(w)
}

func (r Report) textLoads(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "partitions\ta topic of\tcreated s\tdeleted s\tgone s\t")
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%d\t%d\t%.2f\t%.2f\t%.2f\t\n", x.Partitions, x.TopicPartitions, x.TopicCreate, x.TopicDelete, x.TopicGone)
	}
	fmt.Fprintln(t, "\t\t\t\t\t")
	fmt.Fprintln(t, "partitions\twritten to\trecords/s\tMB/s\tp99 ms\tCPU s/million\terrors\t")
	for _, x := range r.Rows {
		for _, l := range x.Rates {
			fmt.Fprintf(t, "%d\t%d %s\t%.0f\t%.1f\t%.0f\t%.1f\t%d\t\n", x.Partitions, l.Partitions, l.Spread, l.PerSecond, l.MBPerS, l.P99Ms, l.CPUPerMillion, l.Errors)
		}
	}
	return t.Flush()
}

func filesMax(nodes []Usage) (n int) {
	for _, u := range nodes {
		n = max(n, u.Files)
	}
	return n
}
