package broker

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/meta"
)

// describe asks for the configuration of one resource.
func describe(c *rawConn, version int16, kind kmsg.ConfigResourceType, name string, names ...string) kmsg.DescribeConfigsResponseResource {
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Version, req.IncludeSynonyms, req.IncludeDocumentation = version, true, true
	req.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: kind, ResourceName: name, ConfigNames: names}}
	return ask[*kmsg.DescribeConfigsResponse](c, req).Resources[0]
}

func byName(t *testing.T, r kmsg.DescribeConfigsResponseResource) map[string]kmsg.DescribeConfigsResponseResourceConfig {
	t.Helper()
	if r.ErrorCode != 0 {
		t.Fatalf("describe %s: %s %v", r.ResourceName, errorName(r.ErrorCode), *r.ErrorMessage)
	}
	out := make(map[string]kmsg.DescribeConfigsResponseResourceConfig)
	for _, c := range r.Configs {
		out[c.Name] = c
	}
	return out
}

func describeTopicConfigs(t *testing.T, c *rawConn, topic string) map[string]kmsg.DescribeConfigsResponseResourceConfig {
	t.Helper()
	return byName(t, describe(c, 4, kmsg.ConfigResourceTypeTopic, topic))
}

// alterOne makes one incremental change.
func alterOne(c *rawConn, kind kmsg.ConfigResourceType, name string, op kmsg.IncrementalAlterConfigOp, key, value string) (code int16, message string) {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Version = 1
	config := kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: key, Op: op, Value: &value}
	if op == kmsg.IncrementalAlterConfigOpDelete {
		config.Value = nil
	}
	req.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: kind, ResourceName: name, Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{config}}}
	r := ask[*kmsg.IncrementalAlterConfigsResponse](c, req).Resources[0]
	if r.ErrorMessage != nil {
		message = *r.ErrorMessage
	}
	return r.ErrorCode, message
}

func TestDescribeTopicConfigs(t *testing.T) {
	c := startCluster(t, 1)
	c.create("t", 1, map[string]string{"retention.ms": "1000"})
	raw := dialRaw(t, c.nodes[0].kafka)
	for version := int16(0); version <= 4; version++ {
		if got := describe(raw, version, kmsg.ConfigResourceTypeTopic, "t"); got.ErrorCode != 0 || len(got.Configs) < 30 {
			t.Errorf("version %d answered %s and %d configs", version, errorName(got.ErrorCode), len(got.Configs))
		}
	}
	all := describeTopicConfigs(t, raw, "t")
	own, def := all["retention.ms"], all["segment.bytes"]
	if *own.Value != "1000" || own.Source != kmsg.ConfigSourceDynamicTopicConfig || own.ReadOnly || own.ConfigType != kmsg.ConfigTypeLong {
		t.Errorf("what the topic sets is %+v", own)
	}
	var chain []string
	for _, s := range own.ConfigSynonyms {
		chain = append(chain, s.Name+"="+*s.Value+" "+s.Source.String())
	}
	if diff := cmp.Diff([]string{"retention.ms=1000 DYNAMIC_TOPIC_CONFIG", "log.retention.hours=168 DEFAULT_CONFIG"}, chain); diff != "" {
		t.Error(diff)
	}
	if *def.Value != "1073741824" || def.Source != kmsg.ConfigSourceDefaultConfig || def.Documentation == nil || *def.Documentation == "" {
		t.Errorf("a default is %+v", def)
	}
	if _, listed := all["internal.segment.bytes"]; listed {
		t.Error("a hidden name is listed")
	}
	if got := describe(raw, 4, kmsg.ConfigResourceTypeTopic, "t", "segment.ms", "unknown"); len(got.Configs) != 1 || *got.Configs[0].Value != "604800000" {
		t.Errorf("chosen names answered %+v", got.Configs)
	}
}

