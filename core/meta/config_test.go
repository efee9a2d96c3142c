package meta

import (
	"maps"
	"testing"
)

func TestDefaultsAreValid(t *testing.T) {
	for _, table := range []*ConfigTable{TopicConfigs, BrokerConfigs, GroupConfigs, ClientMetricsConfigs} {
		for _, k := range table.Keys() {
			if k.Doc == "" {
				t.Errorf("%s has no documentation", k.Name)
			}
			if k.Null || k.Default == "" {
				continue
			}
			if err := k.Validate(k.Default); err != nil {
				t.Errorf("the default of %s: %v", k.Name, err)
			}
		}
	}
	if n := len(TopicConfigs.Keys()); n < 30 {
		t.Errorf("%d topic configurations, want Kafka's 30 and more", n)
	}
	if n := len(BrokerConfigs.Keys()); n < 150 {
		t.Errorf("%d broker configurations, want 150 and more", n)
	}
}

func TestSynonymsAreBrokerNames(t *testing.T) {
	for _, table := range []*ConfigTable{TopicConfigs, GroupConfigs} {
		for _, k := range table.Keys() {
			for _, s := range k.Synonyms {
				if BrokerConfigs.Key(s.Name) == nil {
					t.Errorf("%s has the synonym %s, which no broker knows", k.Name, s.Name)
				}
			}
		}
	}
}

func TestValidateTopicConfig(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"retention.ms", "soon", "Invalid value soon for configuration retention.ms: Not a number of type LONG"},
		{"retention.ms", "-2", "Invalid value -2 for configuration retention.ms: Value must be at least -1"},
		{"retention.ms", " 5 ", ""},
		{"no.such.config", "1", "Unknown topic config name: no.such.config"},
		{"cleanup.policy", "compact, delete", ""},
		{"cleanup.policy", "", ""},
		{"cleanup.policy", "shred", "Invalid value shred for configuration cleanup.policy: String must be one of: compact, delete"},
		{"compression.type", "zip", "Invalid value zip for configuration compression.type: String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer"},
		{"compression.lz4.level", "18", "Invalid value 18 for configuration compression.lz4.level: Value must be no more than 17"},
		{"compression.gzip.level", "0", "Invalid value 0 for configuration compression.gzip.level: Value must be at least 1"},
		{"compression.gzip.level", "-1", ""},
		{"preallocate", "yes", "Invalid value yes for configuration preallocate: Expected value to be either true or false"},
		{"preallocate", "TRUE", ""},
		{"min.cleanable.dirty.ratio", "1.5", "Invalid value 1.5 for configuration min.cleanable.dirty.ratio: Value must be no more than 1"},
		{"min.cleanable.dirty.ratio", "half", "Invalid value half for configuration min.cleanable.dirty.ratio: Not a number of type DOUBLE"},
		{"max.message.bytes", "2147483648", "Invalid value 2147483648 for configuration max.message.bytes: Not a number of type INT"},
		{"segment.bytes", "1000", "Invalid value 1000 for configuration segment.bytes: Value must be at least 1048576"},
		{"internal.segment.bytes", "2000", ""},
		{"remote.storage.enable", "true", "Invalid value true for configuration remote.storage.enable: Tiered storage is not supported by this cluster"},
	} {
		if got := message(ValidateTopicConfig(c.name, c.value)); got != c.want {
			t.Errorf("%s=%s: got %q, want %q", c.name, c.value, got, c.want)
		}
	}
}

func TestValidateOtherResources(t *testing.T) {
	for _, c := range []struct {
		resource    int8
		name, value string
		want        string
	}{
		{ResourceBroker, "log.cleaner.threads", "2", ""},
		{ResourceBroker, "log.retention.ms", "soon", "Invalid value soon for configuration log.retention.ms: Not a number of type LONG"},
		{ResourceBroker, "node.id", "2", "Cannot update these configs dynamically: Set(node.id)"},
		{ResourceBroker, "my.plugin.setting", "x", ""},
		{ResourceGroup, "share.auto.offset.reset", "earliest", ""},
		{ResourceGroup, "share.auto.offset.reset", "by_duration:PT1H30M", ""},
		{ResourceGroup, "share.auto.offset.reset", "by_duration:1h", "Invalid value by_duration:1h for configuration share.auto.offset.reset: Invalid value for offset reset strategy; use latest, earliest or by_duration:<duration> as in by_duration:PT24H"},
		{ResourceGroup, "consumer.session.timeout.ms", "6000", "Invalid value 6000 for configuration consumer.session.timeout.ms: Value must be at least 45000"},
		{ResourceGroup, "no.such", "1", "Unknown group config name: no.such"},
		{ResourceClientMetrics, "interval.ms", "60000", ""},
		{99, "a", "b", "Unknown configuration resource type 99"},
	} {
		if got := message(ValidateConfig(c.resource, c.name, c.value)); got != c.want {
			t.Errorf("%d %s=%s: got %q, want %q", c.resource, c.name, c.value, got, c.want)
		}
	}
}

func TestTopicSettings(t *testing.T) {
	def := NewTopicSettings(nil, nil)
	if def.SegmentBytes != 1<<30 || def.RetentionMs != 7*dayMs || !def.Delete || def.Compact || def.CompressionType != "producer" ||
		def.MaxMessageBytes != 1048588 || def.MinInsyncReplicas != 1 || def.TimestampAfterMaxMs != hourMs || def.ZstdLevel != 3 {
		t.Errorf("defaults are %+v", def)
	}
	broker := map[string]string{"log.retention.ms": "5000", "log.cleanup.policy": "compact", "num.partitions": "7"}
	s := NewTopicSettings(map[string]string{"cleanup.policy": "compact,delete", "min.insync.replicas": "2", "retention.bytes": "bad"}, broker)
	if s.RetentionMs != 5000 || s.CleanupPolicy() != "compact,delete" || s.MinInsyncReplicas != 2 || s.RetentionBytes != -1 {
		t.Errorf("settings are %+v", s)
	}
	if again := NewTopicSettings(nil, maps.Clone(broker)); again.CleanupPolicy() != "compact" {
		t.Errorf("the cluster's policy is %q", again.CleanupPolicy())
	}
}

func TestSynonymConvertsUnits(t *testing.T) {
	for in, want := range map[string]string{"168": "604800000", "-1": "-1", "x": "x"} {
		if got := (ConfigSynonym{"log.retention.hours", hourMs}).Convert(in); got != want {
			t.Errorf("%s hours are %s, want %s", in, got, want)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
