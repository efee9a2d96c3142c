package broker

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/group"
	"sluice/core/record"
)

// wallClock is a clock whose wall reading is off by some ms, while its monotonic reading is right: what time.Now returns after somebody has set the
// machine's clock. Package cmd/internal/chaos does the same to whole processes, and tests the layout that this relies on.
type wallClock struct{ offMs atomic.Int64 }

func (c *wallClock) now() time.Time {
	t := time.Now()
	stamp := (*struct {
		wall uint64
		ext  int64
	})(unsafe.Pointer(&t))
	stamp.wall += uint64(c.offMs.Load()/1000) << 30
	return t
}

func (c *wallClock) jump(by time.Duration) { c.offMs.Add(by.Milliseconds()) }

// TestSessionIsNotHurtByTheClock: members stay and go by what really lasts; a committed offset has the wall's time and is not forgotten for an hour's jump.
func TestSessionIsNotHurtByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := &wallClock{}
		h := &memoryHome{clock: clock.now}
		s, stop := startSession(t, h)
		a, _ := s.ask(t.Context(), joinAlone).wait(t.Context())
		member := a.(group.JoinResponse).MemberID
		sync := func(ticket group.Ticket) group.Event {
			return group.Sync{Ticket: ticket, Group: "g", Generation: 1, MemberID: member, Assignments: map[string][]byte{member: []byte("x")}}
		}
		if a, _ := s.ask(t.Context(), sync).wait(t.Context()); a.(group.SyncResponse).Code != group.None {
			t.Fatalf("sync: %+v", a)
		}
		beat := func(ticket group.Ticket) group.Event {
			return group.Heartbeat{Ticket: ticket, Group: "g", Generation: 1, MemberID: member}
		}
		for i, by := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour, -time.Hour, 2 * time.Hour} {
			clock.jump(by)
			time.Sleep(9 * time.Second)
			if a, _ := s.ask(t.Context(), beat).wait(t.Context()); a.(group.HeartbeatResponse).Code != group.None {
				t.Fatalf("heartbeat %d: %+v", i, a)
			}
		}
		if off := clock.now().UnixMilli() - time.Now().UnixMilli(); off != time.Hour.Milliseconds() {
			t.Fatalf("the clock is off by %d ms", off)
		}
		clock.jump(-2 * time.Hour)
		time.Sleep(11 * time.Second)
		if got := s.published(); got.Members != 0 {
			t.Errorf("stats %+v: the member's session has ended, whatever the clock says", got)
		}
		commit := func(ticket group.Ticket) group.Event {
			return group.Commit{Ticket: ticket, Group: "simple", Generation: -1, Retention: -1, Offsets: []group.CommitOffset{{Partition: group.Partition{Topic: "t"}, Offset: 5}}}
		}
		if _, code := s.ask(t.Context(), commit).wait(t.Context()); code != group.None {
			t.Fatalf("commit is refused: %v", code)
		}
		for _, by := range []time.Duration{time.Hour, -2 * time.Hour, 2 * time.Hour} {
			clock.jump(by)
			time.Sleep(2 * cleanInterval)
			a, code := s.ask(t.Context(), func(ticket group.Ticket) group.Event { return group.FetchOffsets{Ticket: ticket, Group: "simple", All: true} }).wait(t.Context())
			if code != group.None || len(a.(group.FetchOffsetsResponse).Offsets) != 1 {
				t.Errorf("after a jump of %v: %+v %v", by, a, code)
			}
		}
		_ = stop()
	})
}

// TestLogAppendTimeFollowsTheClock: as in Kafka it is what the broker's clock says, also when that goes back. Positions by time are still the first at or
// after it, by offset.
func TestLogAppendTimeFollowsTheClock(t *testing.T) {
	clock := &wallClock{}
	c := startClusterWith(t, 1, func(n *testNode) { n.now = clock.now })
	c.create("times", 1, map[string]string{"message.timestamp.type": "LogAppendTime"})
	conn := dialRaw(t, c.nodes[0].kafka)
	var times []int64
	for _, by := range []time.Duration{0, time.Hour, -2 * time.Hour} {
		clock.jump(by)
		p := conn.produce(produceRequest(9, "times", [16]byte{}, 0, batch(record.None, "a")))
		if want := clock.now().UnixMilli(); p.ErrorCode != 0 || p.LogAppendTime > want || p.LogAppendTime < want-testTimeout.Milliseconds() {
			t.Fatalf("after %v: %+v, the clock says %d", by, p, want)
		}
		times = append(times, p.LogAppendTime)
	}
	for _, want := range []struct{ at, offset int64 }{{times[2], 0}, {times[0], 0}, {times[0] + 1, 1}, {times[1], 1}, {times[1] + 1, -1}} {
		if got := conn.offsetAt("times", want.at); got != want.offset {
			t.Errorf("the first record at %d or later is at %d, want %d", want.at, got, want.offset)
		}
	}
}

// offsetAt asks ListOffsets for partition 0.
func (r *rawConn) offsetAt(topic string, at int64) int64 {
	req := kmsg.NewPtrListOffsetsRequest()
	req.Version, req.ReplicaID = 5, -1
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Timestamp, p.CurrentLeaderEpoch = at, -1
	req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{p}}}
	return r.receive(req, r.send(req)).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0].Offset
}
