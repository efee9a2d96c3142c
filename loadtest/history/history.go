// Package history judges a Kafka-like log by what its clients know: nothing acknowledged may be missing, twice or out of order, nothing may be
// there that nobody sent, all readers and replicas see the same log, and what was once seen (end, start, committed offset) never goes back.
//
// There are two ways. Check compares finished lists of writes and reads. A History is told what happens while it happens, by any number of
// clients, judges at once what can be judged at once and the rest in its own Check; it is made for runs of an hour and more. CompareReplicas
// looks at the segment files of stopped nodes, and Metadata at operations on topics.
//
// The package is pure: it neither writes nor reads a log itself, so that it can be tried on logs that are broken on purpose.
//
// # Memory
//
// A record costs 16 bytes as a write and 12 as a read, however many readers there are, 4 for the time of its acknowledgement and one bit for
// each consumer group: about 32 bytes. A run of 50 minutes at 2,000 records a second needs about 200 MB. Violations are counted; only the
// first violationsMax of each kind are kept.
//
// # Time
//
// What has to be in order across clients (a read that begins after an acknowledgement) is decided by the order in which the History is told,
// never by comparing clocks: a client calls Send or Begin before its request leaves and Acked or End after the answer has come. So an
// interval seen here always contains the real one, and what is reported is wrong for certain.
package history

import (
	"fmt"
	"hash/crc32"
	"sync"
	"time"
)

// History is told by clients what they do and see. All methods may be called from any goroutine unless they say otherwise.
type History struct {
	now   func() time.Time
	start time.Time
	bad   findings
	meta  Metadata

	mu struct {
		sync.Mutex
		topics  map[string]*Topic
		writers map[string]*Writer
		list    []*Writer // by number
		groups  map[string]*Group
	}
}

// New begins a history. now is the clock of acknowledgements, for Gaps; nil = time.Now.
func New(now func() time.Time) *History {
	if now == nil {
		now = time.Now
	}
	h := &History{now: now}
	h.start = h.now()
	h.meta.bad = &h.bad
	h.mu.topics, h.mu.writers, h.mu.groups = map[string]*Topic{}, map[string]*Writer{}, map[string]*Group{}
	return h
}

// Metadata is the part of the history that is about topics themselves.
func (h *History) Metadata() *Metadata { return &h.meta }

// Found is how many violations have been noticed so far. Many kinds show only in Check.
func (h *History) Found() int64 { return h.bad.total() }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is what a history remembers of a record's bytes: the CRC32C of its parts, each behind its length.
func Sum(parts ...[]byte) uint32 {
	var sum uint32
	for _, p := range parts {
		n := len(p)
		sum = crc32.Update(sum, castagnoli, []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

func (h *History) sinceStart() uint32 { return uint32(h.now().Sub(h.start).Milliseconds()) }

func (h *History) writerAt(i uint16) *Writer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.list[i]
}

func (h *History) writerNamed(name string) *Writer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.writers[name]
}

func where(topic string, partition int32) string { return fmt.Sprintf("%s-%d", topic, partition) }
