package vfs

import "io/fs"

// memWhole is the Whole of a Mem.
type memWhole struct{ m *Mem }

func (m *Mem) openWhole(string) (Whole, error) { return memWhole{m}, nil }

// Sync makes every change so far durable.
func (w memWhole) Sync() error {
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for node := range m.mu.dirty {
		m.syncLocked(node)
	}
	for _, op := range m.mu.dirOps { // in the order in which they were made
		op.settle()
	}
	clear(m.mu.dirOps)
	m.mu.dirOps = m.mu.dirOps[:0]
	return nil
}

func (memWhole) Close() error { return nil }

// mkdir is found by Mkdir.
func (m *Mem) mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, base, err := m.parentLocked("mkdir", name)
	if err != nil {
		return err
	}
	if there := parent.entries[base]; there != nil {
		if !there.dir {
			return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
		}
		return nil
	}
	m.dirOpLocked(memDirOp{setIn: parent, set: base, node: newMemDir()})
	return nil
}
