package mqtt

import "github.com/VictoriaMetrics/metrics"

type meters struct {
	set                                *metrics.Set
	received, acked, resent, refused   *metrics.Counter
	sent, dropped, lostWills           *metrics.Counter
	denied, violations, panics, stores *metrics.Counter
}

func newMeters() *meters {
	s := metrics.NewSet()
	return &meters{
		set:        s,
		received:   s.NewCounter("sluice_mqtt_received_messages_total"),
		acked:      s.NewCounter("sluice_mqtt_acknowledgements_total"),
		resent:     s.NewCounter("sluice_mqtt_recognised_resends_total"),
		refused:    s.NewCounter("sluice_mqtt_refused_messages_total"),
		sent:       s.NewCounter("sluice_mqtt_sent_messages_total"),
		dropped:    s.NewCounter("sluice_mqtt_subscriber_dropped_messages_total"),
		lostWills:  s.NewCounter("sluice_mqtt_lost_wills_total"),
		denied:     s.NewCounter("sluice_mqtt_denied_connections_total"),
		violations: s.NewCounter("sluice_mqtt_protocol_violations_total"),
		panics:     s.NewCounter("sluice_mqtt_panics_total"),
		stores:     s.NewCounter("sluice_mqtt_session_store_commits_total"),
	}
}

func (m *meters) observe(s *Server) {
	m.set.NewGauge("sluice_mqtt_connections", func() float64 { return float64(s.open.Load()) })
	m.set.NewGauge("sluice_mqtt_unread_bytes", func() float64 { return float64(s.waiting.Load()) })
	m.set.NewGauge("sluice_mqtt_subscriptions", func() float64 { return float64(s.subs.count.Load()) })
	m.set.NewGauge("sluice_mqtt_retained_messages", func() float64 { return float64(s.retained.count()) })
}
