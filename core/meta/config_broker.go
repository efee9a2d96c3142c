package meta

// BrokerConfigs are the settings of a broker under Kafka's names (resource type BROKER;
// the name "" is the cluster's default). Those that a topic may override for itself take
// their type, limits and documentation from the topic's key. Names that Kafka's tools and
// clients look for and that mean nothing here are listed with the value that is true here.
var BrokerConfigs = newConfigTable(brokerTopicDefaults(), brokerLogKeys, brokerNodeKeys, brokerNetworkKeys, brokerGroupKeys, brokerSecurityKeys)

// brokerTopicDefaults are the dynamic names behind the topics' settings: one for every
// first synonym, in the unit of the topic's key.
func brokerTopicDefaults() []*ConfigKey {
	var out []*ConfigKey
	for _, group := range [][]*ConfigKey{topicLogKeys, topicCleanKeys, topicRecordKeys, topicRemoteKeys} {
		for _, k := range group {
			if len(k.Synonyms) == 0 {
				continue
			}
			b := &ConfigKey{
				Name: k.Synonyms[0].Name, Type: k.Type, Default: k.Default, Update: ClusterWide, check: k.check,
				Doc: "What " + k.Name + " is for topics that do not set it. " + k.Doc,
			}
			if len(k.Synonyms) > 1 {
				b.Synonyms, b.Default, b.Null = k.Synonyms, "", k.Synonyms[1].Scale > 1
				if !b.Null {
					b.Default = k.Default
				}
			}
			out = append(out, b)
		}
	}
	return out
}

func brokerKey(name string, t ConfigType, def string, u ConfigUpdate, doc string) *ConfigKey {
	return &ConfigKey{Name: name, Type: t, Default: def, Update: u, Doc: doc}
}

// nullKey has no value until somebody gives it one.
func nullKey(name string, t ConfigType, u ConfigUpdate, doc string) *ConfigKey {
	return &ConfigKey{Name: name, Type: t, Null: true, Update: u, Doc: doc}
}

func secretKey(name string, doc string) *ConfigKey {
	return &ConfigKey{Name: name, Type: TypePassword, Null: true, Update: PerBroker, Sensitive: true, Doc: doc}
}

func (k *ConfigKey) limit(check func(string) string) *ConfigKey {
	k.check = check
	return k
}

// Names of settings of our own.
const (
	AutoBalanceEnable = "auto.balance.enable"
	AutoBalanceDeadMs = "auto.balance.dead.node.ms"
)

const (
	docKept   = "Kept for Kafka's tools; it changes nothing here. "
	docThread = docKept + "Goroutines are not counted in pools."
	docRaft   = docKept + "Replication is Raft's, within each shard."
	docRemote = docKept + "There is no remote storage."
)

