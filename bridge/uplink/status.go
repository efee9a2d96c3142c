package uplink

import (
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Status is what /status shows of an uplink.
type Status struct {
	Brokers    []string  `json:"brokers"`
	ProducerID int64     `json:"producer_id"`
	Confirmed  int64     `json:"confirmed_offset"` // of the buffer: everything below is in the core
	Synced     int64     `json:"buffer_end"`
	Backlog    int64     `json:"backlog_records"` // between the two, the gateway's own records included
	OpenRounds int       `json:"open_rounds"`
	Partitions int       `json:"partitions"`
	Error      string    `json:"error,omitempty"` // the last one, cleared by the next success
	Alarm      string    `json:"alarm,omitempty"` // what a person has to look at; stays
	AlarmTime  time.Time `json:"alarm_time,omitzero"`
}

type counters struct {
	rounds, requests, records, bytes, retries, errors, duplicates, recovered, deadLetters, possiblyTwice, dropped, alarms *metrics.Counter
}

func (u *Uplink) metrics() {
	s := metrics.NewSet()
	u.set = s
	u.m = counters{
		rounds:        s.NewCounter("sluice_uplink_rounds_total"),
		requests:      s.NewCounter("sluice_uplink_produce_requests_total"),
		records:       s.NewCounter("sluice_uplink_delivered_records_total"),
		bytes:         s.NewCounter("sluice_uplink_delivered_bytes_total"),
		retries:       s.NewCounter("sluice_uplink_retries_total"),
		errors:        s.NewCounter("sluice_uplink_unreachable_total"),
		duplicates:    s.NewCounter("sluice_uplink_duplicates_recognised_total"),
		recovered:     s.NewCounter("sluice_uplink_batches_found_delivered_total"),
		deadLetters:   s.NewCounter("sluice_uplink_dead_letter_records_total"),
		possiblyTwice: s.NewCounter("sluice_uplink_possibly_twice_records_total"),
		dropped:       s.NewCounter("sluice_uplink_dropped_before_sending_records_total"),
		alarms:        s.NewCounter("sluice_uplink_alarms_total"),
	}
	s.NewGauge("sluice_uplink_backlog_records", func() float64 { return float64(u.Status().Backlog) })
	s.NewGauge("sluice_uplink_open_rounds", func() float64 { return float64(u.Status().OpenRounds) })
}

// WritePrometheus writes the uplink's metrics in Prometheus text.
func (u *Uplink) WritePrometheus(w io.Writer) { u.set.WritePrometheus(w) }

// Status may be called from anywhere.
func (u *Uplink) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.status
	s.Synced = u.buffer.Synced()
	s.Backlog = max(0, s.Synced-s.Confirmed)
	return s
}

// publish copies the loop's state into the status.
func (u *Uplink) publish() {
	confirmed := u.cutAt
	if len(u.rounds) > 0 {
		confirmed = u.rounds[0].plan.From
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Brokers, u.status.ProducerID = u.o.Brokers, u.journal.state.ProducerID
	u.status.Confirmed, u.status.OpenRounds, u.status.Partitions = confirmed, len(u.rounds), len(u.parts)
}

// setError keeps the last error in the status; "" clears it.
func (u *Uplink) setError(msg string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Error = msg
}
