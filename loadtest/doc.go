// Package loadtest puts load on a system that speaks Kafka, MQTT or HTTP, measures what comes back, and verifies that nothing is lost. It is a
// stranger to Sluice: it imports nothing of it and can be pointed at any other broker.
//
// With a rate, every operation has a moment at which it is meant to begin, and latencies count from that moment, whether or not the system let
// the load begin then: a pause shows in every operation it delayed ("coordinated omission" is avoided). Without a rate a bounded window of
// operations is kept under way, and latencies count from the moment of sending.
package loadtest
