package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sluice/core/record"
	"sluice/core/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a buffer with its Run in a goroutine.
type running struct {
	*Buffer
	stop func() error
}

func start(t *testing.T, o Options) *running {
	t.Helper()
	b, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, b)
}

func run(t *testing.T, b *Buffer) *running {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { stop() })
	return &running{b, stop}
}

func message(i int) Message {
	return Message{
		Topic: []byte("t"), Key: fmt.Appendf(nil, "k%d", i), Value: fmt.Appendf(nil, "value %d", i), TimestampMs: int64(i),
		Headers: []record.Header{{Key: "mqtt.client", Value: fmt.Appendf(nil, "c%d", i%3)}},
	}
}

// values are the values of the core's messages in the log.
func values(t *testing.T, b *Buffer) []string {
	t.Helper()
	var all []string
	err := b.scan(b.log.Start(), b.Synced(), func(_, _ int64, r record.Record) error {
		if _, ok := coreTopic(r); ok {
			all = append(all, string(r.Value))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func put(t *testing.T, b *running, e *Entry) {
	t.Helper()
	ticket, err := b.PutTicket(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := ticket.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestMessagesComeBackInOrderWithTheirParts(t *testing.T) {
	fs := vfs.NewMem()
	b := start(t, Options{FS: fs, Dir: "buffer"})
	for i := range 10 {
		put(t, b, &Entry{Messages: []Message{message(2 * i), message(2*i + 1)}, Note: []byte{byte(i)}, OwnKey: "own", Own: []byte("mine")})
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Options{FS: fs, Dir: "buffer"})
	if err != nil {
		t.Fatal(err)
	}
	got := values(t, again)
	for i := range 20 {
		if want := fmt.Sprintf("value %d", i); got[i] != want {
			t.Fatalf("record %d is %q, want %q", i, got[i], want)
		}
	}
	var notes, owns int
	err = again.Replay(0, func(_ int64, key string, value []byte) error {
		switch key {
		case KeyJournal:
			if value[0] != byte(notes) {
				t.Errorf("note %d is %d", notes, value[0])
			}
			notes++
		case "own":
			owns++
		}
		return nil
	})
	if err != nil || notes != 10 || owns != 10 {
		t.Fatalf("%d notes, %d own records, error %v", notes, owns, err)
	}
	err = again.scan(0, 1, func(_, timestampMs int64, r record.Record) error {
		if len(r.Headers) != 2 || r.Headers[0].Key != HeaderTo || string(r.Headers[0].Value) != "t" || string(r.Key) != "k0" || timestampMs != 0 {
			t.Errorf("record 0 is %+v at %d ms", r, timestampMs)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, again).stop()
}

// Many owners put at once; each is told all of its tags, in its order, and the log has its messages in that order.
func TestOwnersAreToldInOrder(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer", BatchBytes: 2000})
	const owners, each = 20, 200
	var all sync.WaitGroup
	for o := range owners {
		all.Go(func() {
			done := make(chan struct{})
			var got []Tag
			owner := NewOwner(func(tags []Tag, err error) {
				if err != nil {
					t.Error(err)
				}
				if got = append(got, tags...); len(got) == each {
					close(done)
				}
			})
			for i := range each {
				e := &Entry{Owner: owner, Tag: Tag(i)}
				if i%3 > 0 { // some only ask for their turn
					e.Messages = []Message{{Topic: []byte("t"), Value: fmt.Appendf(nil, "%d/%d", o, i)}}
				}
				if err := b.Put(e); err != nil {
					t.Error(err)
				}
			}
			<-done
			for i, tag := range got {
				if tag != Tag(i) {
					t.Errorf("owner %d was told %d in place %d", o, tag, i)
				}
			}
		})
	}
	all.Wait()
	last := map[int]int{}
	for _, v := range values(t, b.Buffer) {
		var o, i int
		fmt.Sscanf(v, "%d/%d", &o, &i)
		if i <= last[o] {
			t.Fatalf("owner %d: %d after %d", o, i, last[o])
		}
		last[o] = i
	}
}

func TestDeliverComesBeforeTheOwnerIsTold(t *testing.T) {
	b, err := Open(Options{FS: vfs.NewMem(), Dir: "buffer"})
	if err != nil {
		t.Fatal(err)
	}
	var delivered []any
	var next int64
	b.OnDeliver(func(locals []any, n int64) {
		delivered = append(delivered, locals...)
		next = max(next, n)
	})
	r := run(t, b)
	put(t, r, &Entry{Messages: []Message{message(0)}, Local: "a"})
	put(t, r, &Entry{Messages: []Message{message(1)}, Local: "b"})
	if len(delivered) != 2 || delivered[0] != "a" || delivered[1] != "b" || next != 2 {
		t.Fatalf("delivered %v, up to %d", delivered, next)
	}
}

// Power goes at every sync and write: what an owner was told is in the log of the clone, and an entry is there whole or not at all.
func TestAckedMessagesSurviveEveryCrash(t *testing.T) {
	for seed := range uint64(20) {
		crashes(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

func crashes(t *testing.T, random *rand.Rand) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	var acked atomic.Int64 // entries
	type crash struct {
		fs    *vfs.Mem
		acked int64
	}
	var mu sync.Mutex
	var clones []crash
	fault.SetHook(func(op vfs.Op, path string) error {
		if op == vfs.OpSync || op == vfs.OpWrite || op == vfs.OpCreate {
			mu.Lock()
			defer mu.Unlock()
			n := acked.Load() // before the clone: what was told then must be in it
			clones = append(clones, crash{mem.CrashClone(func() bool { return random.IntN(2) == 0 }), n})
		}
		return nil
	})
	b := start(t, Options{FS: fault, Dir: "buffer", SegmentBytes: 4096, BatchBytes: 1024})
	const entries, each = 40, 3
	for i := range entries {
		var messages []Message
		for j := range each {
			messages = append(messages, message(i*each+j))
		}
		put(t, b, &Entry{Messages: messages})
		acked.Add(1)
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(clones) < entries {
		t.Fatalf("only %d crashes", len(clones))
	}
	for n, c := range clones {
		again, err := Open(Options{FS: c.fs, Dir: "buffer", SegmentBytes: 4096})
		if err != nil {
			t.Fatalf("crash %d: %v", n, err)
		}
		got := values(t, again)
		if int64(len(got)) < c.acked*each || len(got)%each != 0 {
			t.Fatalf("crash %d: %d messages in the log, %d entries of %d acked", n, len(got), c.acked, each)
		}
		for i, v := range got {
			if v != fmt.Sprintf("value %d", i) {
				t.Fatalf("crash %d: message %d is %q", n, i, v)
			}
		}
		again.log.Close()
	}
}

// The first failed write or sync ends all acknowledgements, whatever succeeds later.
func TestFailStop(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpWrite, vfs.OpSync} {
		t.Run(op.String(), func(t *testing.T) {
			fault := vfs.NewFault(vfs.NewMem())
			b := start(t, Options{FS: fault, Dir: "buffer"})
			put(t, b, &Entry{Messages: []Message{message(0)}})
			broken := errors.New("input/output error")
			var once atomic.Bool
			fault.SetHook(func(o vfs.Op, path string) error {
				if o == op && filepath.Ext(path) == ".log" && once.CompareAndSwap(false, true) {
					return broken
				}
				return nil
			})
			ticket, err := b.Append(t.Context(), []Message{message(1)})
			if err != nil {
				t.Fatal(err)
			}
			if err := ticket.Wait(t.Context()); !errors.Is(err, ErrFailed) || !errors.Is(err, broken) {
				t.Fatalf("told %v", err)
			}
			<-b.Failed()
			if err := b.Put(&Entry{Messages: []Message{message(2)}}); !errors.Is(err, ErrFailed) {
				t.Fatalf("put after the failure: %v", err)
			}
			if err := b.Room(t.Context(), true); !errors.Is(err, ErrFailed) {
				t.Fatalf("room after the failure: %v", err)
			}
			if err := b.stop(); !errors.Is(err, broken) {
				t.Fatalf("run returned %v", err)
			}
		})
	}
}

func TestStopCommitsWhatIsQueuedAndRefusesTheRest(t *testing.T) {
	fs := vfs.NewMem()
	b := start(t, Options{FS: fs, Dir: "buffer"})
	told := make(chan error, 1000)
	owner := NewOwner(func(tags []Tag, err error) {
		for range tags {
			told <- err
		}
	})
	for i := range 1000 {
		if err := b.Put(&Entry{Messages: []Message{message(i)}, Owner: owner}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if err := <-told; err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Put(&Entry{}); !errors.Is(err, ErrStopped) {
		t.Fatalf("put after the stop: %v", err)
	}
}

func TestFullDiskRefusesAndRecovers(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	fault.SetFree(10 << 20)
	b := start(t, Options{FS: fault, Dir: "buffer", ReserveBytes: 1 << 20})
	put(t, b, &Entry{Messages: []Message{message(0)}})
	fault.SetFree(1000)
	eventually(t, b, func() bool { return b.Full() })
	if err := b.Put(&Entry{Messages: []Message{message(1)}}); !errors.Is(err, ErrFull) {
		t.Fatalf("put on a full disk: %v", err)
	}
	put(t, b, &Entry{Note: []byte{1}}) // what ends exchanges is written still: it is small, and the reserve is there for it
	waited := make(chan error, 1)
	go func() { waited <- b.Room(t.Context(), true) }()
	fault.SetFree(10 << 20)
	eventually(t, b, func() bool { return !b.Full() })
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	put(t, b, &Entry{Messages: []Message{message(1)}})
}

// eventually has the keeper look until the condition holds.
func eventually(t *testing.T, b *running, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
			nudge(b.trim)
		case <-late:
			t.Fatal("it did not come to that")
		}
	}
}

func fill(t *testing.T, b *running, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		m := message(i)
		m.Value = append(m.Value, make([]byte, 1000)...)
		put(t, b, &Entry{Messages: []Message{m}})
	}
}

func TestConfirmedSegmentsGo(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer", SegmentBytes: 8 << 10})
	fill(t, b, 0, 50)
	before := b.Log().Bytes()
	b.Confirm(25)
	eventually(t, b, func() bool { return b.Log().Bytes() < before*2/3 })
	if start := b.Log().Start(); start > 25 || start < 15 {
		t.Fatalf("the log starts at %d after 25 was confirmed", start)
	}
	b.Confirm(10) // never goes back
	if b.Confirmed() != 25 {
		t.Fatalf("confirmed %d", b.Confirmed())
	}
}

func TestFloorKeepsConfirmedSegments(t *testing.T) {
	b, err := Open(Options{FS: vfs.NewMem(), Dir: "buffer", SegmentBytes: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	floor := b.NewFloor(0)
	r := run(t, b)
	fill(t, r, 0, 50)
	r.Confirm(50)
	r.look(t.Context())
	if start := r.Log().Start(); start != 0 {
		t.Fatalf("the log starts at %d, the floor is 0", start)
	}
	floor.Set(40)
	eventually(t, r, func() bool { return r.Log().Start() > 25 })
}

func TestBudgetRefusesUntilConfirmed(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer", BudgetBytes: 64 << 10})
	for i := 0; ; i++ {
		m := message(i)
		m.Value = make([]byte, 1000)
		ticket, err := b.Append(t.Context(), []Message{m})
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := ticket.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i > 10_000 {
			t.Fatal("the budget was never used up")
		}
	}
	b.Confirm(b.Synced())
	eventually(t, b, func() bool { return !b.Full() })
	put(t, b, &Entry{Messages: []Message{message(0)}})
}

// Dropping the oldest leaves a gap record for every device and topic, whose counts are exactly what is missing.
func TestDropOldestTellsWhatIsMissing(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer", BudgetBytes: 64 << 10, WhenFull: DropOldest})
	const total = 300
	for i := range total {
		m := message(i)
		m.Value = append(m.Value, make([]byte, 1000)...)
		for {
			ticket, err := b.Append(t.Context(), []Message{m})
			if errors.Is(err, ErrFull) { // the keeper is about to drop
				if err := b.Room(t.Context(), true); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := ticket.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	eventually(t, b, func() bool { return !b.overBudget() })
	missing, kept, sum := map[string]int64{}, map[string]int64{}, int64(0)
	err := b.scan(b.Log().Start(), b.Synced(), func(_, _ int64, r record.Record) error {
		if len(r.Headers) > 1 && r.Headers[1].Key == HeaderGap {
			var g struct{ Gap Gap }
			if err := json.Unmarshal(r.Value, &g); err != nil {
				return err
			}
			if g.Gap.Cause != "buffer full" || g.Gap.LastOffset < g.Gap.FirstOffset {
				t.Errorf("gap %+v", g.Gap)
			}
			missing[g.Gap.Device] += g.Gap.Count
			return nil
		}
		kept[device(r)]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"c0", "c1", "c2"} {
		sum += missing[c] + kept[c]
		if missing[c] == 0 || kept[c] == 0 {
			t.Errorf("device %s: %d missing, %d kept", c, missing[c], kept[c])
		}
	}
	if sum != total {
		t.Fatalf("%d messages are kept or told missing (%v, %v), want %d", sum, kept, missing, total)
	}
}

func TestOpenRoundsAreNotDropped(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer", SegmentBytes: 8 << 10, BudgetBytes: 1 << 20, WhenFull: DropOldest})
	fill(t, b, 0, 50)
	b.Hold(3)
	if b.dropFirst(t.Context(), "test") || b.Log().Start() != 0 {
		t.Fatal("a segment of an open round was dropped")
	}
	b.Hold(-1)
	if !b.dropFirst(t.Context(), "test") || b.Log().Start() == 0 {
		t.Fatal("nothing was dropped")
	}
}

func TestAgedSegmentsAreDropped(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer", SegmentBytes: 8 << 10, BudgetAge: 365 * 24 * time.Hour})
	fill(t, b, 0, 50) // of the year 1970
	b.dropAged(t.Context(), time.Now())
	if start := b.Log().Start(); start == 0 {
		t.Fatal("nothing was dropped")
	}
}

func TestReadersAreWoken(t *testing.T) {
	b := start(t, Options{FS: vfs.NewMem(), Dir: "buffer"})
	woken := b.Appended()
	before := b.Synced()
	put(t, b, &Entry{Messages: []Message{message(0)}})
	<-woken
	if b.Synced() <= before {
		t.Fatal("woken without anything to read")
	}
}

func TestCrowdedQueueMakesWait(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	hold := make(chan struct{})
	var holding atomic.Bool
	fault.SetHook(func(op vfs.Op, path string) error {
		if op == vfs.OpSync && holding.Load() {
			<-hold
		}
		return nil
	})
	b := start(t, Options{FS: fault, Dir: "buffer", QueueBytes: 4000})
	holding.Store(true)
	for !b.Crowded() {
		if err := b.Put(&Entry{Messages: []Message{message(1)}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := b.Room(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("room in a crowded queue: %v", err)
	}
	close(hold)
	if err := b.Room(t.Context(), false); err != nil {
		t.Fatal(err)
	}
}
