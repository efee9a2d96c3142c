package partition

import (
	"fmt"
	"sync"
	"sync/atomic"

	"sluice/core/commitlog"
)

// Partition is one partition of a set. Its methods may be called by any
// goroutine while the set applies entries; they see what has been applied and
// never half of an entry.
type Partition struct {
	key  Key
	name string
	dir  string
	log  *commitlog.Log
	// arrived is the move that brought the partition into the shard, 0 when it was created there.
	arrived uint64

	// What readers see.
	start, end, stable atomic.Int64
	epochBase          atomic.Int32
	removed            atomic.Bool
	doubtful           atomic.Bool   // some segment is not known to be whole
	frozen             atomic.Uint64 // the move that it is frozen for, 0: none
	dirty              atomic.Int64  // the first offset that was never compacted; apply stores it
	listed             atomic.Bool   // a durable checkpoint of this replica names it: its directory outlives a crash

	waiter struct {
		sync.Mutex
		ch chan struct{} // nil while nobody waits
	}

	// state is changed by apply only. The lock is for readers: apply holds it to
	// change, and need not to read.
	state struct {
		sync.Mutex
		producers producers
		epochs    epochs
		txns      txns
		config    LogConfig
	}

	// next and pending belong to apply.
	next    int64 // offset of the next record accepted
	pending pending
	touched bool // in the set's list of partitions to be written

	// version counts the changes of what a checkpoint holds; it belongs to apply.
	version uint64
	// saved is the encoded section of the last checkpoint, with its version.
	saved atomic.Pointer[savedSection]
	// named is true once the metadata file and the directory are synced. It
	// belongs to the goroutine that persists checkpoints.
	named atomic.Bool
}

// ProducerState is what a partition remembers of a producer (DescribeProducers).
type ProducerState struct {
	ID            int64
	Epoch         int16
	LastSequence  int32 // -1: none in this epoch
	LastOffset    int64
	LastTimestamp int64 // ms
	TxnStart      int64 // first offset of its open transaction; -1: none
}

// Key identifies the partition.
func (p *Partition) Key() Key { return p.key }

// Name returns the topic's name.
func (p *Partition) Name() string { return p.name }

// Start returns the first offset of the log. It never goes back.
func (p *Partition) Start() int64 { return p.start.Load() }

// End returns the offset after the last applied record: the high watermark.
func (p *Partition) End() int64 { return p.end.Load() }

// LastStable returns the offset below which every transaction has ended.
func (p *Partition) LastStable() int64 { return p.stable.Load() }

// LeaderEpoch returns the leader epoch of batches that a leader of the given
// Raft term appends.
func (p *Partition) LeaderEpoch(term uint64) int32 { return leaderEpoch(p.epochBase.Load(), term) }

func leaderEpoch(base int32, term uint64) int32 { return base + int32(term) }

// Removed tells whether the partition was deleted or this replica closed.
func (p *Partition) Removed() bool { return p.removed.Load() }

// Bytes returns the size of all segments.
func (p *Partition) Bytes() int64 { return p.log.Bytes() }

// Read returns whole batches from the one that contains offset, up to the high
// watermark, or with readCommitted up to the last stable offset. At the end it
// returns nil. The caller releases the chunk. Errors wrap ErrOutOfRange,
// ErrMissing or ErrRemoved.
func (p *Partition) Read(offset, maxBytes int64, readCommitted bool) (*commitlog.Chunk, error) {
	if p.Removed() {
		return nil, ErrRemoved
	}
	limit := p.end.Load()
	if offset < p.start.Load() || offset > limit {
		return nil, fmt.Errorf("read offset %d of %d to %d: %w", offset, p.start.Load(), limit, ErrOutOfRange)
	}
	if readCommitted {
		limit = p.stable.Load()
	}
	if offset >= limit {
		return nil, nil
	}
	if p.doubtful.Load() {
		return nil, fmt.Errorf("read offset %d before the segments are verified: %w", offset, ErrMissing)
	}
	chunk, err := p.log.Read(offset, maxBytes, limit)
	if err != nil && p.Removed() {
		return nil, ErrRemoved
	}
	return chunk, err
}

