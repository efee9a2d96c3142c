package broker

import "sluice/core/group"

// backlog is what the state machine wants written: records in order, numbered from one.
type backlog struct {
	records   []group.Record // not written yet, the first ones are being written
	bytes     int            // of all of them
	last      uint64         // number of the last record ever added
	committed uint64         // number of the last record known to be committed
	taken     int            // how many of the first ones the next or present write takes
	writing   bool
	dirty     map[string]uint64 // by group: its last record that is not known to be committed
}

const (
	// writeBytes is when a batch of coordinator records is full: a write holds at least one record, and not more than this beyond it.
	writeBytes = 512 << 10
	// recordOverhead is what a record costs beside its key and value, roughly.
	recordOverhead = 64
)

func (r *backlog) add(records []group.Record) {
	if len(records) == 0 {
		return
	}
	if r.dirty == nil {
		r.dirty = map[string]uint64{}
	}
	for _, record := range records {
		r.last++
		r.dirty[record.Group] = r.last
		r.bytes += size(record)
	}
	r.records = append(r.records, records...)
}

func size(r group.Record) int { return len(r.Key) + len(r.Value) + recordOverhead }

// need returns the record that an answer of the group has to wait for; of any group when it is empty.
func (r *backlog) need(groupID string) uint64 {
	if groupID == "" {
		return r.last
	}
	return r.dirty[groupID]
}

// next returns the records of the next write.
func (r *backlog) next() []group.Record {
	if r.writing {
		return nil
	}
	bytes := 0
	r.taken = 0
	for _, record := range r.records {
		if bytes += size(record); r.taken > 0 && bytes > writeBytes {
			break
		}
		r.taken++
	}
	return r.records[:r.taken:r.taken]
}

func (r *backlog) start() { r.writing = true }

// startNothing keeps the writer for something that is no record.
func (r *backlog) startNothing() { r.taken, r.writing = 0, true }

// finish notes that the present write is committed and returns the number of its last record.
func (r *backlog) finish() uint64 {
	r.writing = false
	r.committed += uint64(r.taken)
	for _, record := range r.records[:r.taken] {
		r.bytes -= size(record)
		if r.dirty[record.Group] <= r.committed {
			delete(r.dirty, record.Group)
		}
	}
	r.records = append([]group.Record(nil), r.records[r.taken:]...)
	return r.committed
}
