package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/tlsfile"
)

const defaultBootstrap = "127.0.0.1:9092"

// requestTimeout is how long a tool waits for a cluster before it gives up.
const requestTimeout = 30 * time.Second

// connection has the flags of every command that is a Kafka client.
type connection struct {
	bootstrap []string
	timeout   time.Duration
	tls       bool
	files     tlsfile.Files
}

func (n *connection) flags(c *cobra.Command) {
	from := defaultBootstrap
	if env := os.Getenv("SLUICE_BOOTSTRAP"); env != "" {
		from = env
	}
	c.Flags().StringSliceVarP(&n.bootstrap, "bootstrap", "b", strings.Split(from, ","), "nodes to ask first, host:port,... (SLUICE_BOOTSTRAP)")
	c.Flags().DurationVar(&n.timeout, "timeout", requestTimeout, "how long to wait for the cluster")
	c.Flags().BoolVar(&n.tls, "tls", false, "speak TLS; implied by the flags that name files")
	c.Flags().StringVar(&n.files.CA, "tls-ca", "", "PEM file of who signs the cluster's certificates (default the system's)")
	c.Flags().StringVar(&n.files.Cert, "tls-cert", "", "PEM file of the own certificate")
	c.Flags().StringVar(&n.files.Key, "tls-key", "", "PEM file of its key")
}

// secure adds TLS when a flag asks for it.
func (n *connection) secure(c *cobra.Command, options []kgo.Opt) ([]kgo.Opt, error) {
	if !n.tls && n.files == (tlsfile.Files{}) {
		return options, nil
	}
	if (n.files.Cert == "") != (n.files.Key == "") {
		return nil, usage(c, errors.New("--tls-cert and --tls-key belong together"))
	}
	source, err := tlsfile.Open(n.files, nil)
	if err != nil {
		return nil, err
	}
	return append(options, kgo.DialTLSConfig(source.Client(""))), nil
}

func (n *connection) client(c *cobra.Command, options ...kgo.Opt) (*kgo.Client, error) {
	for _, addr := range n.bootstrap {
		if err := conf.CheckAddress("--bootstrap", addr); err != nil {
			return nil, usage(c, err)
		}
	}
	base := []kgo.Opt{
		kgo.SeedBrokers(n.bootstrap...), kgo.ClientID("sluice"), kgo.SoftwareNameAndVersion("sluice-cli", cleanVersion()),
		kgo.DialTimeout(min(n.timeout, 10*time.Second)), kgo.RequestTimeoutOverhead(n.timeout), kgo.RetryTimeout(n.timeout),
		kgo.MetadataMinAge(100 * time.Millisecond),
	}
	base, err := n.secure(c, base)
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(append(base, options...)...)
}

// withAdmin runs fn with an admin client, bounded by --timeout.
func (n *connection) withAdmin(c *cobra.Command, fn func(ctx context.Context, admin *kadm.Client) error) error {
	client, err := n.client(c)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context(), n.timeout)
	defer cancel()
	if err := n.reach(ctx, client); err != nil {
		return err
	}
	admin := kadm.NewClient(client)
	admin.SetTimeoutMillis(int32(n.timeout.Milliseconds()))
	return fn(ctx, admin)
}

// reach fails early and plainly when nobody answers.
func (n *connection) reach(ctx context.Context, client *kgo.Client) error {
	err := client.Ping(ctx)
	if err == nil {
		return nil
	}
	return hint(fmt.Errorf("reach %s: %w", strings.Join(n.bootstrap, ","), shortNetworkError(err)),
		"is a node running there? `sluice core` starts one, --bootstrap names another")
}

// shortNetworkError drops the client library's layers when the cause is a refused connection.
func shortNetworkError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op
	}
	return err
}

// kafkaHint says what to do about errors of the Kafka protocol.
func kafkaHint(err error) string {
	for _, h := range []struct {
		err  error
		text string
	}{
		{kerr.UnknownTopicOrPartition, "`sluice topic list` shows the topics there are"},
		{kerr.TopicAlreadyExists, "--if-not-exists makes this no error; `sluice topic alter` changes a topic"},
		{kerr.InvalidReplicationFactor, "a topic cannot have more replicas than the cluster has nodes"},
		{kerr.GroupIDNotFound, "`sluice group list` shows the groups there are"},
		{kerr.NonEmptyGroup, "stop the group's consumers first"},
		{kerr.MessageTooLarge, "the topic's max.message.bytes is the limit"},
		{context.DeadlineExceeded, "--timeout allows more time"},
	} {
		if errors.Is(err, h.err) {
			return h.text
		}
	}
	return ""
}

// topicID writes an id as Kafka's tools do.
func topicID(id kadm.TopicID) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// explain joins an error of the protocol with what the broker said about it.
func explain(err error, message string) error {
	if err == nil || message == "" || strings.Contains(err.Error(), message) {
		return err
	}
	return fmt.Errorf("%w (%s)", err, message)
}