var brokerLogKeys = []*ConfigKey{
	brokerKey("log.dir", TypeString, "", ReadOnly, "The data directory, when log.dirs is not given."),
	brokerKey("log.dirs", TypeString, "", ReadOnly, "The data directory of the broker."),
	brokerKey("log.retention.hours", TypeInt, "168", ReadOnly, "How many hours records are kept where neither a topic's retention.ms nor log.retention.ms is set."),
	nullKey("log.retention.minutes", TypeInt, ReadOnly, "Like log.retention.hours, in minutes."),
	brokerKey("log.retention.check.interval.ms", TypeLong, "300000", ReadOnly, "How often the leader of a shard looks for segments whose time is over."),
	brokerKey("log.roll.hours", TypeInt, "168", ReadOnly, "After how many hours a segment is closed where neither segment.ms nor log.roll.ms is set."),
	brokerKey("log.roll.jitter.hours", TypeInt, "0", ReadOnly, "Kept for Kafka's tools. Replicas close their segments alike, so no jitter is applied."),
	brokerKey("log.flush.scheduler.interval.ms", TypeLong, "9223372036854775807", ReadOnly, docKept+"What is acknowledged is synced."),
	brokerKey("log.flush.offset.checkpoint.interval.ms", TypeInt, "60000", ReadOnly, docKept+"Checkpoints are taken by bytes of log."),
	brokerKey("log.flush.start.offset.checkpoint.interval.ms", TypeInt, "60000", ReadOnly, docKept+"A log's start is in Raft."),
	brokerKey("log.cleaner.threads", TypeInt, "1", ClusterWide, docKept+"A node compacts one partition at a time, at the rate that live traffic leaves.").limit(atLeast(0)),
	brokerKey("log.cleaner.enable", TypeBoolean, "true", ReadOnly, "Whether compacted topics are compacted."),
	brokerKey("log.cleaner.io.max.bytes.per.second", TypeDouble, "1.7976931348623157E308", ClusterWide, "How many bytes a second a node's compaction reads and writes at most. It never takes more than live traffic leaves."),
	brokerKey("log.cleaner.dedupe.buffer.size", TypeLong, "134217728", ClusterWide, docKept+"A round remembers a million keys, in some 50 MiB; a partition with more takes several rounds.").limit(atLeast(1)),
	brokerKey("log.cleaner.io.buffer.size", TypeInt, "524288", ClusterWide, docKept+"A quarter of a megabyte is read and written at a time.").limit(atLeast(0)),
	brokerKey("log.cleaner.io.buffer.load.factor", TypeDouble, "0.9", ClusterWide, docKept+"Go's maps choose their own load."),
	brokerKey("log.cleaner.backoff.ms", TypeLong, "15000", ClusterWide, "How often a node looks for partitions that are to be compacted.").limit(atLeast(0)),
	brokerKey("log.initial.task.delay.ms", TypeLong, "30000", ReadOnly, docKept+"Background work begins when it is due."),
	brokerKey("num.recovery.threads.per.data.dir", TypeInt, "2", ClusterWide, docThread).limit(atLeast(1)),
	brokerKey("num.replica.alter.log.dirs.threads", TypeInt, "1", ReadOnly, docKept+"A broker has one data directory."),
	brokerKey("log.dir.failure.timeout.ms", TypeLong, "30000", ReadOnly, docKept+"A replica that cannot write stops at once."),
	brokerKey("producer.id.expiration.ms", TypeInt, "86400000", ClusterWide, "How long the state of a producer that no longer writes is kept; that of gateways is kept as long as their topic.").limit(atLeast(1)),
	brokerKey("producer.id.expiration.check.interval.ms", TypeInt, "600000", ReadOnly, "How often the state of silent producers is looked through."),
	brokerKey("remote.log.storage.system.enable", TypeBoolean, "false", ReadOnly, docRemote),
	brokerKey("remote.log.manager.copier.thread.pool.size", TypeInt, "10", ClusterWide, docRemote),
	brokerKey("remote.log.manager.expiration.thread.pool.size", TypeInt, "10", ClusterWide, docRemote),
	brokerKey("remote.log.reader.threads", TypeInt, "10", ClusterWide, docRemote),
	brokerKey("remote.log.index.file.cache.total.size.bytes", TypeLong, "1073741824", ClusterWide, docRemote),
	brokerKey("remote.log.manager.copy.max.bytes.per.second", TypeLong, "9223372036854775807", ClusterWide, docRemote),
	brokerKey("remote.log.manager.fetch.max.bytes.per.second", TypeLong, "9223372036854775807", ClusterWide, docRemote),
	brokerKey("remote.fetch.max.wait.ms", TypeInt, "500", ClusterWide, docRemote),
	brokerKey("remote.list.offsets.request.timeout.ms", TypeLong, "30000", ClusterWide, docRemote),
}

