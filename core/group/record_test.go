package group

import (
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func testConfig() Config { return Config{NewID: func() string { return "id" }} }

// TestReplayOldVersions reads what older Kafka releases wrote.
func TestReplayOldVersions(t *testing.T) {
	c := New(testConfig())
	key := kmsg.OffsetCommitKey{Version: 0, Group: "g", Topic: "t", Partition: 3}
	value := kmsg.OffsetCommitValue{Version: 1, Offset: 7, Metadata: "m", CommitTimestamp: 1000, ExpireTimestamp: 2000}
	replay(t, c, []Record{{Key: key.AppendTo(nil), Value: value.AppendTo(nil)}})
	want := Offset{Offset: 7, LeaderEpoch: -1, Metadata: "m", CommitMs: 1000, ExpireMs: 2000}
	if got := c.groups["g"].offsets["t"][3]; got != want {
		t.Errorf("offset is %+v, want %+v", got, want)
	}
	value = kmsg.OffsetCommitValue{Version: 2, Offset: 8, CommitTimestamp: 1000}
	replay(t, c, []Record{{Key: key.AppendTo(nil), Value: value.AppendTo(nil)}})
	want = Offset{Offset: 8, LeaderEpoch: -1, CommitMs: 1000, ExpireMs: -1}
	if got := c.groups["g"].offsets["t"][3]; got != want {
		t.Errorf("offset is %+v, want %+v", got, want)
	}
	gk := kmsg.GroupMetadataKey{Version: 2, Group: "g"}
	gv := kmsg.GroupMetadataValue{
		Version: 0, ProtocolType: "consumer", Generation: 4, Protocol: nullable("range"), Leader: nullable("m"),
		Members: []kmsg.GroupMetadataValueMember{{MemberID: "m", SessionTimeoutMillis: 9000, Assignment: []byte("a")}},
	}
	replay(t, c, []Record{{Key: gk.AppendTo(nil), Value: gv.AppendTo(nil)}})
	c.Step(time.Now(), Loaded{})
	g := c.groups["g"]
	if g.state != Stable || g.generation != 4 || g.byID["m"].rebalance != 9*time.Second || len(g.offsets) != 1 {
		t.Errorf("group is %+v, member %+v", g, g.byID["m"])
	}
}

func TestReplayRefusesAndSkips(t *testing.T) {
	c := New(testConfig())
	for _, key := range [][]byte{nil, {0}, {0, 1}, {0, 2, 0, 9}} {
		if err := c.Replay(key, nil, false); !errors.Is(err, ErrRecord) {
			t.Errorf("key %v: error %v, want ErrRecord", key, err)
		}
	}
	if err := c.Replay(groupKey("g"), []byte{0, 3, 1}, false); !errors.Is(err, ErrRecord) {
		t.Errorf("cut value: error %v, want ErrRecord", err)
	}
	if err := c.Replay([]byte{0, 3, 0, 1, 'g'}, []byte{0, 0}, false); err != nil {
		t.Errorf("a key of a consumer group (KIP-848): %v, want it skipped", err)
	}
	if len(c.groups) != 0 || c.Stats() != (Stats{}) {
		t.Errorf("groups %v, stats %+v after nothing but bad records", c.groups, c.Stats())
	}
}

// FuzzReplay takes any bytes as records: nothing panics, and the groups that come of them can be served.
func FuzzReplay(f *testing.F) {
	v := kmsg.NewGroupMetadataValue()
	v.Version, v.ProtocolType, v.Generation, v.Protocol, v.Leader = 3, "consumer", 1, nullable("range"), nullable("a")
	v.Members = []kmsg.GroupMetadataValueMember{{MemberID: "a", SessionTimeoutMillis: 6000, RebalanceTimeoutMillis: 6000}, {MemberID: "b", InstanceID: nullable("i")}}
	f.Add(groupKey("g"), v.AppendTo(nil), true)
	f.Add(groupKey("g"), v.AppendTo(nil), false)
	o := kmsg.OffsetCommitValue{Version: 4, Offset: 1, TopicID: [16]byte{1}}
	f.Add(offsetKey("g", Partition{"t", 1}), o.AppendTo(nil), false)
	f.Fuzz(func(t *testing.T, key, value []byte, joining bool) {
		c := New(testConfig())
		if err := c.Replay(key, value, joining); err != nil {
			return
		}
		now := time.Now()
		c.Step(now, Loaded{})
		for id := range c.groups {
			c.Step(now, Describe{1, id})
			c.Step(now, Join{Ticket: 2, Group: id, Session: 10 * time.Second, ProtocolType: "consumer", Protocols: protocols("range:t")})
			c.Step(now, FetchOffsets{Ticket: 3, Group: id, All: true})
		}
		for range 100 {
			at, ok := c.Next()
			if !ok {
				break
			}
			c.Step(at, Tick{})
		}
		c.Step(now, Clean{})
	})
}
