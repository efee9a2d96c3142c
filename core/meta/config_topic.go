package meta

import (
	"math"
	"strconv"
	"strings"
)

const (
	hourMs = int64(3_600_000)
	dayMs  = 24 * hourMs
)

// TopicSettings are the effective settings of a topic: its own, else the cluster's
// (broker resource ""), else the defaults. Times are milliseconds, sizes bytes, -1 means
// without limit where Kafka says so.
type TopicSettings struct {
	SegmentBytes, SegmentMs, SegmentJitterMs int64
	SegmentIndexBytes, IndexIntervalBytes    int64
	RetentionMs, RetentionBytes              int64
	LocalRetentionMs, LocalRetentionBytes    int64
	Delete, Compact                          bool // cleanup.policy
	DeleteRetentionMs, FileDeleteDelayMs     int64
	MinCompactionLagMs, MaxCompactionLagMs   int64
	MinCleanableDirtyRatio                   float64
	CompressionType                          string // "producer" keeps what came; "uncompressed", "gzip", "snappy", "lz4", "zstd"
	GzipLevel, LZ4Level, ZstdLevel           int
	MaxMessageBytes                          int64 // of one batch, with its header
	LogAppendTime                            bool  // message.timestamp.type
	TimestampBeforeMaxMs                     int64
	TimestampAfterMaxMs                      int64
	MinInsyncReplicas                        int
	FlushMessages, FlushMs                   int64
	Preallocate, UncleanLeaderElection       bool
}

// CleanupPolicy returns the policy as it is written in a topic's configuration.
func (s TopicSettings) CleanupPolicy() string {
	switch {
	case s.Compact && s.Delete:
		return "compact,delete"
	case s.Compact:
		return "compact"
	case s.Delete:
		return "delete"
	}
	return ""
}

// CompressionLevel returns the level to use for s.CompressionType.
func (s TopicSettings) CompressionLevel() int {
	switch s.CompressionType {
	case "gzip":
		return s.GzipLevel
	case "lz4":
		return s.LZ4Level
	case "zstd":
		return s.ZstdLevel
	}
	return 0
}

// NewTopicSettings puts a topic's own settings over the cluster-wide broker settings over
// the defaults. Values that do not parse are passed over: they were refused when they
// were set, so only a newer release can have let them in.
func NewTopicSettings(topic, broker map[string]string) TopicSettings {
	s := defaultTopicSettings
	if len(broker) > 0 {
		s.applyBroker(broker)
	}
	for name, value := range topic {
		if k := TopicConfigs.Key(name); k != nil && k.Validate(value) == nil {
			k.set(&s, value)
		}
	}
	return s
}

// applyBroker takes over the cluster's settings; of several synonyms the first that is set.
func (s *TopicSettings) applyBroker(broker map[string]string) {
	for _, k := range TopicConfigs.keys {
		for _, syn := range k.Synonyms {
			value, ok := broker[syn.Name]
			if value = syn.Convert(value); ok && k.Validate(value) == nil {
				k.set(s, value)
				break
			}
		}
	}
}

// Convert turns the broker's value into the topic's unit.
func (c ConfigSynonym) Convert(v string) string {
	if c.Scale <= 1 {
		return v
	}
	n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
	if err != nil || n < 0 {
		return v
	}
	return strconv.FormatInt(n*c.Scale, 10)
}

func same(names ...string) []ConfigSynonym {
	out := make([]ConfigSynonym, len(names))
	for i, n := range names {
		out[i] = ConfigSynonym{Name: n, Scale: 1}
	}
	return out
}

func longKey(name string, def int64, check func(string) string, field func(*TopicSettings) *int64, doc string, synonyms ...ConfigSynonym) *ConfigKey {
	return &ConfigKey{
		Name: name, Type: TypeLong, Default: strconv.FormatInt(def, 10), Doc: doc, Synonyms: synonyms, Update: ClusterWide, check: check,
		set: func(s *TopicSettings, v string) {
			if n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil {
				*field(s) = n
			}
		},
	}
}

// intKey is a key of Kafka's type INT whose field is as wide as the sizes it is compared with.
func intKey(name string, def int64, check func(string) string, field func(*TopicSettings) *int64, doc string, synonyms ...ConfigSynonym) *ConfigKey {
	k := longKey(name, def, check, field, doc, synonyms...)
	k.Type = TypeInt
	return k
}