var brokerNodeKeys = []*ConfigKey{
	brokerKey("node.id", TypeInt, "", ReadOnly, "The id of this broker in the cluster."),
	brokerKey("broker.id", TypeInt, "", ReadOnly, "The id of this broker under its older name."),
	nullKey("broker.rack", TypeString, ReadOnly, "The rack of this broker. Replicas are spread over racks, and consumers that name theirs read near."),
	brokerKey("process.roles", TypeList, "broker,controller", ReadOnly, "Every node serves clients and takes part in the metadata group."),
	brokerKey("num.partitions", TypeInt, "3", ReadOnly, "How many partitions a topic gets when its creator does not say."),
	brokerKey("default.replication.factor", TypeInt, "3", ReadOnly, "How many replicas a topic gets when its creator does not say: three, or as many as there are nodes."),
	brokerKey("auto.create.topics.enable", TypeBoolean, "true", ClusterWide, "Whether a topic is created when a client first asks for it."),
	brokerKey("delete.topic.enable", TypeBoolean, "true", ReadOnly, "Whether topics can be deleted."),
	nullKey("create.topic.policy.class.name", TypeClass, ReadOnly, docKept+"There are no plugins."),
	nullKey("alter.config.policy.class.name", TypeClass, ReadOnly, docKept+"There are no plugins."),
	brokerKey("auto.leader.rebalance.enable", TypeBoolean, "true", ReadOnly, "Leadership goes back to the first replica once that is in sync."),
	brokerKey("leader.imbalance.check.interval.seconds", TypeLong, "5", ReadOnly, "How long a first replica must be in sync before leadership goes back to it."),
	brokerKey("leader.imbalance.per.broker.percentage", TypeInt, "0", ReadOnly, docKept+"Every shard's leadership goes back."),
	brokerKey(AutoBalanceEnable, TypeBoolean, "true", ClusterWide, "Whether replicas and leaders are spread anew by themselves when a node has joined, has come back or was dead for long. A node that drains is emptied in any case."),
	brokerKey(AutoBalanceDeadMs, TypeLong, "600000", ClusterWide, "After how long without an answer the replicas of a node are made elsewhere, where a node can take them; 0 for never.").limit(atLeast(0)),
	brokerKey("controlled.shutdown.enable", TypeBoolean, "true", ReadOnly, "A node that stops hands its leaderships over first."),
	brokerKey("replica.lag.time.max.ms", TypeLong, "30000", ReadOnly, docRaft),
	brokerKey("replica.fetch.min.bytes", TypeInt, "1", ReadOnly, docRaft),
	brokerKey("replica.fetch.max.bytes", TypeInt, "1048576", ReadOnly, docRaft),
	brokerKey("replica.fetch.response.max.bytes", TypeInt, "10485760", ReadOnly, docRaft),
	brokerKey("replica.fetch.wait.max.ms", TypeInt, "500", ReadOnly, docRaft),
	brokerKey("replica.fetch.backoff.ms", TypeInt, "1000", ReadOnly, docRaft),
	brokerKey("replica.high.watermark.checkpoint.interval.ms", TypeLong, "5000", ReadOnly, docRaft),
	brokerKey("replica.socket.timeout.ms", TypeInt, "30000", ReadOnly, docRaft),
	brokerKey("replica.socket.receive.buffer.bytes", TypeInt, "65536", ReadOnly, docRaft),
	brokerKey("replica.selector.class", TypeString, "org.apache.kafka.common.replica.RackAwareReplicaSelector", ReadOnly, "A consumer that names its rack is sent to a replica there."),
	brokerKey("num.replica.fetchers", TypeInt, "1", ClusterWide, docRaft).limit(atLeast(0)),
	nullKey("leader.replication.throttled.rate", TypeLong, PerBroker, "How many bytes a second a broker sends at most to replicas that catch up or move; 64 MiB when it is not set. What producers write is not counted."),
	nullKey("follower.replication.throttled.rate", TypeLong, PerBroker, "How many bytes a second a broker receives at most for its replicas that catch up or move; 64 MiB when it is not set. What producers write is not counted."),
	nullKey("replica.alter.log.dirs.io.max.bytes.per.second", TypeLong, PerBroker, docKept+"A broker has one data directory."),
	brokerKey("broker.heartbeat.interval.ms", TypeInt, "500", ReadOnly, "How often the leader of the metadata group asks whether a node lives."),
	brokerKey("broker.session.timeout.ms", TypeInt, "3000", ReadOnly, "After how long without an answer a node counts as dead."),
	brokerKey("controller.quorum.election.timeout.ms", TypeInt, "500", ReadOnly, "How long the metadata group waits for its leader before it elects another."),
	brokerKey("controller.quorum.fetch.timeout.ms", TypeInt, "500", ReadOnly, docRaft),
	brokerKey("controller.quorum.request.timeout.ms", TypeInt, "2000", ReadOnly, docRaft),
	brokerKey("controller.quorum.voters", TypeList, "", ReadOnly, docKept+"A node joins with --join."),
	brokerKey("controller.quorum.bootstrap.servers", TypeList, "", ReadOnly, docKept+"A node joins with --join."),
	nullKey("controller.listener.names", TypeString, ReadOnly, docKept+"Nodes speak to each other on a listener of their own."),
	nullKey("metadata.log.dir", TypeString, ReadOnly, "Metadata lie in the data directory."),
	brokerKey("metadata.log.segment.bytes", TypeInt, "1073741824", ReadOnly, docKept+"The metadata group's log is cut at checkpoints."),
	brokerKey("metadata.max.retention.bytes", TypeLong, "104857600", ReadOnly, docKept+"The metadata group's log is cut at checkpoints."),
	brokerKey("metadata.max.idle.interval.ms", TypeInt, "500", ReadOnly, docKept+"Raft's heartbeat serves."),
	brokerKey("background.threads", TypeInt, "10", ClusterWide, docThread).limit(atLeast(1)),

	brokerKey("unstable.api.versions.enable", TypeBoolean, "false", ReadOnly, "Whether versions of requests are offered that are not final."),
	brokerKey("metrics.num.samples", TypeInt, "2", ReadOnly, docKept+"Metrics are at /metrics of the HTTP port."),
	brokerKey("metrics.sample.window.ms", TypeLong, "30000", ReadOnly, docKept+"Metrics are at /metrics of the HTTP port."),
	brokerKey("metrics.recording.level", TypeString, "INFO", ReadOnly, docKept+"Metrics are at /metrics of the HTTP port."),
	brokerKey("metric.reporters", TypeList, "", ClusterWide, docKept+"Metrics are at /metrics of the HTTP port."),
	brokerKey("quota.window.num", TypeInt, "11", ReadOnly, docKept+"Quotas use a window of their own."),
	brokerKey("quota.window.size.seconds", TypeInt, "1", ReadOnly, docKept+"Quotas use a window of their own."),
}
