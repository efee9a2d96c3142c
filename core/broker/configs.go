package broker

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/meta"
)

// replicationDefaultMax is the default replication factor of a cluster that is large enough for it.
const replicationDefaultMax = 3

// configView works out what is in force for a resource, and where it comes from, as of one image.
type configView struct {
	image     *meta.Image
	perBroker map[string]string // dynamic settings of this broker
	cluster   map[string]string // dynamic settings of all brokers
	static    map[string]string // how this node was started
}

func (b *Broker) configView() configView {
	image := b.ctl.Image()
	return configView{
		image:     image,
		perBroker: image.Config(meta.ResourceBroker, nodeName(b.self())),
		cluster:   image.Config(meta.ResourceBroker, ""),
		static:    b.staticConfigs(image),
	}
}

func nodeName(id meta.NodeID) string { return strconv.Itoa(int(id)) }

// staticConfigs are the broker settings that this node's start and the size of the cluster decide.
func (b *Broker) staticConfigs(image *meta.Image) map[string]string {
	nodes := len(image.Nodes())
	factor := min(replicationDefaultMax, max(nodes, 1))
	out := map[string]string{
		"node.id": nodeName(b.self()), "broker.id": nodeName(b.self()),
		"default.replication.factor": strconv.Itoa(factor), "offsets.topic.replication.factor": strconv.Itoa(factor),
		"transaction.state.log.replication.factor": strconv.Itoa(factor),
		// A majority: 1 of 1, 2 of 2, 2 of 3.
		"min.insync.replicas": strconv.Itoa(factor/2 + 1), "transaction.state.log.min.isr": strconv.Itoa(factor/2 + 1),
		"log.dirs": b.ctl.DataDir(), "log.dir": b.ctl.DataDir(),
	}
	defaults := b.ctl.Defaults()
	out["num.partitions"] = strconv.Itoa(int(defaults.NumPartitions))
	out["offsets.topic.num.partitions"] = strconv.Itoa(int(defaults.OffsetsPartitions))
	if defaults.ReplicationFactor > 0 {
		out["default.replication.factor"] = strconv.Itoa(int(defaults.ReplicationFactor))
	}
	self, _ := image.Node(b.self())
	if self.Rack != "" {
		out["broker.rack"] = self.Rack
	}
	var listeners, advertised []string
	for _, l := range b.opts.Listeners {
		listeners = append(listeners, l.Name+"://"+l.Addr().String())
		advertised = append(advertised, l.Name+"://"+net.JoinHostPort(self.KafkaHost, strconv.Itoa(int(self.KafkaPort))))
	}
	out["listeners"], out["advertised.listeners"] = strings.Join(listeners, ","), strings.Join(advertised, ",")
	return out
}

// synonym is one place that a value can come from, the most specific first.
type synonym struct {
	name   string
	value  string
	source kmsg.ConfigSource
	scale  int64
}

// chain lists every place that has a value for the key: own settings (of the topic, say),
// then for each name that gives it its default the broker's, the cluster's, how the node was
// started, and what is built in.
func (v configView) chain(k *meta.ConfigKey, own map[string]string, source kmsg.ConfigSource) []synonym {
	var out []synonym
	if value, ok := own[k.Name]; ok {
		out = append(out, synonym{k.Name, value, source, 1})
	}
	from := k.Synonyms
	if len(from) == 0 && meta.BrokerConfigs.Key(k.Name) == k {
		from = []meta.ConfigSynonym{{Name: k.Name, Scale: 1}}
	}
	for _, s := range from {
		out = append(out, v.brokerChain(s)...)
	}
	if len(from) == 0 && !k.Null {
		out = append(out, synonym{k.Name, k.Default, kmsg.ConfigSourceDefaultConfig, 1})
	}
	return out
}

func (v configView) brokerChain(s meta.ConfigSynonym) []synonym {
	var out []synonym
	for _, place := range []struct {
		values map[string]string
		source kmsg.ConfigSource
	}{
		{v.perBroker, kmsg.ConfigSourceDynamicBrokerConfig},
		{v.cluster, kmsg.ConfigSourceDynamicDefaultBrokerConfig},
		{v.static, kmsg.ConfigSourceStaticBrokerConfig},
	} {
		if value, ok := place.values[s.Name]; ok {
			out = append(out, synonym{s.Name, value, place.source, s.Scale})
		}
	}
	if k := meta.BrokerConfigs.Key(s.Name); k != nil && !k.Null {
		out = append(out, synonym{s.Name, k.Default, kmsg.ConfigSourceDefaultConfig, s.Scale})
	}
	return out
}

// entry is one configuration as DescribeConfigs and CreateTopics answer it.
type entry struct {
	key    *meta.ConfigKey
	value  *string
	source kmsg.ConfigSource
	chain  []synonym
}

func (v configView) entry(k *meta.ConfigKey, own map[string]string, source kmsg.ConfigSource) entry {
	e := entry{key: k, source: kmsg.ConfigSourceDefaultConfig, chain: v.chain(k, own, source)}
	if len(e.chain) > 0 {
		first := e.chain[0]
		e.source = first.source
		e.value = kmsg.StringPtr(meta.ConfigSynonym{Name: first.name, Scale: first.scale}.Convert(first.value))
	}
	if k.Sensitive {
		e.value = nil
	}
	return e
}

// table lists all names of a table, with those that only the resource itself has set.
func (v configView) table(t *meta.ConfigTable, own map[string]string, source kmsg.ConfigSource) []entry {
	out := make([]entry, 0, len(t.Keys()))
	for _, k := range t.Keys() {
		if _, set := own[k.Name]; k.Hidden && !set {
			continue
		}
		out = append(out, v.entry(k, own, source))
	}
	return out
}

// topic lists the configuration of a topic with those settings.
func (v configView) topic(own map[string]string) []entry {
	return v.table(meta.TopicConfigs, own, kmsg.ConfigSourceDynamicTopicConfig)
}

// set lists only what is set, also names that no table knows.
func set(t *meta.ConfigTable, own map[string]string, source kmsg.ConfigSource) []entry {
	var out []entry
	for _, name := range slices.Sorted(maps.Keys(own)) {
		k := t.Key(name)
		if k == nil {
			k = &meta.ConfigKey{Name: name, Type: meta.TypeString, Update: meta.PerBroker, Sensitive: true}
		}
		e := entry{key: k, source: source, chain: []synonym{{name, own[name], source, 1}}}
		if !k.Sensitive {
			e.value = kmsg.StringPtr(own[name])
		}
		out = append(out, e)
	}
	return out
}

// logger lists the one logger of the node: ROOT, with the level it was started with.
func (b *Broker) loggerEntries() []entry {
	level := "ERROR"
	for _, l := range []slog.Level{slog.LevelWarn, slog.LevelInfo, slog.LevelDebug} {
		if b.log.Enabled(context.Background(), l) {
			level = l.String()
		}
	}
	k := &meta.ConfigKey{Name: "ROOT", Type: meta.TypeString, Doc: "The level of the node's log. It is set when the node starts."}
	return []entry{{key: k, value: &level, source: kmsg.ConfigSourceDynamicBrokerLoggerConfig}}
}
