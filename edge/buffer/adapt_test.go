package buffer

import (
	"testing"
	"time"

	"sluice/core/vfs"
)

func TestQueueFollowsTheDisk(t *testing.T) {
	b, err := Open(Options{FS: vfs.NewMem(), Dir: "buffer"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.log.Close()
	now := time.Unix(1000, 0)
	commit := func(took time.Duration) {
		now = now.Add(time.Second)
		p := newBatch()
		p.entries, p.first = 1, now.Add(-took)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.adaptLocked(now, []*batch{p, newBatch()})
	}
	for range 100 {
		commit(2 * queueTarget)
	}
	if b.mu.limit != queueBytesMin {
		t.Errorf("limit %d behind a slow disk", b.mu.limit)
	}
	commit(queueTarget / 2)
	if b.mu.limit != queueBytesMin {
		t.Error("it grew though nobody waits")
	}
	b.crowded.Store(true)
	for range 100 {
		commit(queueTarget / 2)
	}
	if b.mu.limit != b.o.QueueBytes {
		t.Errorf("limit %d before a fast disk", b.mu.limit)
	}
}
