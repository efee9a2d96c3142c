package commitlog

import (
	"errors"
	"fmt"
	"path/filepath"

	"sluice/core/vfs"
)

// IndexPart indexes the beginning of a segment that is being copied into dir, so that opening the log there, as what a
// manifest says, need not read the segment from its start. The file has another name until it is whole; its first
// bytes are batches, the last of them whole too. What was indexed before is not read again. An index is only a help:
// after an error there is none, and nothing is wrong with the file.
func IndexPart(fsys vfs.FS, dir, name string, base, bytes int64, c Config) error {
	l := newLog(fsys, dir, c)
	s := l.newSegment(base)
	s.data = l.files.handle(fsys, filepath.Join(dir, name))
	s.bytes, s.next = bytes, base
	l.mu.segments = append(l.mu.segments, s)
	err := l.prepareLast(s)
	if err == nil && s.index.off {
		err = errIndex
	}
	l.flush(s.index)
	s.data.drop()
	s.index.h.drop()
	if err != nil {
		return fmt.Errorf("index copy of segment %d: %w", base, errors.Join(err, DropIndex(fsys, dir, base)))
	}
	return nil
}

// DropIndex removes the index of a segment that is copied anew.
func DropIndex(fsys vfs.FS, dir string, base int64) error {
	return newLog(fsys, dir, Config{}).removeFile(base, indexSuffix)
}