func levelKey(name string, def int, check func(string) string, field func(*TopicSettings) *int, doc string, synonyms ...ConfigSynonym) *ConfigKey {
	return &ConfigKey{
		Name: name, Type: TypeInt, Default: strconv.Itoa(def), Doc: doc, Synonyms: synonyms, Update: ClusterWide, check: check,
		set: func(s *TopicSettings, v string) {
			if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil {
				*field(s) = n
			}
		},
	}
}

func boolKey(name string, field func(*TopicSettings) *bool, doc string, synonyms ...ConfigSynonym) *ConfigKey {
	return &ConfigKey{
		Name: name, Type: TypeBoolean, Default: "false", Doc: doc, Synonyms: synonyms, Update: ClusterWide,
		set: func(s *TopicSettings, v string) {
			if field != nil {
				*field(s) = strings.EqualFold(strings.TrimSpace(v), "true")
			}
		},
	}
}

func textKey(name string, t ConfigType, def string, check func(string) string, set func(*TopicSettings, string), doc string, synonyms ...ConfigSynonym) *ConfigKey {
	if set == nil {
		set = func(*TopicSettings, string) {}
	}
	return &ConfigKey{Name: name, Type: t, Default: def, Doc: doc, Synonyms: synonyms, Update: ClusterWide, check: check, set: set}
}

var defaultTopicSettings = func() TopicSettings {
	var s TopicSettings
	for _, k := range TopicConfigs.keys {
		if k.Default != "" {
			k.set(&s, k.Default)
		}
	}
	s.SegmentBytes = 1 << 30 // the hidden key of the same field has no default of its own
	return s
}()

// Topics' settings change the core's behaviour through TopicSettings only. Names that are
// kept for Kafka's tools but mean nothing here say so in their documentation.
var TopicConfigs = newConfigTable(topicLogKeys, topicCleanKeys, topicRecordKeys, topicRemoteKeys)

var topicLogKeys = []*ConfigKey{
	intKey("segment.bytes", 1<<30, atLeast(1<<20), func(s *TopicSettings) *int64 { return &s.SegmentBytes },
		"A segment file is closed and a new one begun before it would grow beyond this size. Retention and compaction work on closed segments.",
		same("log.segment.bytes")...),
	hidden(intKey("internal.segment.bytes", 1<<30, atLeast(1024), func(s *TopicSettings) *int64 { return &s.SegmentBytes },
		"Like segment.bytes without its lower limit, for tests.")),
	longKey("segment.ms", 7*dayMs, atLeast(1), func(s *TopicSettings) *int64 { return &s.SegmentMs },
		"A segment is closed when a record comes that is this much younger than the segment's first, even if the segment is not full.",
		ConfigSynonym{"log.roll.ms", 1}, ConfigSynonym{"log.roll.hours", hourMs}),
	longKey("segment.jitter.ms", 0, atLeast(0), func(s *TopicSettings) *int64 { return &s.SegmentJitterMs },
		"Kept for Kafka's tools. Replicas close their segments alike, so no jitter is applied.",
		ConfigSynonym{"log.roll.jitter.ms", 1}, ConfigSynonym{"log.roll.jitter.hours", hourMs}),
	intKey("segment.index.bytes", 10<<20, atLeast(4), func(s *TopicSettings) *int64 { return &s.SegmentIndexBytes },
		"Kept for Kafka's tools. An offset index grows with its segment and is bounded by index.interval.bytes.",
		same("log.index.size.max.bytes")...),
	intKey("index.interval.bytes", 4096, atLeast(0), func(s *TopicSettings) *int64 { return &s.IndexIntervalBytes },
		"About how many bytes of the log lie between two entries of the offset index. Less makes lookups more exact and the index larger.",
		same("log.index.interval.bytes")...),
	longKey("flush.messages", math.MaxInt64, atLeast(1), func(s *TopicSettings) *int64 { return &s.FlushMessages },
		"Kept for Kafka's tools. Every record is synced to the disks of a majority before it is acknowledged.",
		same("log.flush.interval.messages")...),
	longKey("flush.ms", math.MaxInt64, atLeast(0), func(s *TopicSettings) *int64 { return &s.FlushMs },
		"Kept for Kafka's tools. Every record is synced to the disks of a majority before it is acknowledged.",
		same("log.flush.interval.ms", "log.flush.scheduler.interval.ms")...),
	boolKey("preallocate", func(s *TopicSettings) *bool { return &s.Preallocate },
		"Kept for Kafka's tools. Segment files never hold anything but records.", same("log.preallocate")...),
	longKey("file.delete.delay.ms", 60_000, atLeast(0), func(s *TopicSettings) *int64 { return &s.FileDeleteDelayMs },
		"The shortest time between dropping a segment from the log and deleting its file. Here a file also waits for the checkpoint that no longer names it.",
		same("log.segment.delete.delay.ms")...),
}

