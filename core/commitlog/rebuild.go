package commitlog

import (
	"io"

	"sluice/core/record"
	"sluice/core/vfs"
)

// ensure makes the index of a segment that is no longer appended to usable:
// it loads the file, and where that is absent or wrong makes it anew.
func (l *Log) ensure(s *segment) {
	l.mu.Lock()
	ready := s.index.ready || s.index.off || s.dropped // what has taken its place may have the same name
	t := s.tally
	l.mu.Unlock()
	if ready {
		return
	}
	s.index.io.Lock()
	defer s.index.io.Unlock()
	l.mu.Lock()
	ready = s.index.ready || s.index.off || s.dropped // somebody else did it
	wrong := s.index.wrong
	if wrong {
		s.index.wrong = false
		s.index.rebuilds++
	}
	l.mu.Unlock()
	if ready {
		return
	}
	if mark, ok := s.index.mark(t.bytes); ok && mark.bytes == t.bytes && !wrong {
		if found, err := s.index.load(t.bytes); err == nil {
			l.setIndex(s.index, found, nil)
			return
		}
	}
	found, err := l.rebuild(s, t)
	l.setIndex(s.index, found, err)
}

func (l *Log) setIndex(x *index, found loaded, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		x.giveUpLocked()
		return
	}
	x.ready, x.exists, x.count, x.last = true, found.exists, found.count, found.last
}

// rebuild writes the index of the segment's first t.bytes bytes from the
// headers of its batches, with a mark at the end: t must be durable. In place,
// since every part of an index proves itself. The caller holds index.io or has
// the log to itself.
func (l *Log) rebuild(s *segment, t tally) (loaded, error) {
	data, err := s.data.acquire()
	if err != nil {
		return loaded{}, err
	}
	defer s.data.release()
	file, err := s.index.create(false)
	if err != nil {
		return loaded{}, err
	}
	defer s.index.h.release()
	if err := file.Truncate(0); err != nil { // create leaves a file that was open as it is
		return loaded{}, err
	}
	if _, err := file.WriteAt(s.index.appendHeader(nil), 0); err != nil {
		return loaded{}, err
	}
	return l.rebuildFrom(s.index, file, data, t)
}

func (l *Log) rebuildFrom(x *index, file, data vfs.File, t tally) (loaded, error) {
	buf := l.files.buffer()
	defer l.files.putBuffer(buf)
	w := indexWriter{x: x, file: file, found: loaded{exists: true}, buf: (*buf)[:0]}
	defer func() { *buf = w.buf }()
	scan := scanner{file: data, limit: t.bytes}
	walked := newTally(x.base)
	interval := l.config().IndexIntervalBytes
	for {
		head, size, err := scan.header()
		if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
			break
		}
		if err != nil {
			return loaded{}, err
		}
		if err := w.note(&walked, head.BaseOffset(), interval); err != nil {
			return loaded{}, err
		}
		walked.add(head, size)
		scan.skip(size)
	}
	if err := w.flush(); err != nil {
		return loaded{}, err
	}
	_, err := file.WriteAt(x.appendMark(nil, t), markAt)
	return w.found, err
}

// indexWriter writes entries in blocks.
type indexWriter struct {
	x     *index
	file  vfs.File
	found loaded
	buf   []byte
}

func (w *indexWriter) note(t *tally, offset, interval int64) error {
	if t.bytes-w.found.last < interval {
		return nil
	}
	w.buf = w.x.appendEntry(w.buf, entry{offset: offset, position: t.bytes, maxTs: t.maxTs})
	w.found.last = t.bytes
	if len(w.buf) < indexBlock*entrySize {
		return nil
	}
	return w.flush()
}

func (w *indexWriter) flush() error {
	_, err := w.file.WriteAt(w.buf, indexHeaderBytes+w.found.count*entrySize)
	w.found.count += int64(len(w.buf) / entrySize)
	w.buf = w.buf[:0]
	return err
}

// catchUp adds the entries between the last one and the end of the segment,
// for a segment that will be appended to. The caller has the log to itself or
// holds Log.write.
func (l *Log) catchUp(s *segment) error {
	l.mu.Lock()
	from, t := s.index.last, s.tally
	interval := l.mu.c.IndexIntervalBytes
	maxTs := int64(record.NoTimestamp)
	l.mu.Unlock()
	if t.bytes-from < interval {
		return nil
	}
	if from > 0 {
		e, err := l.search(s.index, func(entry) bool { return true })
		if err != nil {
			return err
		}
		maxTs = e.maxTs
	}
	data, err := s.data.acquire()
	if err != nil {
		return err
	}
	defer s.data.release()
	scan := scanner{file: data, pos: from, limit: t.bytes}
	walked := tally{bytes: from, maxTs: maxTs, next: s.base}
	for {
		head, size, err := scan.header()
		if err == io.EOF { //nolint:errorlint // header returns it bare at the limit
			l.flush(s.index)
			return nil
		}
		if err != nil {
			return err
		}
		l.mu.Lock()
		s.index.noteLocked(&walked, head.BaseOffset(), interval)
		full := len(s.index.pending) >= indexPendingMax
		l.mu.Unlock()
		if full {
			l.flush(s.index)
		}
		walked.add(head, size)
		scan.skip(size)
	}
}
