package controller

import (
	"testing"
	"time"

	"sluice/core/meta"
)

// The times are shown, not judged: they are for a person who compares two runs.
func TestManyPartitions(t *testing.T) {
	all := trio(t)
	timed := func(what string, f func()) {
		begin := time.Now()
		f()
		t.Logf("%s: %s", what, time.Since(begin).Round(time.Millisecond))
	}
	timed("first topic", func() { all[0].create(plain("first")) })
	timed("second topic", func() { all[1].create(plain("second")) })
	timed("2000 partitions", func() { all[2].create(meta.NewTopic{Name: "wide", Partitions: 2000, ReplicationFactor: 3}) })
	served(t, all, "wide")
	timed("another topic", func() { all[1].create(plain("third")) })
	timed("deletion", func() { all[0].forget(all[0].Image().Topic("wide")) })
	all[0].eventually("all partitions gone", func() bool {
		n := 0
		for _, m := range all {
			for _, s := range m.Sets() {
				n += s.Len()
			}
		}
		return n == 3*9
	})
}