var topicCleanKeys = []*ConfigKey{
	textKey("cleanup.policy", TypeList, "delete", listOf("compact", "delete"), setCleanupPolicy,
		"What happens to old records: delete drops segments beyond retention.ms or retention.bytes, compact keeps the last record of every key, both do both, and an empty list keeps everything.",
		same("log.cleanup.policy")...),
	longKey("retention.ms", 7*dayMs, atLeast(-1), func(s *TopicSettings) *int64 { return &s.RetentionMs },
		"How long records are kept when cleanup.policy holds delete: a segment goes when its youngest record is older. -1 keeps them for ever.",
		ConfigSynonym{"log.retention.ms", 1}, ConfigSynonym{"log.retention.minutes", 60_000}, ConfigSynonym{"log.retention.hours", hourMs}),
	longKey("retention.bytes", -1, atLeast(-1), func(s *TopicSettings) *int64 { return &s.RetentionBytes },
		"How large a partition may grow before its oldest segments go, when cleanup.policy holds delete. The limit is per partition; -1 sets none.",
		same("log.retention.bytes")...),
	longKey("delete.retention.ms", dayMs, atLeast(0), func(s *TopicSettings) *int64 { return &s.DeleteRetentionMs },
		"How long a compacted topic keeps a tombstone (a record without a value), so that a reader which began at the start can still see it.",
		same("log.cleaner.delete.retention.ms")...),
	longKey("min.compaction.lag.ms", 0, atLeast(0), func(s *TopicSettings) *int64 { return &s.MinCompactionLagMs },
		"How old a record of a compacted topic must be before compaction may drop it.", same("log.cleaner.min.compaction.lag.ms")...),
	longKey("max.compaction.lag.ms", math.MaxInt64, atLeast(1), func(s *TopicSettings) *int64 { return &s.MaxCompactionLagMs },
		"How old a record of a compacted topic may become before its segment must be compacted.", same("log.cleaner.max.compaction.lag.ms")...),
	textKey("min.cleanable.dirty.ratio", TypeDouble, "0.5", ratio, setDirtyRatio,
		"How large the share of the log that was not compacted yet must be before it is compacted. Less means more frequent work and less wasted space.",
		same("log.cleaner.min.cleanable.ratio")...),
}

