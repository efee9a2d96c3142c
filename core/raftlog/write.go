package raftlog

import (
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// keptBufferBytes is the largest buffer that a log keeps for its next write; there are many logs, and larger writes are those of a flood.
const keptBufferBytes = 1 << 20

// position is where the next record goes.
type position struct {
	segment *segment
	off     int64
	seq     uint64
	prevCRC uint32
}

// group is what one sync makes durable: some records of one file. It becomes visible to readers
// only after the sync.
type group struct {
	s       *Store
	at      position
	durable uint64 // the sequence before this group: all up to it is synced
	opened  bool   // the group is the first of its file
	buf     []byte
	bufOff  int64
	from    int64
	offsets []int64
	state   state
}

// StoreLog stores one entry, see StoreLogs.
func (s *Store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries and returns when they are synced. They must follow the last entry
// without a gap; an empty log accepts any first index. Their data is kept in memory for a while and
// must not be changed any more.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	var space int64
	for _, l := range logs {
		if int64(len(l.Data))+int64(len(l.Extensions)) > MaxEntryBytes {
			return fmt.Errorf("store entry %d of %d bytes: %w", l.Index, len(l.Data), ErrTooLarge)
		}
		space += recordSpace(entryPayloadBytes(l))
	}
	s.write.Lock()
	defer s.write.Unlock()
	g, err := s.begin(space)
	if err != nil {
		return err
	}
	for _, l := range logs {
		if g.state.last != 0 && l.Index != g.state.last+1 {
			return s.abort(fmt.Errorf("store entry %d after %d: entries must have no gap", l.Index, g.state.last))
		}
		if err := g.entry(l); err != nil {
			return s.abort(err)
		}
	}
	return s.end(g, logs)
}

// change writes a new state. The caller holds write.
func (s *Store) change(fn func(*state)) error {
	g, err := s.begin(recordSpace(stateHeaderBytes + maxCandidateBytes))
	if err != nil {
		return err
	}
	fn(&g.state)
	if err := g.putState(); err != nil {
		return s.abort(err)
	}
	return s.end(g, nil)
}

// abort ends a write that failed. Nothing is written any more.
func (s *Store) abort(err error) error {
	s.writeSince.Store(0)
	return s.latch(err)
}

// begin starts a group of records that occupy that much space, in the next file if the active one
// has not got it. The caller holds write.
func (s *Store) begin(space int64) (*group, error) {
	s.mu.Lock()
	err, st := s.usableLocked(), s.mu.state
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.writeSince.Store(int64(max(time.Since(s.born), 1)))
	g := &group{s: s, at: s.write.pos, durable: s.write.pos.seq - 1, buf: s.write.buf[:0], state: st}
	g.bufOff, g.from = g.at.off, g.at.off
	if full := g.at.off+space > g.at.segment.size && g.at.off > fileHeaderBytes; full || s.write.fresh {
		if err := s.rotate(g); err != nil {
			return nil, s.abort(err)
		}
	}
	return g, nil
}

// rotate lets the group begin a new file. The file counts from the moment its header is synced,
// which happens together with the group: until then recovery takes it for an unused one.
func (s *Store) rotate(g *group) error {
	next, err := s.takeSpare()
	if err != nil {
		return err
	}
	h := fileHeader{life: next.life, prevLife: g.at.segment.life, firstSeq: g.at.seq, prevCRC: g.at.prevCRC, size: next.made}
	g.at.segment, g.at.off = next, fileHeaderBytes
	g.opened, g.bufOff, g.from = true, 0, 0
	g.buf = append(g.buf[:0], h.encode()...)
	return g.putState()
}

// takeSpare returns the prepared file, or makes one that is not filled: its first writes are slower,
// but they do not wait for the filling.
func (s *Store) takeSpare() (*segment, error) {
	s.mu.Lock()
	spare := s.mu.spare
	s.mu.spare = nil
	size := s.nextSizeLocked()
	var life uint64
	if spare != nil {
		life = spare.life
	} else {
		life = s.newLifeLocked()
	}
	s.mu.newest = life // from here on no spare may have a lower one
	s.mu.Unlock()
	if spare != nil {
		return spare, nil
	}
	return s.createFile(life, size, false)
}

func (g *group) entry(l *raft.Log) error {
	var head [entryHeaderBytes]byte
	putEntryHeader(head[:], l)
	g.offsets = append(g.offsets, g.at.off)
	if g.state.last == 0 {
		g.state.first = l.Index
		g.state.firstLife = g.at.segment.life
	}
	g.state.last = l.Index
	return g.record(kindEntry, byte(l.Type), head[:], l.Extensions, l.Data)
}

func (g *group) putState() error {
	if g.state.last == 0 {
		g.state.firstLife = g.at.segment.life
	}
	return g.record(kindState, 0, g.state.encode())
}

// record gathers one record and writes when enough has been gathered.
func (g *group) record(kind, raftType byte, parts ...[]byte) error {
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	h := recordHeader{
		prevCRC: g.at.prevCRC, length: uint32(length), kind: kind, raftType: raftType,
		life: g.at.segment.life, seq: g.at.seq, durable: g.durable,
	}
	start := len(g.buf)
	g.buf = append(g.buf, make([]byte, recordHeaderBytes)...)
	h.put(g.buf[start:])
	crc := crc32.Checksum(g.buf[start+4:], castagnoli)
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli, p)
	}
	putUint32(g.buf[start:], crc)
	for _, p := range parts {
		if err := g.bytes(p); err != nil {
			return err
		}
	}
	space := recordSpace(int64(length))
	for pad := space - recordHeaderBytes - int64(length); pad > 0; pad-- {
		g.buf = append(g.buf, 0)
	}
	g.at.off += space
	g.at.seq++
	g.at.prevCRC = crc
	if len(g.buf) >= stagingBytes {
		return g.flush()
	}
	return nil
}

