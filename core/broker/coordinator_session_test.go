package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sluice/core/group"
)

// memoryHome keeps a coordinator's records in memory.
type memoryHome struct {
	gate  chan struct{}    // a write takes one; nil: writes do not wait
	lost  atomic.Bool      // leadership
	clock func() time.Time // nil: time.Now
	short int64            // restateMin of sessions, 0: as it is
	mu    struct {
		sync.Mutex
		log    []group.Record
		first  int64 // offset of the log's first record
		writes int
		err    error
		gone   map[string]bool
	}
}

func (h *memoryHome) leads() bool { return !h.lost.Load() }

func (h *memoryHome) verify(context.Context) error {
	if h.lost.Load() {
		return errNotCoordinator
	}
	return nil
}

func (h *memoryHome) load(_ context.Context, replay func(key, value []byte, joining bool) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.mu.log {
		if err := replay(r.Key, r.Value, r.Joining); err != nil {
			return err
		}
	}
	return nil
}

func (h *memoryHome) write(records []group.Record) error {
	if h.gate != nil {
		<-h.gate
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.err != nil {
		return h.mu.err
	}
	h.mu.log = append(h.mu.log, records...)
	h.mu.writes++
	return nil
}

func (h *memoryHome) bounds() (start, end int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.first, h.mu.first + int64(len(h.mu.log))
}

func (h *memoryHome) cut(start int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.log = h.mu.log[start-h.mu.first:]
	h.mu.first = start
	return nil
}

func (h *memoryHome) exists(topic string, _ group.TopicID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.mu.gone[topic]
}

func (h *memoryHome) now() time.Time {
	if h.clock != nil {
		return h.clock()
	}
	return time.Now()
}

// startSession runs a session on the home in a bubble; stop ends it and returns what it ended with.
func startSession(t *testing.T, h *memoryHome) (s *session, stop func() error) {
	t.Helper()
	defer synctest.Wait()
	return startSessionNow(t, h)
}

// startSessionNow is startSession outside of a bubble.
func startSessionNow(t *testing.T, h *memoryHome) (s *session, stop func() error) {
	t.Helper()
	var ids atomic.Int64
	config := group.Config{NewID: func() string { return fmt.Sprint(ids.Add(1)) }, MinSession: time.Millisecond}
	s = newSession(h, config, newGroupMetrics(func() group.Stats { return group.Stats{} }), new(atomic.Uint64))
	if h.short > 0 {
		s.restateMin = h.short
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	return s, func() error {
		cancel()
		return <-ended
	}
}

func commitEvent(offset int64) func(group.Ticket) group.Event {
	return func(t group.Ticket) group.Event {
		return group.Commit{
			Ticket: t, Group: "g", Generation: -1, Retention: -1,
			Offsets: []group.CommitOffset{{Partition: group.Partition{Topic: "t"}, Offset: offset}},
		}
	}
}

func fetchEvent(t group.Ticket) group.Event {
	return group.FetchOffsets{Ticket: t, Group: "g", All: true}
}

func fetched(t *testing.T, s *session) []group.Offset {
	t.Helper()
	a, code := s.ask(t.Context(), fetchEvent).wait(t.Context())
	if code != group.None {
		t.Fatalf("fetch is refused: %v", code)
	}
	return a.(group.FetchOffsetsResponse).Offsets
}

func joinAlone(t group.Ticket) group.Event {
	return group.Join{
		Ticket: t, Group: "g", ProtocolType: "connect", Protocols: []group.Protocol{{Name: "p"}}, Session: 10 * time.Second, ClientID: "c",
	}
}

func TestSessionAnswersWhatIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{gate: make(chan struct{})}
		s, stop := startSession(t, h)
		questions := []*question{s.ask(t.Context(), commitEvent(1))}
		synctest.Wait() // until its write has begun
		questions = append(questions, s.ask(t.Context(), fetchEvent), s.ask(t.Context(), commitEvent(2)), s.ask(t.Context(), fetchEvent))
		other := s.ask(t.Context(), func(t group.Ticket) group.Event { return group.Describe{Ticket: t, Group: "other"} })
		synctest.Wait()
		if n := answered(questions); n != 0 {
			t.Errorf("%d answers before anything is committed", n)
		}
		if n := answered([]*question{other}); n != 1 {
			t.Error("another group waits for a write that is not its own")
		}
		h.gate <- struct{}{}
		synctest.Wait()
		if n := answered(questions); n != 2 {
			t.Errorf("%d answers after the first write, want two: the last fetch has seen the second", n)
		}
		h.gate <- struct{}{}
		synctest.Wait()
		if n := answered(questions); n != 4 {
			t.Errorf("%d answers after the second write, want all", n)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("run returned %v", err)
		}
	})
}

