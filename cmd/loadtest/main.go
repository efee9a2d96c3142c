// Command loadtest puts load on a system that speaks Kafka, MQTT or HTTP, and verifies that it loses nothing.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sluice/loadtest"
)

var version = "unknown" // set by the linker

var (
	// errUsage marks what is the caller's mistake: exit code 2.
	errUsage = errors.New("usage")
	// errWrong is returned when a verification has found something wrong: exit code 1.
	errWrong = errors.New("the log is not what was written")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "loadtest:", err)
	if errors.Is(err, errUsage) || strings.HasPrefix(err.Error(), "unknown ") {
		os.Exit(2)
	}
	os.Exit(1)
}

// common are the flags of every load.
type common struct {
	brokers  []string
	quiet    bool
	out      string
	duration time.Duration
	rate     float64
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use: "loadtest", Short: "Load and verification for Kafka, MQTT and HTTP", Version: version, SilenceUsage: true, SilenceErrors: true,
		Long: "Load and verification for Kafka, MQTT and HTTP. A load shows its progress on standard error and prints its result as JSON.\n" +
			"With --rate, latencies count from the moment an operation was meant to begin, so that a pause shows in all it delayed.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown load %q; see --help", errUsage, args[0])
			}
			return c.Help()
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %v; see --help", errUsage, err) })
	var o common
	f := c.PersistentFlags()
	f.StringSliceVarP(&o.brokers, "brokers", "b", []string{"127.0.0.1:9092"}, "Kafka brokers")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show progress")
	f.StringVarP(&o.out, "output", "o", "json", "json, or text for people")
	f.DurationVarP(&o.duration, "duration", "d", 0, "how long (default 10s where no count is given)")
	f.Float64VarP(&o.rate, "rate", "r", 0, "operations a second; 0 = as many as a bounded window allows")
	c.AddCommand(
		produceCommand(&o),
		consumeCommand(&o),
		mqttCommand(&o),
		httpCommand(&o),
		e2eCommand(&o),
		verifyCommand(&o),
		catchUpCommand(&o),
		chaosCommand(&o),
		overloadCommand(&o),
		overloadClientsCommand(),
		scaleCommand(&o),
	)
	for _, sub := range c.Commands() {
		sub.Args = func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unexpected argument %q", errUsage, args[0])
			}
			return nil
		}
	}
	return c
}

func (o *common) progress() io.Writer {
	if o.quiet {
		return nil
	}
	return os.Stderr
}

// until is the duration, or 10 s when there is no count either.
func (o *common) until(count int64) time.Duration {
	if o.duration == 0 && count == 0 {
		return 10 * time.Second
	}
	return o.duration
}

func (o *common) print(w io.Writer, r loadtest.Result, whole any) error {
	if o.out == "text" {
		_, err := fmt.Fprintf(w, "%s: %d operations in %.1f s, %.0f/s, %.1f MB/s, errors %d %s\nlatency ms: p50 %.2f  p99 %.2f  max %.2f, longest pause %.0f ms\n",
			r.Load, r.Operations, r.Seconds, r.PerSecond, r.MBPerS, r.Errors, r.FirstError, r.LatencyMs["p50"], r.LatencyMs["p99"], r.LatencyMs["max"], r.PauseMs)
		return err
	}
	if o.out != "json" {
		return fmt.Errorf("%w: output %q: json or text are possible", errUsage, o.out)
	}
	return json.NewEncoder(w).Encode(whole)
}

// finish prints a result; a load in which nothing succeeded is a failure.
func (o *common) finish(c *cobra.Command, r loadtest.Result, err error) error {
	if err != nil {
		return err
	}
	if err := o.print(c.OutOrStdout(), r, r); err != nil {
		return err
	}
	if r.Operations == 0 && r.Errors > 0 {
		return errors.New(r.FirstError)
	}
	return nil
}