// bytes gathers a part, or writes it from where it is when it is large.
func (g *group) bytes(p []byte) error {
	if len(p) < stagingBytes {
		g.buf = append(g.buf, p...)
		return nil
	}
	if err := g.flush(); err != nil {
		return err
	}
	if _, err := g.at.segment.file.WriteAt(p, g.bufOff); err != nil {
		return fmt.Errorf("write raft log: %w", err)
	}
	g.bufOff += int64(len(p))
	return nil
}

func (g *group) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	if _, err := g.at.segment.file.WriteAt(g.buf, g.bufOff); err != nil {
		return fmt.Errorf("write raft log: %w", err)
	}
	g.bufOff += int64(len(g.buf))
	g.buf = g.buf[:0]
	return nil
}

// end syncs the group and shows it to readers.
func (s *Store) end(g *group, logs []*raft.Log) error {
	err := g.flush()
	if err == nil {
		if err = g.at.segment.file.Sync(); err != nil {
			err = fmt.Errorf("sync raft log: %w", err)
		}
	}
	took := time.Since(s.born) - time.Duration(s.writeSince.Load())
	s.writeSince.Store(0)
	if err != nil {
		return s.latch(err)
	}
	s.write.pos = g.at
	if cap(g.buf) <= keptBufferBytes {
		s.write.buf = g.buf
	} else {
		s.write.buf = nil
	}
	s.write.fresh = s.write.fresh && !g.opened
	s.publish(g, logs)
	if g.opened {
		for _, unused := range s.forget() {
			s.dispose(unused)
		}
	}
	s.o.Observe(took, g.at.off-g.from)
	return nil
}

func (s *Store) publish(g *group, logs []*raft.Log) {
	seg := g.at.segment
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.opened {
		s.mu.segments = append(s.mu.segments, seg)
	}
	for i, l := range logs {
		seg.add(l.Index, g.offsets[i])
		s.mu.cache.add(l)
	}
	seg.end = g.at.off
	s.mu.state = g.state
	if s.mu.spare == nil && seg.end > seg.size/2 {
		s.wake()
	}
}

// wake asks Run for a spare file.
func (s *Store) wake() {
	select {
	case s.want <- struct{}{}:
	default:
	}
}