// LookupTime returns the first record whose timestamp (ms) is ts or later.
func (p *Partition) LookupTime(ts int64) (offset, timestamp int64, ok bool, err error) {
	if p.Removed() {
		return 0, 0, false, ErrRemoved
	}
	return p.log.LookupTime(ts)
}

// MaxTimestamp returns the record with the largest timestamp (ms).
func (p *Partition) MaxTimestamp() (offset, timestamp int64, ok bool) { return p.log.MaxTimestamp() }

// RetentionStart returns where the log would start under the given retention:
// what the shard's leader proposes with EncodeStart when it is above Start.
// Limits are in ms and bytes, -1 is none.
func (p *Partition) RetentionStart(nowMs, retentionMs, retentionBytes int64) int64 {
	return max(p.Start(), p.log.RetentionStart(nowMs, retentionMs, retentionBytes))
}

// EpochEnd answers OffsetForLeaderEpoch (KIP-320): the largest epoch with
// records that is not above epoch, and the offset after its last record. For an
// epoch newer than all records that is the end of the log; whether the epoch
// exists at all is for the caller to say, who knows the term.
func (p *Partition) EpochEnd(epoch int32) (foundEpoch int32, endOffset int64) {
	p.state.Lock()
	defer p.state.Unlock()
	return p.state.epochs.end(epoch, p.End())
}

// Aborted returns the aborted transactions with records in [from, to), sorted
// by first offset.
func (p *Partition) Aborted(from, to int64) []AbortedTxn {
	p.state.Lock()
	defer p.state.Unlock()
	return p.state.txns.between(from, to)
}

// Producers returns the remembered producers, the oldest first.
func (p *Partition) Producers() []ProducerState {
	p.state.Lock()
	defer p.state.Unlock()
	list := make([]ProducerState, 0, p.state.producers.len())
	for pr := p.state.producers.oldest; pr != nil; pr = pr.newer {
		st := ProducerState{
			ID: pr.id, Epoch: pr.epoch, LastSequence: pr.lastSeq,
			LastOffset: pr.lastOffset, LastTimestamp: pr.timestamp, TxnStart: -1,
		}
		if i := p.state.txns.find(pr.id); i >= 0 {
			st.TxnStart = p.state.txns.open[i].FirstOffset
		}
		list = append(list, st)
	}
	return list
}

// Config returns what the last create or configure entry said.
func (p *Partition) Config() LogConfig {
	p.state.Lock()
	defer p.state.Unlock()
	return p.state.config
}

// Waiter returns a channel that is closed at the next change of start, end or
// last stable offset, when a missing segment has arrived, or at removal. Get it
// before looking at what is waited for, or a change in between goes unseen.
func (p *Partition) Waiter() <-chan struct{} {
	p.waiter.Lock()
	defer p.waiter.Unlock()
	if p.waiter.ch == nil {
		p.waiter.ch = make(chan struct{})
		if p.Removed() {
			close(p.waiter.ch)
		}
	}
	return p.waiter.ch
}

// wake closes the waiters' channel. After removal the closed one stays.
func (p *Partition) wake() {
	p.waiter.Lock()
	defer p.waiter.Unlock()
	if p.waiter.ch == nil {
		return
	}
	select {
	case <-p.waiter.ch: // closed for good by removal
	default:
		close(p.waiter.ch)
	}
	if !p.Removed() {
		p.waiter.ch = nil
	}
}

// publish shows readers what has been written, then wakes them. The end is
// stored last going up, so that start <= stable <= end holds for who reads the
// end first.
func (p *Partition) publish() {
	start, end := p.log.Start(), p.log.End()
	p.end.Store(end)
	p.stable.Store(max(start, p.state.txns.lastStable(end)))
	p.start.Store(start)
	p.wake()
}

// remove makes readers let go. The files stay.
func (p *Partition) remove() {
	p.removed.Store(true)
	p.wake()
}
