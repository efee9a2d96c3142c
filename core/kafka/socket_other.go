//go:build !linux

package kafka

import "net"

// limitUnsent has no option that all systems know: their own bounds of a send buffer remain.
func limitUnsent(*net.TCPConn, int) {}
