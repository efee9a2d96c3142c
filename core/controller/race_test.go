//go:build race

package controller

import (
	"testing"
	"time"
)

// heartbeat of test clusters: under the race detector everything takes several times as long, and a leader that does not get to its
// heartbeats in time loses its place again and again.
const heartbeat = time.Second

// beside would let a test run beside others, which is too much for a machine that looks for races.
func beside(*testing.T) {}
