package partition

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"sluice/core/vfs"
)

// crashed is a disk as a power cut left it, with the checkpoint that was durable.
type crashed struct {
	what       string
	fs         *vfs.Mem
	manifest   []byte
	manifestAt int
}

// TestPowerCutAtEveryChange cuts the power before every call that changes the
// disk, with what was not synced lost, or kept in part, and starts again.
func TestPowerCutAtEveryChange(t *testing.T) {
	t.Run("each", func(t *testing.T) { powerCutAtEveryChange(t, nil) })
	t.Run("together", func(t *testing.T) { powerCutAtEveryChange(t, together) })
}

func powerCutAtEveryChange(t *testing.T, options func(*Options)) {
	s := newScenario()
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	r := &replica{tb: t, fs: fault, root: "/data", options: options}
	r.open()
	crashes := watch(fault, mem, r)
	var answers []string
	if err := s.play(t, r, &answers); err != nil {
		t.Fatal(err)
	}
	fault.SetHook(nil)
	want := r.outcome()
	if err := r.set.Close(); err != nil {
		t.Fatal(err)
	}
	if len(*crashes) < 100 {
		t.Fatalf("only %d crashes", len(*crashes))
	}
	for _, c := range *crashes {
		recover := &replica{tb: t, fs: c.fs, root: "/data", manifest: c.manifest, manifestAt: c.manifestAt, options: options}
		recover.open()
		if !recover.set.Complete() {
			t.Fatalf("%s: incomplete: %+v", c.what, recover.set.Status())
		}
		recover.apply(s.log, len(s.log))
		want.compare(t, c.what, recover)
		recover.checkpoint()
		checkDirs(t, recover)
		if err := recover.set.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// watch collects crashes from now on.
func watch(fault *vfs.Fault, mem *vfs.Mem, r *replica) *[]crashed {
	var (
		mu      sync.Mutex
		crashes []crashed
		rnd     = rand.New(rand.NewPCG(1, 2))
	)
	fault.SetHook(func(op vfs.Op, path string) error {
		if !op.Changes() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		what := fmt.Sprintf("crash %d before %s of %s", len(crashes), op, path)
		crashes = append(crashes,
			crashed{what + ", nothing kept", mem.CrashClone(nil), r.manifest, r.manifestAt},
			crashed{what + ", some kept", mem.CrashClone(func() bool { return rnd.IntN(2) == 0 }), r.manifest, r.manifestAt},
			crashed{what + ", all kept", mem.CrashClone(func() bool { return true }), r.manifest, r.manifestAt})
		return nil
	})
	return &crashes
}

var errInjected = errors.New("injected failure")

// TestEveryCallFails lets one call after the other fail. The set either goes on
// unharmed or stops; what it answered before stays true, and a start from what
// is on the disk comes to the same end.
func TestEveryCallFails(t *testing.T) {
	t.Run("each", func(t *testing.T) { everyCallFails(t, nil) })
	t.Run("together", func(t *testing.T) { everyCallFails(t, together) })
}

func everyCallFails(t *testing.T, options func(*Options)) {
	s := newScenario()
	var answers []string
	clean := newReplica(t, vfs.NewMem(), "/data")
	if err := s.play(t, clean, &answers); err != nil {
		t.Fatal(err)
	}
	want := clean.outcome()
	if err := clean.set.Close(); err != nil {
		t.Fatal(err)
	}
	stops := 0
	for n := 1; ; n++ {
		fired, stopped := failAt(t, s, n, answers, want, options)
		if stopped {
			stops++
		}
		if !fired {
			t.Logf("%d calls failed, %d stopped the set", n-1, stops)
			break
		}
	}
	if stops < 50 {
		t.Errorf("only %d failures stopped the set", stops)
	}
}

// failCall lets the n-th call of a file system fail. The function returned says which that was; it says nothing while none has failed.
func failCall(fault *vfs.Fault, n int) (what func() string) {
	var mu sync.Mutex
	calls, failed := 0, ""
	fault.SetHook(func(op vfs.Op, path string) error {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls != n {
			return nil
		}
		failed = fmt.Sprintf("call %d, %s of %s, failed", n, op, path)
		return errInjected
	})
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return failed
	}
}

// failAt plays the scenario with the n-th call failing.
func failAt(t *testing.T, s *scenario, n int, answers []string, want outcome, options func(*Options)) (fired, stopped bool) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	what := failCall(fault, n)
	r := &replica{tb: t, fs: fault, root: "/data", options: options}
	err := r.tryOpen()
	if err == nil {
		err = s.play(t, r, &answers)
		stopped = r.set.Err() != nil
		fault.SetHook(nil)
		if err == nil && r.applied == len(s.log) {
			want.compare(t, what(), r)
		}
		_ = r.set.Close()
	}
	if err != nil && !errors.Is(err, errInjected) {
		t.Fatalf("%s: %v", what(), err)
	}
	again := &replica{tb: t, fs: mem.CrashClone(nil), root: "/data", manifest: r.manifest, manifestAt: r.manifestAt}
	again.open()
	again.apply(s.log, len(s.log))
	want.compare(t, what()+", then a power cut", again)
	if err := again.set.Close(); err != nil {
		t.Fatal(err)
	}
	return what() != "", stopped
}

// TestStopIsFinal: after a failed write nothing is answered with success, also
// when the disk is well again.
func TestStopIsFinal(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	r := newReplica(t, fault, "/data")
	s := newScenario()
	r.apply(s.log, 4)
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpWrite {
			return errInjected
		}
		return nil
	})
	for _, result := range r.apply(s.log, 6) {
		if describe(result) != ErrStopped.Error() {
			t.Errorf("answered %v", result)
		}
	}
	fault.SetHook(nil)
	for _, result := range r.apply(s.log, 8) {
		if describe(result) != ErrStopped.Error() {
			t.Errorf("answered %v after the disk came back", result)
		}
	}
	if !errors.Is(r.set.Err(), errInjected) {
		t.Errorf("Err: %v", r.set.Err())
	}
	if _, err := r.set.Capture(); !errors.Is(err, ErrStopped) {
		t.Errorf("captured a stopped set: %v", err)
	}
	if err := r.set.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailedSyncStops: a checkpoint whose sync fails stops the set, and the next
// one does not pretend.
func TestFailedSyncStops(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	r := newReplica(t, fault, "/data")
	s := newScenario()
	r.apply(s.log, 6)
	fault.SetHook(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			return errInjected
		}
		return nil
	})
	if err := r.tryCheckpoint(); !errors.Is(err, errInjected) {
		t.Errorf("checkpoint: %v", err)
	}
	fault.SetHook(nil)
	if err := r.tryCheckpoint(); !errors.Is(err, ErrStopped) {
		t.Errorf("checkpoint after a failed sync: %v", err)
	}
	if r.manifest != nil {
		t.Error("a checkpoint counts though its data was not synced")
	}
	_ = r.set.Close()
}
