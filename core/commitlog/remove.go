package commitlog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Remove closes the log and deletes its directory. Chunks stay readable until
// they are released.
func (l *Log) Remove() error {
	if err := l.Close(); err != nil {
		return err
	}
	if err := l.fs.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return l.fs.SyncDir(filepath.Dir(l.dir))
}

// removeFile removes a file that may be gone already.
func (l *Log) removeFile(base int64, suffix string) error {
	err := l.fs.Remove(l.path(base, suffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
