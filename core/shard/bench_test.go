package shard

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/vfs"
)

// BenchmarkPropose measures three replicas in one process on the real disk, every entry synced by
// leader and followers, with 256 proposals waiting at a time.
func BenchmarkPropose(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := newCluster(b, 3, func(id meta.NodeID, o *Options) {
				o.FS, o.Dir, o.Heartbeat = vfs.OS, b.TempDir(), DefaultHeartbeat
			})
			keepNothing := errors.New("counted only")
			for _, m := range c.nodes {
				m.sm.mu.Lock()
				m.sm.refuse = func(string) error { return keepNothing }
				m.sm.mu.Unlock()
			}
			leader := c.leader()
			b.SetBytes(int64(size))
			b.ResetTimer()
			window := make(chan Future, 256)
			done := make(chan error, 1)
			go func() {
				var err error
				for f := range window {
					if _, e := f.Wait(context.Background()); e != nil {
						err = e
					}
				}
				done <- err
			}()
			for range b.N {
				window <- leader.group.Propose(make([]byte, size))
			}
			close(window)
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkIdle measures what groups without traffic cost: run it with -benchtime 10x (seconds) and
// look at the time of the process.
func BenchmarkIdle(b *testing.B) {
	c := newCluster(b, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = DefaultHeartbeat })
	const groups = 10
	for id := range meta.ShardID(groups) {
		for _, m := range c.nodes {
			if err := m.node.Bootstrap(100+id, c.servers()); err != nil {
				b.Fatal(err)
			}
		}
		for _, m := range c.nodes {
			if _, err := m.node.Open(100+id, &discard{}); err != nil {
				b.Fatal(err)
			}
		}
	}
	c.leader()
	b.ResetTimer()
	before := cpu()
	for range b.N {
		pause(context.Background(), time.Second)
	}
	b.ReportMetric(100*(cpu()-before).Seconds()/b.Elapsed().Seconds(), "%core")
}

// discard is a state machine without a state.
type discard struct{ kv }

func (d *discard) ApplyBatch(logs []*raft.Log) []any { return make([]any, len(logs)) }
