package mqtt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"sluice/edge/ingest"
)

// journalKind is the kind of our notes in the journal (ingest.Journal).
const journalKind = 'm'

// Operations of a note. A note is: operation, length of the client id (uvarint), client id, then what the operation says.
//
//	'1'  id (uint16), hash (uint64): a QoS 1 message is in this batch
//	'2'  id (uint16): a QoS 2 message is in this batch, its id is taken
//	'r'  id (uint16): the id is free again
//	'x'  the client's session ended: it has no ids
//	't'  the whole table: count (uvarint) of QoS 2 ids, the ids, then id and hash of the QoS 1 messages, oldest first
const (
	opQoS1    = '1'
	opQoS2    = '2'
	opRelease = 'r'
	opEnd     = 'x'
	opTable   = 't'
)

// inbound is what a session remembers of messages that came in. The journal has all of it that is durable.
type inbound struct {
	sync.Mutex
	taken map[uint16]struct{} // QoS 2 ids between PUBLISH and PUBREL
	last  recent
}

// recent are the last QoS 1 messages of a session, at most Receive Maximum of them: an older one cannot be unacknowledged.
type recent struct {
	ring []receipt
	next int
}

type receipt struct {
	id   uint16
	hash uint64
}

// find returns whether hash is that of the newest message with the id.
func (r *recent) find(id uint16, hash uint64) bool {
	for i := range r.ring {
		at := (r.next - 1 - i + 2*len(r.ring)) % len(r.ring)
		if r.ring[at].id == id {
			return r.ring[at].hash == hash
		}
	}
	return false
}

// add forgets the oldest message when there are most of them. While the ring grows next is 0, the oldest.
func (r *recent) add(most int, id uint16, hash uint64) {
	if len(r.ring) < most {
		r.ring = append(r.ring, receipt{id, hash})
		return
	}
	r.ring[r.next] = receipt{id, hash}
	r.next = (r.next + 1) % len(r.ring)
}

// all calls fn for every message, oldest first.
func (r *recent) all(fn func(receipt)) {
	for i := range r.ring {
		fn(r.ring[(r.next+i)%len(r.ring)])
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hashOf tells messages of one device and packet id apart. Two CRCs are fast on small boxes, and nobody gains by a collision:
// a device that forges one loses its own message.
func hashOf(topic string, payload []byte) uint64 {
	a := crc32.Update(crc32.ChecksumIEEE(payload), crc32.IEEETable, []byte(topic))
	b := crc32.Update(crc32.Checksum(payload, castagnoli), castagnoli, []byte(topic))
	return uint64(a)<<32 | uint64(b)
}

// appendNote frames a note of ours.
func appendNote(dst []byte, op byte, client string, rest ...byte) []byte {
	size := 1 + varintSize(len(client)) + len(client) + len(rest)
	dst = append(dst, journalKind)
	dst = binary.AppendUvarint(dst, uint64(size))
	dst = append(dst, op)
	dst = binary.AppendUvarint(dst, uint64(len(client)))
	dst = append(dst, client...)
	return append(dst, rest...)
}

func varintSize(n int) int {
	size := 1
	for ; n >= 128; n >>= 7 {
		size++
	}
	return size
}

func noteQoS1(dst []byte, client string, id uint16, hash uint64) []byte {
	var rest [10]byte
	binary.BigEndian.PutUint16(rest[:], id)
	binary.BigEndian.PutUint64(rest[2:], hash)
	return appendNote(dst, opQoS1, client, rest[:]...)
}

func noteID(dst []byte, op byte, client string, id uint16) []byte {
	return appendNote(dst, op, client, byte(id>>8), byte(id))
}

// ledger is the durable part of all sessions' inbound state, for the journal.
type ledger struct{ s *Server }

// Apply takes a note at a start. A client whose session is not in the store gets one for its ids: it may come back with them.
func (l ledger) Apply(note []byte) error {
	if len(note) == 0 {
		return errors.New("mqtt note: empty")
	}
	op := note[0]
	size, n := binary.Uvarint(note[1:])
	if n <= 0 || uint64(len(note)-1-n) < size {
		return errors.New("mqtt note: the client id is cut off")
	}
	client, rest := string(note[1+n:1+n+int(size)]), note[1+n+int(size):]
	in := l.s.inboundOf(client, op != opEnd)
	if in == nil {
		return nil
	}
	if err := in.apply(op, rest, l.s.config.ReceiveMaximum); err != nil {
		return fmt.Errorf("mqtt note of client %q: %w", client, err)
	}
	return nil
}

func (in *inbound) apply(op byte, rest []byte, most int) error {
	f := newField(rest)
	switch op {
	case opQoS1:
		id, hash := f.uint16(), f.take(8)
		if f.ok {
			in.last.add(most, id, binary.BigEndian.Uint64(hash))
		}
	case opQoS2:
		in.take(f.uint16())
	case opRelease:
		delete(in.taken, f.uint16())
	case opEnd:
		in.taken, in.last = nil, recent{}
	case opTable:
		in.taken, in.last = nil, recent{}
		for range f.varint() {
			in.take(f.uint16())
		}
		for f.ok && f.at < len(rest) {
			id, hash := f.uint16(), f.take(8)
			if f.ok {
				in.last.add(most, id, binary.BigEndian.Uint64(hash))
			}
		}
	default:
		return fmt.Errorf("operation %q is unknown: a newer release wrote it", op)
	}
	if !f.end() {
		return fmt.Errorf("operation %q: cut off", op)
	}
	return nil
}

func (in *inbound) take(id uint16) {
	if in.taken == nil {
		in.taken = map[uint16]struct{}{}
	}
	in.taken[id] = struct{}{}
}

// Dump tells the tables of all sessions that last. A session's table is put under its lock, so that its other notes lie on the
// right side of it.
func (l ledger) Dump(put func(note []byte) error) error {
	for _, s := range l.s.allSessions() {
		if !s.lasts.Load() {
			continue
		}
		if err := s.in.dump(s.id, put); err != nil {
			return err
		}
	}
	return nil
}

func (in *inbound) dump(client string, put func(note []byte) error) error {
	in.Lock()
	defer in.Unlock()
	if len(in.taken) == 0 && len(in.last.ring) == 0 {
		return nil
	}
	rest := appendVarint(nil, len(in.taken))
	for id := range in.taken {
		rest = binary.BigEndian.AppendUint16(rest, id)
	}
	in.last.all(func(r receipt) {
		rest = binary.BigEndian.AppendUint16(rest, r.id)
		rest = binary.BigEndian.AppendUint64(rest, r.hash)
	})
	note := appendNote(nil, opTable, client, rest...)
	_, n := binary.Uvarint(note[1:])
	return put(note[1+n:]) // the journal frames it itself
}

var _ ingest.Ledger = ledger{}
