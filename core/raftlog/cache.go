package raftlog

import "github.com/hashicorp/raft"

// cache holds the newest entries, without gaps, within a bound of bytes. Their data is shared with
// whoever stored them: Raft does not change an entry it has handed over.
type cache struct {
	limit, bytes int64
	entries      []raft.Log // entries[head:] are live
	head         int
}

func entryBytes(l *raft.Log) int64 { return entryPayloadBytes(l) + recordHeaderBytes }

func (c *cache) get(index uint64, l *raft.Log) bool {
	live := c.entries[c.head:]
	if len(live) == 0 || index < live[0].Index || index > live[len(live)-1].Index {
		return false
	}
	*l = live[index-live[0].Index]
	return true
}

func (c *cache) add(l *raft.Log) {
	if live := c.entries[c.head:]; len(live) > 0 && live[len(live)-1].Index+1 != l.Index {
		c.reset()
	}
	c.entries = append(c.entries, *l)
	c.bytes += entryBytes(l)
	for c.bytes > c.limit {
		c.drop()
	}
	if c.head > 1024 && c.head > len(c.entries)/2 {
		n := copy(c.entries, c.entries[c.head:])
		clear(c.entries[n:])
		c.entries, c.head = c.entries[:n], 0
	}
}

// drop forgets the oldest entry.
func (c *cache) drop() {
	c.bytes -= entryBytes(&c.entries[c.head])
	c.entries[c.head] = raft.Log{}
	c.head++
}

// keep forgets all entries outside of first to last.
func (c *cache) keep(first, last uint64) {
	for c.head < len(c.entries) && c.entries[c.head].Index < first {
		c.drop()
	}
	for n := len(c.entries); n > c.head && c.entries[n-1].Index > last; n-- {
		c.bytes -= entryBytes(&c.entries[n-1])
		c.entries[n-1] = raft.Log{}
		c.entries = c.entries[:n-1]
	}
}

func (c *cache) reset() {
	clear(c.entries)
	c.entries, c.head, c.bytes = c.entries[:0], 0, 0
}
