package conf

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// Core is the configuration of a core node. Flags of `sluice core` stand above it.
type Core struct {
	ID        int32    `yaml:"id"`        // unique in the cluster; 0 or more
	Data      string   `yaml:"data"`      // the data directory
	Kafka     string   `yaml:"kafka"`     // where clients connect
	Advertise string   `yaml:"advertise"` // what clients are told; "" for what kafka says
	Node      string   `yaml:"node"`      // where other nodes connect
	HTTP      string   `yaml:"http"`      // /metrics, /healthz, /status; "" for none
	Profiles  bool     `yaml:"profiles"`  // serve /debug/pprof/ too
	Rack      string   `yaml:"rack"`
	Join      []string `yaml:"join"` // node addresses of a running cluster; looked at by an empty data directory only
	PIDFile   string   `yaml:"pidFile"`
	// ReserveBytes of the data directory's disk stay free: with less, no records are taken for the shards of this node. 0 for 1 GiB or a twentieth
	// of the disk, whichever is less, but at least what the node may have in flight.
	ReserveBytes int64   `yaml:"reserveBytes"`
	Limits       Limits  `yaml:"limits"`
	Scrub        Scrub   `yaml:"scrub"`
	Topics       Topics  `yaml:"topics"`
	TLS          CoreTLS `yaml:"tls"`
	Log          Log     `yaml:"log"`
}

// Scrub says how the segments on the disk are read again in the background and compared with their checksums.
type Scrub struct {
	BytesPerSecond int64         `yaml:"bytesPerSecond"` // while the node is at work; four times as much after its start and while it is idle; -1: never
	Interval       time.Duration `yaml:"interval"`       // from the beginning of one pass over everything to the next
}

// Topics says what a topic gets when its creator does not say.
type Topics struct {
	Partitions        int32 `yaml:"partitions"`
	ReplicationFactor int16 `yaml:"replicationFactor"` // 0 for three, or as many as there are nodes
	OffsetsPartitions int32 `yaml:"offsetsPartitions"` // of __consumer_offsets
}

// CoreTLS has the certificates of a node; empty means plain text.
type CoreTLS struct {
	Kafka Certificate `yaml:"kafka"`
	Node  Certificate `yaml:"node"` // both ends show theirs
}

// Certificate names PEM files. They are read again when they change.
type Certificate struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"` // who signs the other end's certificate
}

// Limits bound what clients can make a node do.
type Limits struct {
	Connections        int   `yaml:"connections"`        // of clients (max.connections); 0 for three fifths of the files that the process may open
	ConnectionsPerHost int   `yaml:"connectionsPerHost"` // from one address (max.connections.per.ip); 0 for no bound of its own
	RequestBytes       int64 `yaml:"requestBytes"`       // memory of all requests that are being read or answered (queued.max.request.bytes); 0 for 512 MiB
	UnsentBytes        int   `yaml:"unsentBytes"`        // that the system holds of a client's answers when the client stops reading (as socket.send.buffer.bytes); 0 for 256 KiB
}

// Log says how a process writes its log.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// Limits of the fields.
const (
	reserveBytesMin = 1 << 20  // what a node writes to say goodbye has to fit
	partitionsMax   = 10_000   // of one topic by default; more is surely a mistake
	requestBytesMin = 64 << 20 // a few batches of every size have to fit
	unsentBytesMin  = 16 << 10 // less wakes the node for every few packets
	unsentBytesMax  = 64 << 20
	scrubBytesMin   = 64 << 10
	scrubMin        = time.Second
	replicationMax  = 9 // more voters make every write slower and nothing safer
)

// DefaultCore is a node on localhost that begins a cluster of its own.
func DefaultCore() Core {
	return Core{
		ID: 1, Data: "data", Kafka: "127.0.0.1:9092", Node: "127.0.0.1:9093", HTTP: "127.0.0.1:9644",
		Scrub:  Scrub{BytesPerSecond: 8 << 20, Interval: 24 * time.Hour},
		Topics: Topics{Partitions: 3, OffsetsPartitions: 10},
		Log:    DefaultLog(),
	}
}

// DefaultLog is what every process of the house does.
func DefaultLog() Log { return Log{Level: "info", Format: "text"} }

