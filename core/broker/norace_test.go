//go:build !race

package broker

import "testing"

// heartbeat of test clusters: 0 is the default.
const heartbeat = 0

// beside lets a test that mostly waits run beside others.
func beside(t *testing.T) { t.Parallel() }
