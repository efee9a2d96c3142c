// Package firmwaresim is a city of simulated sensors, and a player of recordings. It is a stranger to Sluice: it imports nothing of it and
// speaks MQTT 3.1.1 like any firmware would, over paho.mqtt.golang with persistent sessions.
//
// Every device has its own clock (offset and drift), its own jitter, its own reconnects, QoS and payload encoding, all drawn from the
// scenario's seed, so that a run can be repeated. What a device could not send while it was offline it keeps, within a bound, and sends later.
//
// Topics are city/<zone>/<kind>/<device>. Payloads are JSON, {"timestamp":"<RFC 3339>","value":<number>,"unit":"<unit>"}, or, when the topic ends in
// /senml-cbor, a SenML pack in CBOR (RFC 8428 section 6).
package firmwaresim
