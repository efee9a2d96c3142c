//go:build !linux

package shard

import "net"

// tune has nothing to set: other systems have no TCP_USER_TIMEOUT, the deadlines of each request
// remain.
func tune(net.Conn) {}
