package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"sluice/core/vfs"
)

// windowBytes is how much of a file recovery reads at a time.
const windowBytes = 1 << 20

// window reads a file in pieces.
type window struct {
	file vfs.File
	size int64
	off  int64
	buf  []byte
}

// at returns n bytes from off, or fewer at the end of the file. They are valid until the next call.
func (w *window) at(off, n int64) ([]byte, error) {
	if off >= w.size || off < 0 {
		return nil, nil
	}
	n = min(n, w.size-off)
	if off < w.off || off+n > w.off+int64(len(w.buf)) {
		want := min(max(n, windowBytes), w.size-off)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		if got, err := w.file.ReadAt(w.buf, off); int64(got) < want && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read raft log: %w", err)
		} else if int64(got) < want {
			w.buf = w.buf[:got]
		}
		w.off = off
	}
	return w.buf[off-w.off : min(off-w.off+n, int64(len(w.buf)))], nil
}

// record returns the record at off, or errBadRecord.
func (w *window) record(off int64, life uint64) (recordHeader, []byte, error) {
	b, err := w.at(off, recordHeaderBytes)
	if err != nil {
		return recordHeader{}, nil, err
	}
	if len(b) < recordHeaderBytes {
		return recordHeader{}, nil, errBadRecord
	}
	h := decodeRecordHeader(b)
	if !h.plausible(life, off, w.size) {
		return h, nil, errBadRecord
	}
	if b, err = w.at(off, recordHeaderBytes+int64(h.length)); err != nil {
		return h, nil, err
	}
	return parseRecord(b, life)
}

// syncedAfter looks behind a bad record for one that was written after the record with sequence seq
// had been synced. If there is one, the bad record is damage and not a torn tail.
func (w *window) syncedAfter(off int64, life, seq uint64) (bool, error) {
	for ; off+recordHeaderBytes <= w.size; off += recordAlignment {
		b, err := w.at(off, recordHeaderBytes)
		if err != nil {
			return false, err
		}
		if len(b) < recordHeaderBytes || binary.LittleEndian.Uint64(b[16:]) != life {
			continue
		}
		h := decodeRecordHeader(b)
		if h.durable < seq || h.seq <= seq || !h.plausible(life, off, w.size) {
			continue
		}
		whole, err := w.at(off, recordHeaderBytes+int64(h.length))
		if err != nil {
			return false, err
		}
		if len(whole) > 4 && crc32.Checksum(whole[4:], castagnoli) == h.crc {
			return true, nil
		}
	}
	return false, nil
}