var topicRecordKeys = []*ConfigKey{
	textKey("compression.type", TypeString, "producer", oneOf("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
		func(s *TopicSettings, v string) { s.CompressionType = strings.TrimSpace(v) },
		"The codec in which batches are stored. With producer a batch stays as it was sent; otherwise one in another codec is compressed anew.",
		same("compression.type")...),
	levelKey("compression.gzip.level", -1, gzipLevel, func(s *TopicSettings) *int { return &s.GzipLevel },
		"The level used when compression.type is gzip: 1 (fastest) to 9, or -1 for the library's own choice.", same("compression.gzip.level")...),
	levelKey("compression.lz4.level", 9, between(1, 17), func(s *TopicSettings) *int { return &s.LZ4Level },
		"The level used when compression.type is lz4.", same("compression.lz4.level")...),
	levelKey("compression.zstd.level", 3, between(-131072, 22), func(s *TopicSettings) *int { return &s.ZstdLevel },
		"The level used when compression.type is zstd.", same("compression.zstd.level")...),
	intKey("max.message.bytes", 1048588, atLeast(0), func(s *TopicSettings) *int64 { return &s.MaxMessageBytes },
		"The largest batch, with its header and after compression, that the topic takes.", same("message.max.bytes")...),
	textKey("message.timestamp.type", TypeString, "CreateTime", oneOf("CreateTime", "LogAppendTime"),
		func(s *TopicSettings, v string) { s.LogAppendTime = strings.TrimSpace(v) == "LogAppendTime" },
		"Whose clock a record's timestamp is: the sender's (CreateTime) or that of the leader which appended it (LogAppendTime).",
		same("log.message.timestamp.type")...),
	longKey("message.timestamp.before.max.ms", math.MaxInt64, atLeast(0), func(s *TopicSettings) *int64 { return &s.TimestampBeforeMaxMs },
		"How far a record's timestamp may lie before the leader's clock; an older one is refused. Not used with LogAppendTime.",
		same("log.message.timestamp.before.max.ms")...),
	longKey("message.timestamp.after.max.ms", hourMs, atLeast(0), func(s *TopicSettings) *int64 { return &s.TimestampAfterMaxMs },
		"How far a record's timestamp may lie ahead of the leader's clock; a later one is refused. Not used with LogAppendTime.",
		same("log.message.timestamp.after.max.ms")...),
	levelKey("min.insync.replicas", 1, atLeast(1), func(s *TopicSettings) *int { return &s.MinInsyncReplicas },
		"How many replicas must be in sync for a write with acks=all. A write is always on a majority of the replicas before it is acknowledged, so values up to the majority add nothing.",
		same("min.insync.replicas")...),
	boolKey("unclean.leader.election.enable", func(s *TopicSettings) *bool { return &s.UncleanLeaderElection },
		"Kept for Kafka's tools. A replica that lacks acknowledged records is never elected.", same("unclean.leader.election.enable")...),
	textKey("leader.replication.throttled.replicas", TypeList, "", nil, nil,
		"Replicas whose outgoing replication is throttled, as partition:broker pairs or * for all. Kept for Kafka's reassignment tool."),
	textKey("follower.replication.throttled.replicas", TypeList, "", nil, nil,
		"Replicas whose incoming replication is throttled, as partition:broker pairs or * for all. Kept for Kafka's reassignment tool."),
}

var topicRemoteKeys = []*ConfigKey{
	longKey("local.retention.ms", -2, atLeast(-2), func(s *TopicSettings) *int64 { return &s.LocalRetentionMs },
		"How long records stay on the broker's disk in a topic with remote storage; -2 means as long as retention.ms.",
		same("log.local.retention.ms")...),
	longKey("local.retention.bytes", -2, atLeast(-2), func(s *TopicSettings) *int64 { return &s.LocalRetentionBytes },
		"How many bytes of a partition stay on the broker's disk in a topic with remote storage; -2 means as many as retention.bytes.",
		same("log.local.retention.bytes")...),
	refuseTrue(boolKey("remote.storage.enable", nil,
		"Whether old segments move to remote storage. This cluster has none, so it stays false.")),
	boolKey("remote.log.copy.disable", nil, "Whether copying to remote storage is stopped. Without remote storage it has no effect."),
	boolKey("remote.log.delete.on.disable", nil, "Whether remote data goes when remote storage is switched off. Without remote storage it has no effect."),
}

func hidden(k *ConfigKey) *ConfigKey {
	k.Hidden = true
	return k
}

// refuseTrue keeps a feature off that a user would rely on and that the cluster lacks.
func refuseTrue(k *ConfigKey) *ConfigKey {
	k.check = func(v string) string {
		if strings.EqualFold(strings.TrimSpace(v), "true") {
			return "Tiered storage is not supported by this cluster"
		}
		return ""
	}
	return k
}

func setCleanupPolicy(s *TopicSettings, v string) {
	s.Delete, s.Compact = false, false
	for _, p := range SplitList(v) {
		s.Delete = s.Delete || p == "delete"
		s.Compact = s.Compact || p == "compact"
	}
}

func setDirtyRatio(s *TopicSettings, v string) {
	if f, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil {
		s.MinCleanableDirtyRatio = f
	}
}

func gzipLevel(v string) string {
	if strings.TrimSpace(v) == "-1" {
		return ""
	}
	return between(1, 9)(v)
}
