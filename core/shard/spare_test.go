package shard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sluice/core/meta"
)

// TestGuard11OnlyWhatIsSentIsRead lets a follower be behind by more than is in memory, and checks that the leader reads each entry about once. The
// library asks for 128 entries whatever fits into a request: each would be read many times.
func TestGuard11OnlyWhatIsSentIsRead(t *testing.T) {
	attempts(t, func() error { return onlyWhatIsSentIsRead(t) })
}

func onlyWhatIsSentIsRead(t *testing.T) error {
	c := newCluster(t, 3, func(_ meta.NodeID, o *Options) { o.Heartbeat = calm })
	defer c.close()
	leader := c.leader()
	f := follower(c, leader)
	c.partition(f.id, true)
	const entries, size = 60, 512 << 10
	for i := range entries {
		leader.mustPut(fmt.Sprintf("k%d=%s", i, strings.Repeat("x", size)))
	}
	if leader.group.log.Info().CacheBytes > entries*size/2 {
		t.Fatal("too much is in memory for this test")
	}
	c.partition(f.id, false)
	c.until("the follower has everything", c.same(leader, f))
	read := leader.group.metrics.readToSend.Get()
	if read == 0 || read > entries*size*3/2 { // a request that takes too long is sent again, and another leader has counters of its own
		return fmt.Errorf("%d bytes were read to send %d", read, entries*size)
	}
	return nil
}

func TestSpareRateFollowsLiveTraffic(t *testing.T) {
	var s spare
	s.init()
	now := time.Unix(1000, 0)
	step := func(took time.Duration) int64 {
		for range 100 {
			s.saw(now, sawWrite, took, 4096)
		}
		now = now.Add(sparePeriod)
		return s.bytesPerSecond(now)
	}
	for range 1000 { // quiet: this is what a write takes here
		s.saw(now, sawWrite, 20*time.Millisecond, 4096)
	}
	s.bytesPerSecond(now)
	for range 50 {
		step(20 * time.Millisecond)
	}
	if rate := step(20 * time.Millisecond); rate != SpareBytesPerSecondMax {
		t.Errorf("rate %d though live traffic feels nothing", rate)
	}
	for range 50 {
		step(100 * time.Millisecond)
	}
	if rate := step(100 * time.Millisecond); rate != spareMin {
		t.Errorf("rate %d though writes take five times what they took", rate)
	}
	up := step(20 * time.Millisecond)
	if again := step(20 * time.Millisecond); again <= up || again > up+spareStep {
		t.Errorf("rate goes from %d to %d", up, again)
	}
	for range 100 {
		s.saw(now, sawWrite, 10*time.Millisecond+time.Second, slowBytesPerSec) // a second's worth of bytes
	}
	before := s.bytesPerSecond(now)
	now = now.Add(sparePeriod)
	if s.bytesPerSecond(now) < before {
		t.Error("large writes count as slow ones")
	}
}

// TestReplayReadsAsItApplies restarts a replica with more in its log than is kept in memory: the state machine gets all of it, in parts of bounded size.
func TestReplayReadsAsItApplies(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.leader()
	const entries, size = 60, 512 << 10
	for i := range entries {
		m.mustPut(fmt.Sprintf("k%d=%s", i, strings.Repeat("x", size)))
	}
	m.crash()
	m.restart()
	c.until("everything is applied again", func() bool { return len(m.sm.all()) == entries })
	if most := m.sm.largest(); most > maxAppendBytes+size {
		t.Errorf("%d bytes were given to the state machine at once", most)
	}
	for i, entry := range m.sm.all() {
		if want := fmt.Sprintf("k%d=x", i); !strings.HasPrefix(entry, want) || len(entry) != size+len(want)-1 {
			t.Fatalf("entry %d is %.20q with %d bytes", i, entry, len(entry))
		}
	}
}
