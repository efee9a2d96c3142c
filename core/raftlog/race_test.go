package raftlog

import (
	"testing"

	"sluice/core/vfs"
)

// TestSpareThatComesWhileTheNextFileIsWritten: a write finds no spare and makes a file of its own, whose life is above that of the spare in the
// making. The spare is finished while that write is still on its way to the disk. It must not become a file whose life is below its
// predecessor's: a start took the file with the highest life for the newest, and the entries behind it were gone.
func TestSpareThatComesWhileTheNextFileIsWritten(t *testing.T) {
	for name, forget := range map[string]bool{"now": false, "as earlier builds left it": true} {
		t.Run(name, func(t *testing.T) { spareThatComesLate(t, forget) })
	}
}

// spareThatComesLate makes the spare's life the lower one when the log is made to forget which file is the newest.
func spareThatComesLate(t *testing.T, forget bool) {
	disk := vfs.NewMem()
	fault := vfs.NewFault(disk)
	s := mustOpen(t, fault, small)
	m := newModel()
	store := func(size int) {
		t.Helper()
		logs := entries(m.last+1, 1, size)
		must(t, s.StoreLogs(logs))
		m.store(logs)
	}
	store(1000)
	begun, release, prepared := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	spare, own := s.path(2), s.path(3)
	fault.SetHook(func(op vfs.Op, name string) error {
		if op == vfs.OpCreate && name == spare {
			close(begun)
			<-release
		}
		if op == vfs.OpSync && name == own {
			if forget {
				s.mu.Lock()
				s.mu.newest = 0
				s.mu.Unlock()
			}
			close(release)
			return <-prepared
		}
		return nil
	})
	go func() { prepared <- s.prepare() }()
	<-begun
	store(1500)
	fault.SetHook(nil)
	store(3000)
	store(5000)
	for hi := uint64(0); hi < 4; hi++ { // with the head of the log dropped, too
		if hi > 0 {
			must(t, s.DeleteRange(hi, hi))
			m.deleteRange(hi, hi)
		}
		if hi == 2 {
			store(8000)
		}
		must(t, s.Close())
		s = mustOpen(t, disk, small)
		if d := m.diff(s); d != "" {
			t.Fatal(d)
		}
	}
}
