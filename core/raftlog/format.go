package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// The layout is described in FORMAT.md beside this file. All integers are little endian.
//
//	file    0 magic "SLRAFTLG" | 8 version u32 | 12 zero u32 | 16 life u64 | 24 previous life u64
//	       32 first sequence u64 | 40 previous CRC u32 | 44 zero[16] | 60 CRC32C of 0..60
//	record  0 CRC32C of 4..40+length | 4 previous CRC u32 | 8 length u32 | 12 kind u8
//	       13 raft type u8 | 14 zero u16 | 16 life u64 | 24 sequence u64 | 32 durable u64
//	       40 payload, padded with zeros to a multiple of 8
//	entry   0 index u64 | 8 term u64 | 16 appended at i64 | 24 extensions length u32 | 28 zero u32
//	       32 extensions, data
//	state   0 term u64 | 8 vote term u64 | 16 first u64 | 24 last u64 | 32 first life u64
//	       40 opens u64 | 48 candidate
const (
	fileMagic         = "SLRAFTLG"
	formatVersion     = 1
	fileHeaderBytes   = 64
	recordHeaderBytes = 40
	entryHeaderBytes  = 32
	stateHeaderBytes  = 48
	recordAlignment   = 8

	kindEntry = 1
	kindState = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errBadRecord is returned when bytes are not a record of the file that holds them.
var errBadRecord = errors.New("not a record of this file")

type fileHeader struct {
	life, prevLife, firstSeq uint64
	prevCRC                  uint32
	size                     int64 // that the file certainly had, durably, when it was begun; 0: not known
}

func (h fileHeader) encode() []byte {
	b := make([]byte, fileHeaderBytes)
	copy(b, fileMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint64(b[16:], h.life)
	binary.LittleEndian.PutUint64(b[24:], h.prevLife)
	binary.LittleEndian.PutUint64(b[32:], h.firstSeq)
	binary.LittleEndian.PutUint32(b[40:], h.prevCRC)
	binary.LittleEndian.PutUint64(b[44:], uint64(h.size))
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// decodeFileHeader returns false for anything that is not a whole header. A header of a newer
// version is an error: its file must not be taken for an unused one.
func decodeFileHeader(b []byte) (h fileHeader, ok bool, err error) {
	if len(b) < fileHeaderBytes || string(b[:8]) != fileMagic ||
		binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return h, false, nil
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return h, false, fmt.Errorf("raft log has format version %d, this release reads %d", v, formatVersion)
	}
	h.life = binary.LittleEndian.Uint64(b[16:])
	h.prevLife = binary.LittleEndian.Uint64(b[24:])
	h.firstSeq = binary.LittleEndian.Uint64(b[32:])
	h.prevCRC = binary.LittleEndian.Uint32(b[40:])
	h.size = int64(binary.LittleEndian.Uint64(b[44:]))
	return h, true, nil
}

type recordHeader struct {
	crc, prevCRC       uint32
	length             uint32
	kind, raftType     byte
	life, seq, durable uint64
}

// put writes the header without its CRC.
func (h recordHeader) put(b []byte) {
	clear(b[:recordHeaderBytes])
	binary.LittleEndian.PutUint32(b[4:], h.prevCRC)
	binary.LittleEndian.PutUint32(b[8:], h.length)
	b[12], b[13] = h.kind, h.raftType
	binary.LittleEndian.PutUint64(b[16:], h.life)
	binary.LittleEndian.PutUint64(b[24:], h.seq)
	binary.LittleEndian.PutUint64(b[32:], h.durable)
}

func decodeRecordHeader(b []byte) recordHeader {
	return recordHeader{
		crc:      binary.LittleEndian.Uint32(b),
		prevCRC:  binary.LittleEndian.Uint32(b[4:]),
		length:   binary.LittleEndian.Uint32(b[8:]),
		kind:     b[12],
		raftType: b[13],
		life:     binary.LittleEndian.Uint64(b[16:]),
		seq:      binary.LittleEndian.Uint64(b[24:]),
		durable:  binary.LittleEndian.Uint64(b[32:]),
	}
}

// plausible tells whether a record with this header can lie at off in a file of the given life and
// size. It keeps hostile lengths from being read.
func (h recordHeader) plausible(life uint64, off, size int64) bool {
	return h.life == life && (h.kind == kindEntry || h.kind == kindState) &&
		int64(h.length) <= maxPayloadBytes && off+recordHeaderBytes+int64(h.length) <= size
}

// parseRecord checks the record at the start of b, which may be longer, and returns its payload.
func parseRecord(b []byte, life uint64) (recordHeader, []byte, error) {
	if len(b) < recordHeaderBytes {
		return recordHeader{}, nil, errBadRecord
	}
	h := decodeRecordHeader(b)
	if !h.plausible(life, 0, int64(len(b))) {
		return h, nil, errBadRecord
	}
	end := recordHeaderBytes + int(h.length)
	if crc32.Checksum(b[4:end], castagnoli) != h.crc {
		return h, nil, errBadRecord
	}
	return h, b[recordHeaderBytes:end:end], nil
}

// recordSpace is what a record with that payload occupies.
func recordSpace(payload int64) int64 {
	return (recordHeaderBytes + payload + recordAlignment - 1) &^ (recordAlignment - 1)
}

func entryPayloadBytes(l *raft.Log) int64 {
	return entryHeaderBytes + int64(len(l.Extensions)) + int64(len(l.Data))
}

func putEntryHeader(b []byte, l *raft.Log) {
	clear(b[:entryHeaderBytes])
	binary.LittleEndian.PutUint64(b, l.Index)
	binary.LittleEndian.PutUint64(b[8:], l.Term)
	if !l.AppendedAt.IsZero() {
		binary.LittleEndian.PutUint64(b[16:], uint64(l.AppendedAt.UnixNano()))
	}
	binary.LittleEndian.PutUint32(b[24:], uint32(len(l.Extensions)))
}

// decodeEntry fills l; Data and Extensions alias p.
func decodeEntry(p []byte, raftType byte, l *raft.Log) error {
	if len(p) < entryHeaderBytes {
		return errBadRecord
	}
	ext := int64(binary.LittleEndian.Uint32(p[24:]))
	body := p[entryHeaderBytes:]
	if ext > int64(len(body)) {
		return errBadRecord
	}
	*l = raft.Log{
		Index: binary.LittleEndian.Uint64(p),
		Term:  binary.LittleEndian.Uint64(p[8:]),
		Type:  raft.LogType(raftType),
		Data:  body[ext:],
	}
	if ext > 0 {
		l.Extensions = body[:ext:ext]
	}
	if at := int64(binary.LittleEndian.Uint64(p[16:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	return nil
}

// state is everything about a log that is not an entry. Each change of it is written whole, so that
// the newest record of this kind in any file says all.
type state struct {
	term, voteTerm uint64
	candidate      []byte
	first, last    uint64 // 0, 0: the log is empty
	firstLife      uint64 // the oldest file that is still needed
	opens          uint64 // how often the log was opened; makes a record after a start unlike any before
}

func (s state) encode() []byte {
	b := make([]byte, stateHeaderBytes, stateHeaderBytes+len(s.candidate))
	for i, v := range []uint64{s.term, s.voteTerm, s.first, s.last, s.firstLife, s.opens} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	return append(b, s.candidate...)
}

func decodeState(p []byte) (state, error) {
	if len(p) < stateHeaderBytes {
		return state{}, errBadRecord
	}
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(p[8*i:]) }
	s := state{term: u(0), voteTerm: u(1), first: u(2), last: u(3), firstLife: u(4), opens: u(5)}
	if len(p) > stateHeaderBytes {
		s.candidate = append([]byte(nil), p[stateHeaderBytes:]...)
	}
	if (s.first == 0) != (s.last == 0) || s.first > s.last {
		return s, errBadRecord
	}
	return s, nil
}