func answered(questions []*question) int {
	n := 0
	for _, q := range questions {
		n += len(q.answer)
	}
	return n
}

func TestSessionWritesTogetherWhatComesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{gate: make(chan struct{})}
		s, stop := startSession(t, h)
		var last *question
		for i := range 100 {
			last = s.ask(t.Context(), commitEvent(int64(i)))
			synctest.Wait()
		}
		synctest.Wait()
		close(h.gate)
		if _, code := last.wait(t.Context()); code != group.None {
			t.Fatalf("commit is refused: %v", code)
		}
		_ = stop()
		if h.mu.writes != 2 || len(h.mu.log) != 100 {
			t.Errorf("%d records in %d writes, want 100 in 2", len(h.mu.log), h.mu.writes)
		}
	})
}

// TestSessionFailedWrite: nobody learns what was not committed, and the next session knows only what was.
func TestSessionFailedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{}
		s, _ := startSession(t, h)
		if _, code := s.ask(t.Context(), commitEvent(1)).wait(t.Context()); code != group.None {
			t.Fatalf("commit is refused: %v", code)
		}
		broken := errors.New("disk is gone")
		h.mu.Lock()
		h.mu.err = broken
		h.mu.Unlock()
		for _, event := range []func(group.Ticket) group.Event{commitEvent(2), fetchEvent, commitEvent(3)} {
			if _, code := s.ask(t.Context(), event).wait(t.Context()); code != group.NotCoordinator {
				t.Errorf("code %v, want NOT_COORDINATOR", code)
			}
		}
		<-s.done
		h.mu.Lock()
		h.mu.err = nil
		h.mu.Unlock()
		s, stop := startSession(t, h)
		if got := fetched(t, s); len(got) != 1 || got[0].Offset != 1 {
			t.Errorf("offsets %+v, want the committed 1", got)
		}
		_ = stop()
	})
}

func TestSessionEndsMembersSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := startSession(t, &memoryHome{})
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
		for range 3 {
			time.Sleep(9 * time.Second)
			if a, _ := s.ask(t.Context(), beat).wait(t.Context()); a.(group.HeartbeatResponse).Code != group.None {
				t.Fatalf("heartbeat: %+v", a)
			}
		}
		time.Sleep(11 * time.Second)
		if got := s.published(); got.Groups[group.Empty] != 1 || got.Members != 0 {
			t.Errorf("stats %+v, want one empty group", got)
		}
		if a, _ := s.ask(t.Context(), beat).wait(t.Context()); a.(group.HeartbeatResponse).Code != group.UnknownMemberID {
			t.Errorf("heartbeat after the session's end: %+v", a)
		}
		_ = stop()
	})
}

// TestSessionTakesOver: a member goes on with the next coordinator, which has read the log, and its session begins there.
func TestSessionTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{}
		s, stop := startSession(t, h)
		a, _ := s.ask(t.Context(), joinAlone).wait(t.Context())
		member := a.(group.JoinResponse).MemberID
		time.Sleep(9 * time.Second)
		_ = stop()
		if _, code := s.ask(t.Context(), fetchEvent).wait(t.Context()); code != group.NotCoordinator {
			t.Errorf("a session that has ended answers %v", code)
		}
		time.Sleep(time.Hour)
		s, stop = startSession(t, h)
		time.Sleep(9 * time.Second)
		sync := func(ticket group.Ticket) group.Event {
			return group.Sync{Ticket: ticket, Group: "g", Generation: 1, MemberID: member, Assignments: map[string][]byte{member: []byte("x")}}
		}
		if a, _ := s.ask(t.Context(), sync).wait(t.Context()); string(a.(group.SyncResponse).Assignment) != "x" {
			t.Errorf("sync: %+v", a)
		}
		_ = stop()
	})
}

func TestSessionForgetsOffsetsOfDeletedTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{}
		s, stop := startSession(t, h)
		if _, code := s.ask(t.Context(), commitEvent(1)).wait(t.Context()); code != group.None {
			t.Fatalf("commit is refused: %v", code)
		}
		h.mu.Lock()
		h.mu.gone = map[string]bool{"t": true}
		h.mu.Unlock()
		s.topicsChanged()
		time.Sleep(2 * topicsInterval)
		if got := fetched(t, s); len(got) != 1 {
			t.Errorf("offsets %+v: a topic that was never seen goes only after a while, as the metadata may be late", got)
		}
		time.Sleep(2 * topicsGrace)
		if got := fetched(t, s); len(got) != 0 {
			t.Errorf("offsets %+v of a topic that is gone", got)
		}
		_ = stop()
	})
}

// TestSessionPassesOverStrangeRecords: what a client writes into __consumer_offsets takes no groups away.
func TestSessionPassesOverStrangeRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{}
		s, stop := startSession(t, h)
		if _, code := s.ask(t.Context(), commitEvent(1)).wait(t.Context()); code != group.None {
			t.Fatalf("commit is refused: %v", code)
		}
		_ = stop()
		h.mu.log = append(h.mu.log, group.Record{Key: []byte("hello"), Value: []byte("world")}, group.Record{Key: nil, Value: []byte("x")})
		s, stop = startSession(t, h)
		if got := fetched(t, s); len(got) != 1 || s.metrics.strange.Get() == 0 {
			t.Errorf("offsets %+v, %d strange records", got, s.metrics.strange.Get())
		}
		_ = stop()
	})
}

func TestBacklogWritesAreBounded(t *testing.T) {
	var b backlog
	records := make([]group.Record, 5)
	for i := range records {
		records[i] = group.Record{Group: fmt.Sprint(i % 2), Key: []byte{byte(i)}, Value: make([]byte, writeBytes*2/3)}
	}
	b.add(records)
	if b.need("0") != 5 || b.need("1") != 4 || b.need("2") != 0 || b.need("") != 5 {
		t.Errorf("answers need %d, %d, %d, %d", b.need("0"), b.need("1"), b.need("2"), b.need(""))
	}
	for i := range records {
		next := b.next()
		if len(next) != 1 || next[0].Key[0] != byte(i) {
			t.Fatalf("write %d has %d records", i, len(next))
		}
		b.start()
		if got := b.next(); got != nil {
			t.Fatalf("a second write beside the first: %d records", len(got))
		}
		if got := b.finish(); got != uint64(i+1) {
			t.Errorf("committed %d after write %d", got, i)
		}
	}
	if b.bytes != 0 || len(b.dirty) != 0 || len(b.records) != 0 {
		t.Errorf("backlog keeps %d bytes, groups %v, %d records", b.bytes, b.dirty, len(b.records))
	}
}

func TestCoordinatorPartition(t *testing.T) {
	for s, want := range map[string]int32{
		"": 0, "abc": 96354, "é": 233, "😀": 1772899, "polygenelubricants": -1 << 31, "Aa": 2112, "BB": 2112,
	} {
		if got := javaHash(s); got != want {
			t.Errorf("hash of %q is %d, want %d", s, got, want)
		}
	}
	if p := coordinatorPartition("polygenelubricants", 10); p != 0 {
		t.Errorf("the smallest hash goes to partition %d, want 0", p)
	}
	if p := coordinatorPartition("abc", 10); p != 4 {
		t.Errorf("abc goes to partition %d, want 4", p)
	}
}
