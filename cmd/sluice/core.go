package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/proc"
	"sluice/cmd/internal/tlsfile"
	"sluice/core/broker"
	"sluice/core/commitlog"
	"sluice/core/controller"
	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/rest"
)

func coreCommand() *cobra.Command {
	var file string
	flags := conf.DefaultCore()
	c := &cobra.Command{
		Use: "core", Short: "Run a core node: Kafka clients on one side, Raft with the other nodes on the other", Args: args(cobra.NoArgs),
		Example: "  sluice core --data /var/lib/sluice\n" +
			"  sluice core --id 2 --data d2 --kafka 127.0.0.1:9192 --node 127.0.0.1:9193 --http 127.0.0.1:9744 --join 127.0.0.1:9093",
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file; flags stand above it")
	f.Int32Var(&flags.ID, "id", flags.ID, "the node's id, unique in the cluster")
	f.StringVar(&flags.Data, "data", flags.Data, "data directory")
	f.StringVar(&flags.Kafka, "kafka", flags.Kafka, "address for Kafka clients")
	f.StringVar(&flags.Advertise, "advertise", flags.Advertise, "address that clients are told (default that of --kafka)")
	f.StringVar(&flags.Node, "node", flags.Node, "address for other nodes")
	f.StringVar(&flags.HTTP, "http", flags.HTTP, "address for /metrics, /healthz and /status; empty for none")
	f.BoolVar(&flags.Profiles, "profiles", flags.Profiles, "serve /debug/pprof/ on --http too, for go tool pprof")
	f.StringVar(&flags.Rack, "rack", flags.Rack, "the node's rack; replicas are spread over racks")
	f.StringSliceVar(&flags.Join, "join", flags.Join, "node addresses of the cluster to join; looked at by an empty data directory only")
	f.StringVar(&flags.PIDFile, "pid-file", flags.PIDFile, "file that holds the process's id while it runs")
	f.StringVar(&flags.Log.Level, "log-level", flags.Log.Level, "debug, info, warn or error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		config := conf.DefaultCore()
		if err := loadUnderFlags(c, file, &config, func() {
			over(c, "id", &config.ID, flags.ID)
			over(c, "data", &config.Data, flags.Data)
			over(c, "kafka", &config.Kafka, flags.Kafka)
			over(c, "advertise", &config.Advertise, flags.Advertise)
			over(c, "node", &config.Node, flags.Node)
			over(c, "http", &config.HTTP, flags.HTTP)
			over(c, "profiles", &config.Profiles, flags.Profiles)
			over(c, "rack", &config.Rack, flags.Rack)
			over(c, "join", &config.Join, flags.Join)
			over(c, "pid-file", &config.PIDFile, flags.PIDFile)
			over(c, "log-level", &config.Log.Level, flags.Log.Level)
		}); err != nil {
			return err
		}
		return runCore(c.Context(), config, config.Log.Logger(c.ErrOrStderr()), func(a coreAddresses) {
			fmt.Fprintln(c.OutOrStdout(), a)
		})
	}
	return c
}

// coreAddresses says where a node serves.
type coreAddresses struct {
	ID                int32
	Kafka, Node, HTTP string
}

// String is the one line that a node prints when it serves.
func (a coreAddresses) String() string {
	text := fmt.Sprintf("sluice core %d serves: kafka %s, node %s", a.ID, a.Kafka, a.Node)
	if a.HTTP != "" {
		text += ", http http://" + a.HTTP
	}
	return text
}

// coreNode is a node between construction and its end.
type coreNode struct {
	config     conf.Core
	logger     *slog.Logger
	listener   kafka.Listener
	controller *controller.Controller
	broker     *broker.Broker
	door       *rest.Server
	segments   int // that may be open
}

// runCore builds a node, serves until ctx ends, and stops in order.
func runCore(ctx context.Context, config conf.Core, logger *slog.Logger, serving func(coreAddresses)) error {
	if config.PIDFile != "" {
		remove, err := proc.WritePIDFile(config.PIDFile)
		if err != nil {
			return err
		}
		defer remove()
	}
	files := limits(logger)
	if config.Limits.Connections == 0 {
		config.Limits.Connections = connectionsFor(files)
	}
	var n *coreNode
	if err := proc.AfterPredecessor(ctx, logger, func() error {
		n = &coreNode{config: config, logger: logger, segments: segmentsFor(files)}
		err := n.open()
		if err != nil {
			n.close()
		}
		return err
	}); err != nil {
		return coreHint(err)
	}
	p := proc.New(logger)
	if n.door != nil {
		p.Add(proc.Part{Name: "http", Why: "first up and last down, so that a node which starts or stops can be looked at", Run: n.door.Run})
	}
	p.Add(proc.Part{Name: "controller", Why: "what is served comes from metadata and shards; it hands leaderships over when it stops", Ready: n.controller.Ready(), Run: n.controller.Run})
	p.Add(proc.Part{Name: "broker", Why: "clients come last and are let go first", Ready: n.broker.Ready(), Run: n.broker.Run})
	return coreHint(p.Run(ctx, func() { serving(n.addresses()) }))
}

// connectionsFor is how many clients may be connected to a process that may open so many files: the rest is for segments, logs and other nodes.
func connectionsFor(files uint64) int { return int(min(files, math.MaxInt32) * 3 / 5) }

// segmentsFor is how many segments may be open in a process that may open so many files. More than segmentsMax are not written to at one
// time.
func segmentsFor(files uint64) int {
	return int(min(max(min(files, math.MaxInt32)*3/10, segmentsMin), segmentsMax))
}

const segmentsMin, segmentsMax = 64, 8192

// limits prepares the process: a node holds many files and leaves memory to the page cache. It returns how many files may be open.
func limits(logger *slog.Logger) uint64 {
	files, err := proc.RaiseFileLimit()
	if err != nil {
		logger.Warn("limit of open files stays as it is", "error", err)
		files = filesUsual
	}
	if n := proc.LimitMemory(); n > 0 {
		logger.Debug("soft memory limit is set", "bytes", n)
	}
	return files
}

// filesUsual is what systems allow a process that asks for nothing.
const filesUsual = 1024

func (n *coreNode) open() error {
	c := n.config
	server, _, err := n.tls("kafka", c.TLS.Kafka)
	if err != nil {
		return err
	}
	name := "PLAINTEXT"
	if server != nil {
		name = "SSL"
	}
	if n.listener, err = broker.Listen(name, c.Kafka, server); err != nil {
		return err
	}
	self, err := n.self()
	if err != nil {
		return err
	}
	nodeServer, nodeClient, err := n.tls("node", c.TLS.Node)
	if err != nil {
		return err
	}
	fs, err := disk(n.logger, c.Data)
	if err != nil {
		return err
	}
	n.controller, err = controller.Open(controller.Options{
		FS: fs, Now: wallClock, DataDir: c.Data, Self: self, Listen: c.Node, Join: c.Join, TLSServer: nodeServer, TLSClient: nodeClient,
		Defaults: controller.Defaults{
			NumPartitions: c.Topics.Partitions, ReplicationFactor: c.Topics.ReplicationFactor, OffsetsPartitions: c.Topics.OffsetsPartitions,
		},
		Files:        commitlog.NewFiles(n.segments),
		ReserveBytes: c.ReserveBytes, ScrubBytesPerSecond: c.Scrub.BytesPerSecond, ScrubInterval: c.Scrub.Interval,
		Version: versionText(), Logger: n.logger.With("component", "controller"),
	})
	if err != nil {
		return err
	}
	n.broker, err = broker.New(broker.Options{
		Controller: n.controller, Listeners: []kafka.Listener{n.listener}, Now: wallClock, Logger: n.logger.With("component", "broker"),
		ConnectionsMax: c.Limits.Connections, ConnectionsPerHostMax: c.Limits.ConnectionsPerHost, MemoryBytes: c.Limits.RequestBytes,
		UnsentBytes: c.Limits.UnsentBytes,
	})
	if err != nil || c.HTTP == "" {
		return err
	}
	n.door, err = rest.Open(rest.Options{
		Listen: c.HTTP, Health: n.health, Version: versionText(), Profiles: c.Profiles, Logger: n.logger.With("component", "http"),
		Components: map[string]rest.Component{"controller": n.controller, "broker": n.broker},
		Routes:     clusterRoutes(n.controller),
	})
	return err
}

// self is the node as clients and other nodes shall find it.
func (n *coreNode) self() (meta.Node, error) {
	advertise := n.config.Advertise
	if advertise == "" {
		advertise = n.listener.Addr().String()
	}
	host, portText, err := net.SplitHostPort(advertise)
	if err != nil {
		return meta.Node{}, fmt.Errorf("advertise %s: %w", advertise, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return meta.Node{}, fmt.Errorf("advertise %s: %w", advertise, err)
	}
	return meta.Node{
		ID: meta.NodeID(n.config.ID), Rack: n.config.Rack, KafkaHost: host, KafkaPort: int32(port), HTTPAddr: n.config.HTTP,
	}, nil
}

// tls returns the configurations of both ends, nil without certificates.
func (n *coreNode) tls(what string, c conf.Certificate) (server, client *tls.Config, err error) {
	if c.Cert == "" {
		return nil, nil, nil
	}
	source, err := tlsfile.Open(tlsfile.Files{Cert: c.Cert, Key: c.Key, CA: c.CA}, n.logger.With("component", "tls", "listener", what))
	if err != nil {
		return nil, nil, err
	}
	return source.Server(), source.Client(""), nil
}

// health says why the node does not serve.
func (n *coreNode) health() error {
	select {
	case <-n.broker.Ready():
		return nil
	default:
		return errors.New("the node is starting: it has not caught up with the cluster's metadata")
	}
}

func (n *coreNode) addresses() coreAddresses {
	a := coreAddresses{ID: n.config.ID, Kafka: n.listener.Addr().String(), Node: n.controller.Addr()}
	if n.door != nil {
		a.HTTP = n.door.Addr().String()
	}
	return a
}

// close gives back what open took when it did not finish.
func (n *coreNode) close() {
	if n.listener.Listener != nil {
		_ = n.listener.Close()
	}
	if n.controller != nil {
		_ = n.controller.Close()
	}
}

// coreHint says what to do about a node that does not start.
func coreHint(err error) error {
	switch {
	case errors.Is(err, controller.ErrInUse):
		return hint(err, "stop the process that runs on this directory, or choose another with --data")
	case errors.Is(err, controller.ErrRemoved):
		return hint(err, "its replicas are elsewhere; with an empty data directory it can join again")
	case errors.Is(err, controller.ErrOtherNode):
		return hint(err, "start with the --id that the directory was made with, or choose another with --data")
	}
	return err
}
