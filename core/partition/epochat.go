package partition

import "sort"

// EpochAt returns the leader epoch in which the record with that offset was
// appended; -1 when no record's epoch is known at or below it.
func (p *Partition) EpochAt(offset int64) int32 {
	p.state.Lock()
	defer p.state.Unlock()
	rows := p.state.epochs.rows
	after := sort.Search(len(rows), func(i int) bool { return rows[i].Start > offset })
	if after == 0 {
		return -1
	}
	return rows[after-1].Epoch
}
