package broker

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"sluice/core/group"
)

// commitTo commits one offset of a simple group.
func commitTo(t *testing.T, s *session, id string, partition int32, offset int64) {
	t.Helper()
	event := func(ticket group.Ticket) group.Event {
		return group.Commit{
			Ticket: ticket, Group: id, Generation: -1, Retention: -1,
			Offsets: []group.CommitOffset{{Partition: group.Partition{Topic: "t", Index: partition}, Offset: offset}},
		}
	}
	if a, code := s.ask(t.Context(), event).wait(t.Context()); code != group.None || a.(group.CommitResponse).Code != group.None {
		t.Fatalf("commit of %s: %v %+v", id, code, a)
	}
}

func offsetsOf(t *testing.T, s *session, id string) map[int32]int64 {
	t.Helper()
	event := func(ticket group.Ticket) group.Event { return group.FetchOffsets{Ticket: ticket, Group: id, All: true} }
	a, code := s.ask(t.Context(), event).wait(t.Context())
	if code != group.None {
		t.Fatalf("fetch is refused: %v", code)
	}
	r := a.(group.FetchOffsetsResponse)
	out := map[int32]int64{}
	for i, p := range r.Partitions {
		out[p.Index] = r.Offsets[i].Offset
	}
	return out
}

// A log with many records for few offsets is cut to what it says, once and not all the time, and the next coordinator knows everything.
func TestSessionKeepsItsLogShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{short: 200}
		s, stop := startSession(t, h)
		const groups, rounds = 20, 30
		for n := range int64(rounds) {
			for g := range groups {
				commitTo(t, s, fmt.Sprint("g", g), int32(n%2), n)
			}
		}
		if _, end := h.bounds(); end != groups*rounds {
			t.Fatalf("%d records before the first look", end)
		}
		time.Sleep(restateInterval + time.Second)
		if start, end := h.bounds(); end-start != 2*groups || start != groups*rounds {
			t.Errorf("records from %d to %d, want the %d offsets", start, end, 2*groups)
		}
		time.Sleep(10 * restateInterval)
		if got := s.metrics.restatements.Get(); got != 1 {
			t.Errorf("%d restatements, want 1", got)
		}
		_ = stop()
		s, stop = startSession(t, h)
		for g := range groups {
			if got := offsetsOf(t, s, fmt.Sprint("g", g)); len(got) != 2 || got[0] != rounds-2 || got[1] != rounds-1 {
				t.Errorf("group %d: %v", g, got)
			}
		}
		_ = stop()
	})
}

// What is committed while everything is said again is neither lost nor undone, wherever the coordinator ends.
func TestSessionRestatesBesideItsWork(t *testing.T) {
	for i := range 60 {
		end := i % 6 // often, as a loop chooses among what it can do
		synctest.Test(t, func(t *testing.T) {
			h := &memoryHome{short: 50, gate: make(chan struct{}, 1000)}
			let := func(n int) {
				for range n {
					h.gate <- struct{}{}
				}
				synctest.Wait()
			}
			s, stop := startSession(t, h)
			let(200)
			for n := range int64(100) {
				commitTo(t, s, "busy", 0, n)
			}
			commitTo(t, s, "quiet", 0, 7)
			for len(h.gate) > 0 {
				<-h.gate
			}
			time.Sleep(restateInterval + time.Second) // the restatement waits at the gate
			var last *question
			for n := range int64(5) {
				last = s.ask(t.Context(), func(ticket group.Ticket) group.Event {
					return group.Commit{Ticket: ticket, Group: "busy", Generation: -1, Retention: -1, Offsets: []group.CommitOffset{{Partition: group.Partition{Topic: "t"}, Offset: 1000 + n}}}
				})
				synctest.Wait()
			}
			let(end)
			answered := len(last.answer) > 0
			h.mu.Lock()
			h.mu.err = errors.New("gone")
			h.mu.Unlock()
			let(100)
			_ = stop()
			h.mu.Lock()
			h.mu.err = nil
			h.mu.Unlock()
			s, stop = startSession(t, h)
			busy, quiet := offsetsOf(t, s, "busy")[0], offsetsOf(t, s, "quiet")[0]
			if quiet != 7 || busy < 99 || answered && busy != 1004 {
				t.Errorf("ended after %d writes: busy %d, quiet %d, the last commit answered: %v", end, busy, quiet, answered)
			}
			_ = stop()
		})
	}
}

// A group that joins is waited for: the log says what it was before, and nobody else knows.
func TestSessionWaitsForGroupsThatJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &memoryHome{short: 50}
		s, stop := startSession(t, h)
		a, _ := s.ask(t.Context(), joinAlone).wait(t.Context())
		member := a.(group.JoinResponse).MemberID
		sync := func(ticket group.Ticket) group.Event {
			return group.Sync{Ticket: ticket, Group: "g", Generation: 1, MemberID: member, Assignments: map[string][]byte{member: []byte("x")}}
		}
		if a, _ := s.ask(t.Context(), sync).wait(t.Context()); a.(group.SyncResponse).Code != group.None {
			t.Fatalf("sync: %+v", a)
		}
		for n := range int64(100) {
			commitTo(t, s, "busy", 0, n)
		}
		beat := func(ticket group.Ticket) group.Event {
			return group.Heartbeat{Ticket: ticket, Group: "g", Generation: 1, MemberID: member}
		}
		for range 7 {
			time.Sleep(8 * time.Second)
			if a, _ := s.ask(t.Context(), beat).wait(t.Context()); a.(group.HeartbeatResponse).Code != group.None {
				t.Fatalf("heartbeat: %+v", a)
			}
		}
		second := func(ticket group.Ticket) group.Event {
			j := joinAlone(ticket).(group.Join)
			j.Rebalance = 30 * time.Second
			return j
		}
		_ = s.ask(t.Context(), second) // the group joins until the first member comes, or its time is over
		time.Sleep(5 * time.Second)
		if first, _ := h.bounds(); first != 0 {
			t.Fatalf("the log starts at %d while a group joins", first)
		}
		if got := s.published(); got.Groups[group.PreparingRebalance] != 1 {
			t.Fatalf("%+v", got)
		}
		time.Sleep(restateInterval)
		if first, _ := h.bounds(); first == 0 {
			t.Error("the log was not cut when the group had joined")
		}
		_ = stop()
	})
}
