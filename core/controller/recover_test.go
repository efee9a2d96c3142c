package controller

import (
	"testing"

	"sluice/core/meta"
)

// A shard whose old server is lost is not without its data when the one it was being moved to had caught up.
func TestLostShardHasCopy(t *testing.T) {
	from, to := meta.Server{Node: 1, Incarnation: "a"}, meta.Server{Node: 2, Incarnation: "b"}
	moving := meta.Shard{ID: 7, Voters: []meta.Server{to}, Leaving: []meta.Server{from}, Leader: 1, Partitions: 3, ISR: []meta.NodeID{1, 2}}
	for name, tt := range map[string]struct {
		change func(*meta.Shard)
		has    bool
	}{
		"caught up":          {func(*meta.Shard) {}, true},
		"had not caught up":  {func(s *meta.Shard) { s.ISR = []meta.NodeID{1} }, false},
		"nothing in it":      {func(s *meta.Shard) { s.Partitions = 0 }, false},
		"its only disk lost": {func(s *meta.Shard) { s.Lost = true }, false},
	} {
		s := moving
		tt.change(&s)
		if got := hasCopy(&s); got != tt.has {
			t.Errorf("%s: has a copy: %v, want %v", name, got, tt.has)
		}
	}
}
