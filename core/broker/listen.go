package broker

import (
	"crypto/tls"
	"fmt"
	"net"

	"sluice/core/kafka"
)

// Listen opens a listener for clients; tls is nil for a plain one.
func Listen(name, address string, tls *tls.Config) (kafka.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return kafka.Listener{}, fmt.Errorf("listen for Kafka clients (%s): %w", name, err)
	}
	return kafka.Listener{Name: name, Listener: l, TLS: tls}, nil
}