func kafkaFlags(c *cobra.Command, k *loadtest.Kafka, topic string) {
	f := c.Flags()
	f.StringVarP(&k.Topic, "topic", "t", topic, "topic")
	f.Int32Var(&k.Partitions, "partitions", -1, "partitions of a topic that has to be created")
	f.Int16Var(&k.ReplicationFactor, "replication-factor", -1, "replication factor of a topic that has to be created")
}

func produceCommand(o *common) *cobra.Command {
	var p loadtest.Produce
	c := &cobra.Command{Use: "produce", Short: "Produce records", RunE: func(c *cobra.Command, _ []string) error {
		p.Brokers, p.Rate, p.Duration, p.Progress = o.brokers, o.rate, o.until(p.Records), o.progress()
		r, err := p.Run(c.Context())
		return o.finish(c, r, err)
	}}
	kafkaFlags(c, &p.Kafka, "loadtest")
	f := c.Flags()
	f.IntVarP(&p.Size, "size", "s", 200, "bytes of a value")
	f.Int64VarP(&p.Records, "records", "n", 0, "how many")
	f.StringVar(&p.Acks, "acks", "all", "all, 1 or 0")
	f.BoolVar(&p.Idempotent, "idempotent", true, "idempotent producer")
	f.StringVarP(&p.Compression, "compression", "z", "none", "none, gzip, snappy, lz4 or zstd")
	f.DurationVar(&p.Linger, "linger", 5*time.Millisecond, "how long a batch waits for company")
	f.Int32Var(&p.BatchBytes, "batch-bytes", 1000000, "bytes of a batch at the most")
	f.BoolVar(&p.Random, "random", false, "values that do not compress")
	f.Int64Var(&p.Keys, "keys", 0, "records have one of so many keys, for compacted topics (default: no keys)")
	return c
}

func consumeCommand(o *common) *cobra.Command {
	var l loadtest.Consume
	c := &cobra.Command{Use: "consume", Short: "Read a topic from its beginning", RunE: func(c *cobra.Command, _ []string) error {
		l.Brokers, l.Duration, l.Progress = o.brokers, o.duration, o.progress()
		r, err := l.Run(c.Context())
		return o.finish(c, r, err)
	}}
	kafkaFlags(c, &l.Kafka, "loadtest")
	c.Flags().Int64VarP(&l.Records, "records", "n", 0, "stop after so many (default: at the end as it is now)")
	c.Flags().StringVarP(&l.Group, "group", "g", "", "consumer group (default: none)")
	return c
}

func mqttFlags(c *cobra.Command, l *loadtest.MQTT, topic string) {
	f := c.Flags()
	f.StringVarP(&l.Broker, "mqtt", "m", "127.0.0.1:1883", "MQTT broker")
	f.StringVar(&l.Topic, "mqtt-topic", topic, "MQTT topic; the client's number is appended")
	f.IntVarP(&l.Clients, "clients", "c", 10, "connections")
	f.IntVarP(&l.Window, "window", "w", 100, "unacknowledged messages of a connection")
	f.Uint8Var(&l.QoS, "qos", 1, "quality of service: 0, 1 or 2")
	f.IntVarP(&l.Size, "size", "s", 100, "bytes of a payload")
	f.Int64VarP(&l.Messages, "messages", "n", 0, "how many")
}

func mqttCommand(o *common) *cobra.Command {
	var l loadtest.MQTT
	c := &cobra.Command{Use: "mqtt", Short: "Publish over MQTT", RunE: func(c *cobra.Command, _ []string) error {
		l.Rate, l.Duration, l.Progress = o.rate, o.until(l.Messages), o.progress()
		r, err := l.Run(c.Context())
		return o.finish(c, r, err)
	}}
	mqttFlags(c, &l, "loadtest")
	return c
}