func TestDescribeConfigsErrors(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	for _, w := range []struct {
		kind kmsg.ConfigResourceType
		name string
		code string
	}{
		{kmsg.ConfigResourceTypeTopic, "missing", "UNKNOWN_TOPIC_OR_PARTITION"},
		{kmsg.ConfigResourceTypeTopic, "bad name", "INVALID_TOPIC_EXCEPTION"},
		{kmsg.ConfigResourceTypeBroker, "7", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeBroker, "x", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeBrokerLogger, "7", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeClientMetrics, "", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeGroupConfig, "", "INVALID_REQUEST"},
		{99, "x", "INVALID_REQUEST"},
	} {
		if got := describe(raw, 4, w.kind, w.name); errorName(got.ErrorCode) != w.code {
			t.Errorf("%v %q answered %s", w.kind, w.name, errorName(got.ErrorCode))
		}
	}
}

func TestDescribeBrokerConfigs(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	all := byName(t, describe(raw, 4, kmsg.ConfigResourceTypeBroker, "1"))
	if len(all) < 150 {
		t.Errorf("%d names are listed", len(all))
	}
	for name, want := range map[string]string{
		"log.retention.hours": "168", "message.max.bytes": "1048588", "num.partitions": "3", "auto.create.topics.enable": "true",
		"default.replication.factor": "1", "min.insync.replicas": "1", "node.id": "1", "broker.rack": "rack1", "log.dirs": c.nodes[0].dir,
		"listeners": "PLAINTEXT://" + c.nodes[0].kafka, "log.retention.ms": "604800000", "offsets.topic.num.partitions": "10",
		"group.initial.rebalance.delay.ms": "0",
	} {
		if got := all[name]; got.Value == nil || *got.Value != want {
			t.Errorf("%s is %v, want %s", name, got.Value, want)
		}
	}
	if got := all["ssl.keystore.password"]; got.Value != nil || !got.IsSensitive {
		t.Errorf("a secret is %+v", got)
	}
	if !all["node.id"].ReadOnly || all["log.retention.ms"].ReadOnly {
		t.Error("what can be changed and what cannot is mixed up")
	}
	if got := byName(t, describe(raw, 4, kmsg.ConfigResourceTypeBrokerLogger, "1")); *got["ROOT"].Value == "" {
		t.Errorf("the logger is %+v", got)
	}
}

func TestBrokerDefaultsReachTopics(t *testing.T) {
	c := startCluster(t, 1)
	c.create("t", 1, nil)
	raw := dialRaw(t, c.nodes[0].kafka)
	const broker = kmsg.ConfigResourceTypeBroker
	if code, message := alterOne(raw, broker, "", kmsg.IncrementalAlterConfigOpSet, "log.retention.ms", "7000"); code != 0 {
		t.Fatalf("set: %s %s", errorName(code), message)
	}
	if got := describeTopicConfigs(t, raw, "t")["retention.ms"]; *got.Value != "7000" || got.Source != kmsg.ConfigSourceDynamicDefaultBrokerConfig {
		t.Errorf("the topic has %s from %v", *got.Value, got.Source)
	}
	image := c.nodes[0].ctl.Image()
	if got := image.TopicSettings(image.Topic("t")).RetentionMs; got != 7000 {
		t.Errorf("the topic's effective retention is %d", got)
	}
	set := describe(raw, 4, broker, "")
	if len(set.Configs) != 1 || set.Configs[0].Name != "log.retention.ms" {
		t.Errorf("what is set for all brokers is %+v", set.Configs)
	}
	if code, _ := alterOne(raw, broker, "1", kmsg.IncrementalAlterConfigOpSet, "log.retention.ms", "9000"); code != 0 {
		t.Fatal(errorName(code))
	}
	if got := describeTopicConfigs(t, raw, "t")["retention.ms"]; *got.Value != "9000" || got.Source != kmsg.ConfigSourceDynamicBrokerConfig {
		t.Errorf("with a setting of the broker's own the topic has %s from %v", *got.Value, got.Source)
	}
	if code, _ := alterOne(raw, broker, "1", kmsg.IncrementalAlterConfigOpSet, "my.plugin", "x"); code != 0 {
		t.Fatal(errorName(code))
	}
	if got := byName(t, describe(raw, 4, broker, "1"))["my.plugin"]; got.Value != nil || !got.IsSensitive {
		t.Errorf("a name that nobody knows is shown as %+v", got)
	}
}

