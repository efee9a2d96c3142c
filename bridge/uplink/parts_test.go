package uplink

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"sluice/core/vfs"
)

// The partitioner must agree with a client's that is known to agree with Kafka's.
func TestPartitionerIsKafkas(t *testing.T) {
	kgoPartitioner := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		n := rapid.IntRange(1, 100).Draw(t, "partitions")
		if key == nil {
			key = []byte{}
		}
		want := kgoPartitioner.Partition(&kgo.Record{Key: key}, n)
		if got := partitionOf(key, 0, int32(n)); int(got) != want {
			t.Fatalf("partition %d, want %d", got, want)
		}
	})
}

func TestSequencesWrap(t *testing.T) {
	const last = 1<<31 - 1
	for _, c := range []struct{ s, n, want int32 }{{0, 5, 5}, {last, 1, 0}, {last - 2, 5, 2}, {7, 0, 7}} {
		if got := addSequence(c.s, c.n); got != c.want {
			t.Errorf("addSequence(%d, %d) = %d, want %d", c.s, c.n, got, c.want)
		}
	}
	p := partition{next: 3, queue: []*batch{{plan: batchPlan{Sequence: last - 1, Count: 3}}, {plan: batchPlan{Sequence: 1, Count: 2}}}}
	for s, want := range map[int32]struct {
		n     int
		ahead bool
	}{0: {1, false}, 2: {2, false}, last - 2: {0, false}, last - 100: {0, false}, 3: {0, true}, 1: {0, true}, last: {0, true}} {
		if n, ahead := p.reached(0, 0, s); n != want.n || ahead != want.ahead {
			t.Errorf("reached(%d) = %d, %v; want %d, %v", s, n, ahead, want.n, want.ahead)
		}
	}
}

func someEntries() []entry {
	tgt := target{"mqtt", 2}
	return []entry{
		{State: &journalState{Version: 1, MachineID: "m", ProducerID: 7, Offset: 3, Started: true}},
		{Round: &roundPlan{ID: 1, From: 3, To: 9, Partitions: map[string]int32{"mqtt": 3}, Batches: []batchPlan{{Target: tgt, ProducerID: 7, Sequence: 5, Count: 6, CRC: 1}}}},
		{Round: &roundPlan{ID: 2, From: 9, To: 10, Partitions: map[string]int32{"mqtt": 3}}},
		{Confirmation: &confirmation{Round: 1, Offset: 9, Partitions: []partitionState{{Target: tgt, ProducerID: 7, Sequence: 11, Acked: 60}}}},
	}
}

// Whatever is cut off a journal's end, what is before is kept, and a flipped bit before the end is not taken for a cut.
func TestJournalCutAnywhere(t *testing.T) {
	var data []byte
	ends := []int{0}
	states := []journalState{{Version: journalVersion, ProducerID: -1}}
	for _, e := range someEntries() {
		data = appendFrame(data, encode(e))
		ends = append(ends, len(data))
		s := states[len(states)-1]
		s.Rounds, s.Partitions = append([]roundPlan(nil), s.Rounds...), append([]partitionState(nil), s.Partitions...)
		if err := s.apply(e); err != nil {
			t.Fatal(err)
		}
		states = append(states, s)
	}
	for cut := range len(data) + 1 {
		whole := 0
		for whole+1 < len(ends) && ends[whole+1] <= cut {
			whole++
		}
		j := &journal{state: journalState{Version: journalVersion, ProducerID: -1}}
		err := j.replay(data[:cut])
		if damaged := cut < ends[1]; damaged != (err != nil) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if diff := cmp.Diff(fmt.Sprintf("%+v", states[whole]), fmt.Sprintf("%+v", j.state)); diff != "" {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
	}
	for end := ends[1]; end < ends[2]; end++ { // the size was on disk before the data was
		if end > ends[1] && end < ends[1]+frameHeader {
			continue
		}
		if err := (&journal{}).replay(append(data[:end:end], make([]byte, ends[2]-end)...)); err != nil {
			t.Errorf("zeros from byte %d on: %v", end, err)
		}
	}
	damaged := append([]byte(nil), data...)
	damaged[ends[1]+frameHeader+3] ^= 1
	if err := (&journal{}).replay(damaged); err == nil || !strings.Contains(err.Error(), "damaged at byte") {
		t.Errorf("a flipped bit in the middle: %v", err)
	}
}

func TestJournalRefusesNewer(t *testing.T) {
	data := appendFrame(nil, encode(entry{State: &journalState{Version: journalVersion + 1}}))
	if err := (&journal{}).replay(data); err == nil || !strings.Contains(err.Error(), "newer release") {
		t.Errorf("error %v", err)
	}
}

func TestJournalSurvivesItsRewriting(t *testing.T) {
	fs := vfs.NewMem()
	j, err := openJournal(fs, "/j")
	if err != nil {
		t.Fatal(err)
	}
	j.end = journalBytesMax // as if it had grown
	for _, e := range someEntries() {
		if err := j.commit(e); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf("%+v", j.state)
	again, err := openJournal(fs.CrashClone(nil), "/j")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%+v", again.state); got != want {
		t.Errorf("state %s, want %s", got, want)
	}
}

func FuzzJournal(f *testing.F) {
	var data []byte
	for _, e := range someEntries() {
		data = appendFrame(data, encode(e))
	}
	f.Add(data)
	f.Add(binary.LittleEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, data []byte) {
		j := &journal{}
		_ = j.replay(data) // any error will do; a panic or a huge allocation will not
	})
}

func TestLimit(t *testing.T) {
	b := bucket{rate: 1000}
	now := time.Unix(100, 0)
	if b.wait(now) != 0 {
		t.Error("a fresh bucket waits")
	}
	b.take(1500)
	if w := b.wait(now); w != 1500*time.Millisecond {
		t.Errorf("wait %v, want 1.5s", w)
	}
	if w := b.wait(now.Add(1500 * time.Millisecond)); w > time.Millisecond {
		t.Errorf("still %v", w)
	}
	if free := (&bucket{}).wait(now); free != 0 {
		t.Errorf("no limit waits %v", free)
	}
}

func TestWindows(t *testing.T) {
	night, err := ParseWindow("22:00-06:30")
	if err != nil {
		t.Fatal(err)
	}
	for clock, want := range map[string]bool{"21:59": false, "22:00": true, "03:00": true, "06:29": true, "06:30": false, "12:00": false} {
		at, err := time.Parse("15:04", clock)
		if err != nil {
			t.Fatal(err)
		}
		if open([]Window{night}, at) != want || !open(nil, at) {
			t.Errorf("%s: open = %v", clock, !want)
		}
	}
	for _, bad := range []string{"", "22-6", "25:00-06:00", "22:00-06:60", "22:00-06:00x"} {
		if _, err := ParseWindow(bad); err == nil {
			t.Errorf("%q is taken for a window", bad)
		}
	}
}
