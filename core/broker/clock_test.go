package broker

import (
	"sync/atomic"
	"testing"
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

// TestSessionIsNotHurtByTheClock: members stay and go by what really lasts. In real time: the clock of a synctest bubble has no monotonic reading.
func TestSessionIsNotHurtByTheClock(t *testing.T) {
	clock := &wallClock{}
	s, stop := startSessionNow(t, &memoryHome{clock: clock.now})
	defer func() { _ = stop() }()
	join := func(id string, session time.Duration) string {
		for late := time.Now().Add(testTimeout); ; {
			a, _ := s.ask(t.Context(), func(ticket group.Ticket) group.Event {
				return group.Join{Ticket: ticket, Group: id, ProtocolType: "connect", Protocols: []group.Protocol{{Name: "p"}}, Session: session, ClientID: "c"}
			}).wait(t.Context())
			joined := a.(group.JoinResponse)
			a, _ = s.ask(t.Context(), func(ticket group.Ticket) group.Event {
				return group.Sync{Ticket: ticket, Group: id, Generation: joined.Generation, MemberID: joined.MemberID, Assignments: map[string][]byte{joined.MemberID: []byte("x")}}
			}).wait(t.Context())
			if a.(group.SyncResponse).Code == group.None {
				return joined.MemberID
			}
			if time.Now().After(late) { // a short session may be over before that
				t.Fatalf("sync: %+v", a)
			}
		}
	}
	stays := join("stays", 10*time.Minute)
	for _, by := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour, -time.Hour, 2 * time.Hour} {
		clock.jump(by)
		for range 3 { // the loop has looked at its timer between two of them
			if a, _ := s.ask(t.Context(), func(ticket group.Ticket) group.Event {
				return group.Heartbeat{Ticket: ticket, Group: "stays", Generation: 1, MemberID: stays}
			}).wait(t.Context()); a.(group.HeartbeatResponse).Code != group.None {
				t.Fatalf("heartbeat after a jump of %v: %+v", by, a)
			}
		}
	}
	before, now, after := time.Now(), clock.now().UnixMilli(), time.Now()
	if now < before.Add(time.Hour).UnixMilli()-1000 || now > after.Add(time.Hour).UnixMilli() {
		t.Fatalf("the clock says %d between %v and %v, an hour ago", now, before, after)
	}
	join("goes", 50*time.Millisecond)
	clock.jump(-2 * time.Hour)
	late := time.After(testTimeout)
	for s.published().Members != 1 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-late:
			t.Fatalf("stats %+v: the member's session has ended, whatever the clock says", s.published())
		}
	}
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