func TestIncrementalAlterConfigs(t *testing.T) {
	c := startCluster(t, 1)
	c.create("t", 1, map[string]string{"cleanup.policy": "delete"})
	raw := dialRaw(t, c.nodes[0].kafka)
	const (
		set, del, app, sub = kmsg.IncrementalAlterConfigOpSet, kmsg.IncrementalAlterConfigOpDelete, kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract
		topic              = kmsg.ConfigResourceTypeTopic
	)
	for _, w := range []struct {
		op         kmsg.IncrementalAlterConfigOp
		key, value string
		code, want string
	}{
		{set, "retention.ms", "1000000", "NONE", "1000000"},
		{app, "cleanup.policy", "compact", "NONE", "delete,compact"},
		{app, "cleanup.policy", "compact", "NONE", "delete,compact"},
		{sub, "cleanup.policy", "delete", "NONE", "compact"},
		{del, "retention.ms", "", "NONE", "604800000"},
		{del, "retention.ms", "", "NONE", "604800000"},
		{set, "retention.ms", "soon", "INVALID_CONFIG", "604800000"},
		{app, "retention.ms", "1", "INVALID_CONFIG", "604800000"},
		{set, "no.such", "1", "INVALID_CONFIG", ""},
		{9, "retention.ms", "1", "INVALID_REQUEST", "604800000"},
	} {
		code, message := alterOne(raw, topic, "t", w.op, w.key, w.value)
		if errorName(code) != w.code || (code != 0) != (message != "") {
			t.Errorf("%v %s %s answered %s %q", w.op, w.key, w.value, errorName(code), message)
		}
		if w.want == "" {
			continue
		}
		if got := *describeTopicConfigs(t, raw, "t")[w.key].Value; got != w.want {
			t.Errorf("after %v %s %s it is %s, want %s", w.op, w.key, w.value, got, w.want)
		}
	}
}

func TestAlterConfigsRefusals(t *testing.T) {
	c := startCluster(t, 1)
	c.create("t", 1, nil)
	raw := dialRaw(t, c.nodes[0].kafka)
	for _, w := range []struct {
		kind             kmsg.ConfigResourceType
		name, key, value string
		code             string
	}{
		{kmsg.ConfigResourceTypeTopic, "missing", "retention.ms", "1", "UNKNOWN_TOPIC_OR_PARTITION"},
		{kmsg.ConfigResourceTypeTopic, "", "retention.ms", "1", "INVALID_TOPIC_EXCEPTION"},
		{kmsg.ConfigResourceTypeBroker, "one", "log.cleaner.threads", "2", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeBroker, "7", "log.cleaner.threads", "2", "RESOURCE_NOT_FOUND"},
		{kmsg.ConfigResourceTypeBroker, "1", "node.id", "2", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeBroker, "", "log.cleaner.threads", "many", "INVALID_CONFIG"},
		{kmsg.ConfigResourceTypeBrokerLogger, "1", "ROOT", "DEBUG", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeGroupConfig, "", "share.auto.offset.reset", "earliest", "INVALID_REQUEST"},
		{kmsg.ConfigResourceTypeGroupConfig, "g", "consumer.session.timeout.ms", "6000", "INVALID_CONFIG"},
		{kmsg.ConfigResourceTypeClientMetrics, "m", "no.such", "1", "INVALID_CONFIG"},
		{99, "x", "a", "b", "INVALID_REQUEST"},
	} {
		if code, message := alterOne(raw, w.kind, w.name, kmsg.IncrementalAlterConfigOpSet, w.key, w.value); errorName(code) != w.code || message == "" {
			t.Errorf("%v %q %s=%s answered %s %q", w.kind, w.name, w.key, w.value, errorName(code), message)
		}
	}
}

func replace(c *rawConn, version int16, validate bool, topic string, settings ...string) string {
	req := kmsg.NewPtrAlterConfigsRequest()
	req.Version, req.ValidateOnly = version, validate
	r := kmsg.AlterConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: topic}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		r.Configs = append(r.Configs, kmsg.AlterConfigsRequestResourceConfig{Name: name, Value: &value})
	}
	req.Resources = append(req.Resources, r)
	return errorName(ask[*kmsg.AlterConfigsResponse](c, req).Resources[0].ErrorCode)
}