// Validate names the field and the value that are wrong.
func (c *Core) Validate() error {
	if c.ID < 0 {
		return fmt.Errorf("id: %d: must be 0 or more", c.ID)
	}
	if c.Data == "" {
		return errors.New("data: must name a directory")
	}
	if c.ReserveBytes != 0 && c.ReserveBytes < reserveBytesMin {
		return fmt.Errorf("reserveBytes: %d: must be 0 (by the size of the disk) or at least %d", c.ReserveBytes, reserveBytesMin)
	}
	if err := errors.Join(c.Scrub.validate(), c.Limits.validate()); err != nil {
		return err
	}
	for _, a := range []struct{ field, value string }{{"kafka", c.Kafka}, {"node", c.Node}, {"http", c.HTTP}, {"advertise", c.Advertise}} {
		if a.value == "" && (a.field == "http" || a.field == "advertise") {
			continue
		}
		if err := CheckAddress(a.field, a.value); err != nil {
			return err
		}
	}
	for i, addr := range c.Join {
		if err := CheckAddress(fmt.Sprintf("join[%d]", i), addr); err != nil {
			return err
		}
	}
	return errors.Join(c.reachable(), c.Topics.validate(), c.TLS.validate(), c.Log.Validate())
}

// reachable refuses to tell other hosts an address that means "every interface".
func (c *Core) reachable() error {
	if wildcard(c.Kafka) && c.Advertise == "" {
		return fmt.Errorf("advertise: must be set when kafka is %q, so that clients know where to connect", c.Kafka)
	}
	if wildcard(c.Advertise) {
		return fmt.Errorf("advertise: %q: must be an address that clients can connect to", c.Advertise)
	}
	if wildcard(c.Node) {
		return fmt.Errorf("node: %q: must be an address that other nodes can connect to", c.Node)
	}
	return nil
}

func wildcard(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

func (s Scrub) validate() error {
	switch {
	case s.BytesPerSecond != -1 && s.BytesPerSecond < scrubBytesMin:
		return fmt.Errorf("scrub.bytesPerSecond: %d: must be -1 (never) or at least %d", s.BytesPerSecond, scrubBytesMin)
	case s.Interval < scrubMin:
		return fmt.Errorf("scrub.interval: %s: must be at least %s", s.Interval, scrubMin)
	}
	return nil
}

func (l Limits) validate() error {
	switch {
	case l.Connections < 0:
		return fmt.Errorf("limits.connections: %d: must be 0 (by the limit of open files) or more", l.Connections)
	case l.ConnectionsPerHost < 0:
		return fmt.Errorf("limits.connectionsPerHost: %d: must be 0 (no bound) or more", l.ConnectionsPerHost)
	case l.RequestBytes != 0 && l.RequestBytes < requestBytesMin:
		return fmt.Errorf("limits.requestBytes: %d: must be 0 (512 MiB) or at least %d", l.RequestBytes, requestBytesMin)
	case l.UnsentBytes != 0 && (l.UnsentBytes < unsentBytesMin || l.UnsentBytes > unsentBytesMax):
		return fmt.Errorf("limits.unsentBytes: %d: must be 0 (256 KiB) or from %d to %d", l.UnsentBytes, unsentBytesMin, unsentBytesMax)
	}
	return nil
}

func (t Topics) validate() error {
	switch {
	case t.Partitions < 1 || t.Partitions > partitionsMax:
		return fmt.Errorf("topics.partitions: %d: must be from 1 to %d", t.Partitions, partitionsMax)
	case t.ReplicationFactor < 0 || t.ReplicationFactor > replicationMax:
		return fmt.Errorf("topics.replicationFactor: %d: must be from 0 (three, or as many as there are nodes) to %d", t.ReplicationFactor, replicationMax)
	case t.OffsetsPartitions < 1 || t.OffsetsPartitions > partitionsMax:
		return fmt.Errorf("topics.offsetsPartitions: %d: must be from 1 to %d", t.OffsetsPartitions, partitionsMax)
	}
	return nil
}

func (t CoreTLS) validate() error {
	if err := t.Kafka.validate("tls.kafka"); err != nil {
		return err
	}
	if err := t.Node.validate("tls.node"); err != nil {
		return err
	}
	if t.Node.Cert != "" && t.Node.CA == "" {
		return errors.New("tls.node.ca: must be set: nodes prove themselves to each other")
	}
	return nil
}

func (c Certificate) validate(field string) error {
	switch {
	case c.Cert == "" && (c.Key != "" || c.CA != ""):
		return fmt.Errorf("%s.cert: must be set when key or ca is", field)
	case c.Cert != "" && c.Key == "":
		return fmt.Errorf("%s.key: must be set when cert is", field)
	}
	return nil
}

// Validate names the field and the value that are wrong.
func (l Log) Validate() error {
	if _, ok := levels[l.Level]; !ok {
		return fmt.Errorf("log.level: %q: must be debug, info, warn or error", l.Level)
	}
	if l.Format != "text" && l.Format != "json" {
		return fmt.Errorf("log.format: %q: must be text or json", l.Format)
	}
	return nil
}

// CheckAddress accepts host:port with a port from 0 to 65535.
func CheckAddress(field, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s: %q: must be host:port", field, addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%s: %q: the port must be a number up to 65535", field, addr)
	} else if n == 0 && field == "advertise" {
		return fmt.Errorf("%s: %q: the port must not be 0", field, addr)
	}
	return nil
}
