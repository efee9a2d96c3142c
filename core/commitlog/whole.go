package commitlog

import (
	"fmt"
	"sync"
	"sync/atomic"

	"sluice/core/vfs"
)

// whole makes all logs of a file system durable together. Calls that wait for one that runs share the next.
type whole struct {
	vfs.Whole
	begun  atomic.Int64 // syncs so far
	asking atomic.Int64 // callers of sync at this moment
	mu     struct {
		sync.Mutex
		done int64 // the last one that succeeded
		err  error // the first failure stays: what was lost then is lost
	}
}

// UseWhole has the logs of f closed without syncing them first, and made durable by w, which belongs to the caller and
// was opened before the first of them was written to. It is called before f is used. It is for logs whose unsynced
// bytes are somebody else's to keep (a Raft log), and where more of them are written to than may be open: syncing a
// file takes a hundred times longer than writing to it.
func (f *Files) UseWhole(w vfs.Whole) { f.whole.Store(&whole{Whole: w}) }

// WholeFailed returns the error of the first sync of the file system that failed, after which none is tried again: whose
// data was lost is not known, so that all logs of f have to be closed. Then UseWhole may be called with another one.
func (f *Files) WholeFailed() error {
	w := f.whole.Load()
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.err
}

// sync makes everything durable that was written before the call.
func (w *whole) sync() error {
	before := w.begun.Load()
	w.asking.Add(1)
	defer w.asking.Add(-1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.err != nil || w.mu.done > before {
		return w.mu.err // one that began after the call has covered it
	}
	n := w.begun.Add(1)
	if err := w.Whole.Sync(); err != nil {
		w.mu.err = err
		return err
	}
	w.mu.done = n
	return nil
}

// SyncsTogether tells whether SyncTogether can be used.
func (f *Files) SyncsTogether() bool { return f.whole.Load() != nil }

// SyncTogether is Sync for many logs at the price of a few. All belong to f, for which UseWhole was called. A log that
// has been closed, or has stopped before, does not hinder the others: skipped is called with it and the reason. The
// error is that of the sync; all logs have stopped then.
func (f *Files) SyncTogether(logs []*Log, skipped func(l *Log, err error)) error {
	type captured struct {
		log        *Log
		dirty      []dirtySegment
		end, names int64
	}
	all := make([]captured, 0, len(logs))
	for _, l := range logs {
		if err := l.usable(); err != nil {
			skipped(l, err)
			continue
		}
		c := captured{log: l}
		c.dirty, c.end, c.names = l.captureAll()
		all = append(all, c)
	}
	if err := f.whole.Load().sync(); err != nil {
		err = fmt.Errorf("sync file system: %w", err)
		for _, c := range all {
			_ = c.log.fail(err)
		}
		return err
	}
	for _, c := range all {
		if err := c.log.settle(c.dirty, c.end, c.names); err != nil {
			skipped(c.log, err)
		}
	}
	return nil
}

// captureAll is captureDirty for a caller that does not keep the log's lock for syncing until the end.
func (l *Log) captureAll() (dirty []dirtySegment, end, names int64) {
	l.sync.Lock()
	defer l.sync.Unlock()
	end, names = l.captureDirty()
	dirty = append([]dirtySegment(nil), l.dirty...)
	clear(l.dirty)
	for _, d := range dirty {
		if _, err := d.s.data.syncing(); err != nil { // it failed while it was open
			_ = l.fail(fmt.Errorf("sync segment: %w", err))
		}
	}
	return dirty, end, names
}

// settle is the second half of Sync: what was captured is durable now.
func (l *Log) settle(dirty []dirtySegment, end, names int64) error {
	l.sync.Lock()
	defer l.sync.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	l.markSynced(dirty)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.named = max(l.mu.named, names)
	l.settleLocked(dirty, end)
	return nil
}