// The old AlterConfigs resets what it does not name.
func TestAlterConfigsReplaces(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	c.create("t", 1, map[string]string{"cleanup.policy": "compact", "segment.ms": "5000"})
	now := func() (own []string) {
		for _, e := range describe(raw, 4, kmsg.ConfigResourceTypeTopic, "t").Configs {
			if e.Source == kmsg.ConfigSourceDynamicTopicConfig {
				own = append(own, e.Name+"="+*e.Value)
			}
		}
		return own
	}
	for version := int16(0); version <= 2; version++ {
		if code := replace(raw, version, true, "t", "retention.ms=1"); code != "NONE" || slices.Contains(now(), "retention.ms=1") {
			t.Errorf("version %d: validating answered %s, set is %v", version, code, now())
		}
		if code := replace(raw, version, false, "t", "retention.ms=2000000", "segment.ms=6000"); code != "NONE" {
			t.Errorf("version %d answered %s", version, code)
		}
		if diff := cmp.Diff([]string{"retention.ms=2000000", "segment.ms=6000"}, now()); diff != "" {
			t.Errorf("version %d: %s", version, diff)
		}
		if code := replace(raw, version, false, "t", "retention.ms=soon"); code != "INVALID_CONFIG" || len(now()) != 2 {
			t.Errorf("version %d: a bad value answered %s, set is %v", version, code, now())
		}
		if code := replace(raw, version, false, "t", "retention.ms=1", "retention.ms=2"); code != "INVALID_REQUEST" {
			t.Errorf("version %d: a name twice answered %s", version, code)
		}
		if code := replace(raw, version, false, "t"); code != "NONE" || len(now()) != 0 {
			t.Errorf("version %d: a reset answered %s, set is %v", version, code, now())
		}
	}
	if code := replace(raw, 2, false, "missing", "retention.ms=1"); code != "UNKNOWN_TOPIC_OR_PARTITION" {
		t.Errorf("a topic that is not there answered %s", code)
	}
}

func TestListConfigResources(t *testing.T) {
	c := startCluster(t, 1)
	c.create("t", 1, nil)
	raw := dialRaw(t, c.nodes[0].kafka)
	const set = kmsg.IncrementalAlterConfigOpSet
	if code, _ := alterOne(raw, kmsg.ConfigResourceTypeClientMetrics, "m", set, "interval.ms", "60000"); code != 0 {
		t.Fatal(errorName(code))
	}
	if code, _ := alterOne(raw, kmsg.ConfigResourceTypeGroupConfig, "g", set, "share.auto.offset.reset", "earliest"); code != 0 {
		t.Fatal(errorName(code))
	}
	if got := byName(t, describe(raw, 4, kmsg.ConfigResourceTypeGroupConfig, "g"))["share.auto.offset.reset"]; *got.Value != "earliest" || got.Source != kmsg.ConfigSourceGroupConfig {
		t.Errorf("the group's setting is %+v", got)
	}
	list := func(version int16, types ...int8) (code string, out []string) {
		req := kmsg.NewPtrListConfigResourcesRequest()
		req.Version, req.ResourceTypes = version, types
		resp := ask[*kmsg.ListConfigResourcesResponse](raw, req)
		for _, r := range resp.ConfigResources {
			out = append(out, r.Name)
		}
		return errorName(resp.ErrorCode), out
	}
	for _, w := range []struct {
		version int16
		types   []int8
		code    string
		names   []string
	}{
		{0, nil, "NONE", []string{"m"}},
		{1, []int8{meta.ResourceTopic}, "NONE", []string{"t"}},
		{1, []int8{meta.ResourceGroup, meta.ResourceGroup}, "NONE", []string{"g"}},
		{1, []int8{meta.ResourceBrokerLogger}, "NONE", []string{"1"}},
		{1, nil, "NONE", []string{"t", "1", "1", "m", "g"}},
		{1, []int8{meta.ResourceTopic, 99}, "UNSUPPORTED_VERSION", nil},
	} {
		code, names := list(w.version, w.types...)
		if code != w.code || !slices.Equal(names, w.names) {
			t.Errorf("version %d, types %v answered %s %v", w.version, w.types, code, names)
		}
	}
}
