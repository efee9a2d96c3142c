package meta

// GroupConfigs are the settings of a group (resource type GROUP). They can be set before
// the group exists. Kafka 4.2's names; KIP-848, KIP-932, KIP-1071.
var GroupConfigs = newConfigTable([]*ConfigKey{
	groupInt("consumer.session.timeout.ms", "45000", between(45000, 60000), "group.consumer.session.timeout.ms",
		"How long a member of a consumer group (KIP-848) may be silent before its partitions go to others."),
	groupInt("consumer.heartbeat.interval.ms", "5000", between(1000, 15000), "group.consumer.heartbeat.interval.ms",
		"How often the members of a consumer group (KIP-848) report."),
	groupInt("share.session.timeout.ms", "45000", between(45000, 60000), "group.share.session.timeout.ms",
		"How long a member of a share group may be silent before it is taken out."),
	groupInt("share.heartbeat.interval.ms", "5000", between(1000, 15000), "group.share.heartbeat.interval.ms",
		"How often the members of a share group report."),
	groupInt("share.record.lock.duration.ms", "30000", between(15000, 60000), "group.share.record.lock.duration.ms",
		"How long a member of a share group holds a record before others may get it."),
	{Name: "share.auto.offset.reset", Type: TypeString, Default: "latest", Update: PerBroker, check: shareReset,
		Doc: "Where a share group begins that has no position yet: latest, earliest, or by_duration: with an ISO 8601 duration."},
	{Name: "share.isolation.level", Type: TypeString, Default: "read_uncommitted", Update: PerBroker, check: oneOf("read_committed", "read_uncommitted"),
		Doc: "Whether a share group sees records of open transactions."},
	{Name: "share.renew.acknowledge.enable", Type: TypeBoolean, Default: "true", Update: PerBroker,
		Doc: "Whether members of a share group may prolong the lock on a record."},
	groupInt("streams.session.timeout.ms", "45000", between(45000, 60000), "group.streams.session.timeout.ms",
		"How long a member of a streams group may be silent before its tasks go to others."),
	groupInt("streams.heartbeat.interval.ms", "5000", between(5000, 15000), "group.streams.heartbeat.interval.ms",
		"How often the members of a streams group report."),
	groupInt("streams.num.standby.replicas", "0", between(0, 2), "group.streams.num.standby.replicas",
		"How many standby copies of each task a streams group keeps."),
	groupInt("streams.initial.rebalance.delay.ms", "3000", atLeast(0), "group.streams.initial.rebalance.delay.ms",
		"How long an empty streams group waits for more members before its first assignment."),
})

// ClientMetricsConfigs are the settings of a client metrics subscription (KIP-714).
var ClientMetricsConfigs = newConfigTable([]*ConfigKey{
	{Name: "interval.ms", Type: TypeInt, Default: "300000", Update: PerBroker, check: between(100, 3_600_000),
		Doc: "How often clients send the metrics of this subscription."},
	{Name: "metrics", Type: TypeList, Update: PerBroker, Doc: "Prefixes of the names of the metrics that clients send; * for all."},
	{Name: "match", Type: TypeList, Update: PerBroker, Doc: "Which clients the subscription is for, as name=pattern pairs."},
})

func groupInt(name, def string, check func(string) string, broker, doc string) *ConfigKey {
	return &ConfigKey{Name: name, Type: TypeInt, Default: def, Update: PerBroker, check: check, Synonyms: same(broker), Doc: doc}
}

func shareReset(v string) string {
	const prefix = "by_duration:"
	if v == "latest" || v == "earliest" || len(v) > len(prefix) && v[:len(prefix)] == prefix && isDuration(v[len(prefix):]) {
		return ""
	}
	return "Invalid value for offset reset strategy; use latest, earliest or by_duration:<duration> as in by_duration:PT24H"
}

// isDuration accepts the part of ISO 8601 that Java's Duration.parse does: PnDTnHnMn.nS.
func isDuration(v string) bool {
	if len(v) < 3 || v[0] != 'P' {
		return false
	}
	digits, units := 0, 0
	for _, c := range v[1:] {
		switch {
		case c >= '0' && c <= '9' || c == '.':
			digits++
		case c == 'T' && digits == 0:
		case (c == 'D' || c == 'H' || c == 'M' || c == 'S') && digits > 0:
			digits, units = 0, units+1
		default:
			return false
		}
	}
	return units > 0 && digits == 0
}