func httpCommand(o *common) *cobra.Command {
	var l loadtest.HTTP
	c := &cobra.Command{Use: "http", Short: "Post to the HTTP ingest", RunE: func(c *cobra.Command, _ []string) error {
		l.Rate, l.Duration, l.Progress = o.rate, o.until(l.Messages), o.progress()
		r, err := l.Run(c.Context())
		return o.finish(c, r, err)
	}}
	f := c.Flags()
	f.StringVarP(&l.URL, "url", "u", "http://127.0.0.1:8080/v1/ingest/loadtest", "where to post to")
	f.IntVarP(&l.Clients, "clients", "c", 10, "connections")
	f.IntVar(&l.Batch, "batch", 1, "messages in a request")
	f.IntVarP(&l.Size, "size", "s", 100, "bytes of a message")
	f.Int64VarP(&l.Messages, "messages", "n", 0, "how many")
	return c
}

func e2eCommand(o *common) *cobra.Command {
	var l loadtest.EndToEnd
	c := &cobra.Command{Use: "e2e", Short: "From an MQTT publish to a Kafka consumer", RunE: func(c *cobra.Command, _ []string) error {
		if o.rate == 0 {
			o.rate = 100
		}
		l.Kafka.Brokers, l.Rate, l.Duration, l.Progress = o.brokers, o.rate, o.until(l.Messages), o.progress()
		r, err := l.Run(c.Context())
		return o.finish(c, r, err)
	}}
	mqttFlags(c, &l.MQTT, "loadtest/e2e")
	kafkaFlags(c, &l.Kafka, "mqtt")
	return c
}

func verifyCommand(o *common) *cobra.Command {
	var v loadtest.Verify
	var check string
	c := &cobra.Command{
		Use: "verify", Short: "Write numbered records, read them back, and say what is lost, doubled or out of order",
		Long: "Writes numbered records with idempotent producers and acks=all (or, with --gateway, over MQTT with QoS 1) while you do to the system what it is to\n" +
			"survive, reads everything back and says exactly what is lost, doubled or out of order. Exit code 1 when anything is.",
		RunE: func(c *cobra.Command, _ []string) error {
			v.Brokers, v.Rate, v.Duration, v.Progress = o.brokers, o.rate, o.until(0), o.progress()
			if v.Rate == 0 {
				v.Rate = 1000
			}
			if v.Gateway != "" && !c.Flags().Changed("topic") {
				v.Topic = "mqtt"
			}
			run := v.Run
			if check != "" {
				run = func(ctx context.Context) (loadtest.VerifyResult, error) { return v.Check(ctx, check) }
			}
			r, err := run(c.Context())
			if err != nil {
				return err
			}
			if err := o.print(c.OutOrStdout(), r.Result, r); err != nil {
				return err
			}
			return judge(c.ErrOrStderr(), r)
		},
	}
	kafkaFlags(c, &v.Kafka, "")
	f := c.Flags()
	f.IntVarP(&v.Writers, "writers", "w", 4, "producers, or devices")
	f.IntVarP(&v.Size, "size", "s", 100, "bytes of a value")
	f.DurationVar(&v.Late, "late", time.Minute, "how long the last acknowledgements and arrivals are waited for")
	f.StringVar(&v.Gateway, "gateway", "", "write over MQTT to this host:port instead; the records are read from --topic (default mqtt)")
	f.StringVar(&v.MQTT, "mqtt-topic", "verify", "MQTT topic prefix with --gateway")
	f.IntVar(&v.Window, "window", 10, "unacknowledged messages of a device with --gateway")
	f.StringVar(&v.History, "history", "", "also write what was sent and acknowledged to this file")
	f.StringVar(&check, "check", "", "write nothing: check the log against this history file")
	return c
}

func judge(w io.Writer, r loadtest.VerifyResult) error {
	v := r.Verdict
	fmt.Fprintf(w, "%s: %d sent, %d acknowledged, %d found; lost %d, doubled %d, reordered %d\n", r.Topic, v.Sent, v.Acked, v.Found, v.Counts["lost"], v.Counts["doubled"], v.Counts["reordered"])
	if v.OK() {
		return nil
	}
	for _, x := range v.Violations {
		fmt.Fprintf(w, "  %s: %s number %d: %s\n", x.Kind, x.Writer, x.Number, x.Detail)
	}
	return fmt.Errorf("%w: %v", errWrong, v.Counts)
}
