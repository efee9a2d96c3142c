package vfs

import (
	"crypto/rand"
)

// Boot names the time since the machine's memory was last empty: as long as it is the same, nothing that was written can have
// been lost, whatever the disk has done with it, for the system has it still. It is "" where that is not known.
func Boot(fsys FS) string {
	if b, ok := fsys.(interface{ boot() string }); ok {
		return b.boot()
	}
	return ""
}

func (osFS) boot() string { return systemBoot() }

func (f *Fault) boot() string { return Boot(f.inner) }

// boot is the process's own: with it goes what was not synced.
func (v *Volatile) boot() string { return v.life }

// boot is another in a clone: what a crash has taken is missing there.
func (m *Mem) boot() string { return m.life }

func newLife() string { return rand.Text() }
