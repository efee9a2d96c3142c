package partition

import (
	"fmt"
	"slices"
)

// MaxOpenTransactions bounds the transactions that are open in one partition:
// each holds the last stable offset back and must be remembered until its
// marker comes, so they cannot be forgotten like producers. It is MaxProducers,
// since a producer has one transaction at a time.
const MaxOpenTransactions = MaxProducers

// AbortedTxn is one aborted transaction: its records lie between the offsets
// and carry the producer id (KIP-98).
type AbortedTxn struct {
	_           struct{} `cbor:",toarray"`
	Producer    int64
	FirstOffset int64 // of its first batch
	LastOffset  int64 // of its marker
}

// openTxn is a transaction whose marker has not come.
type openTxn struct {
	_           struct{} `cbor:",toarray"`
	Producer    int64
	FirstOffset int64
}

// txns follows the transactions of a partition by its batches alone: a
// transactional batch opens one, a control batch with a marker closes it.
type txns struct {
	open    []openTxn    // by first offset
	aborted []AbortedTxn // by last offset, as the markers came
}

func (t *txns) find(producer int64) int {
	return slices.IndexFunc(t.open, func(o openTxn) bool { return o.Producer == producer })
}

// check refuses what would leave a transaction half inside and half outside.
func (t *txns) check(b *batchInfo) error {
	if len(t.open) == 0 || b.control {
		return nil
	}
	open := t.find(b.producer) >= 0
	if open && !b.transactional {
		return fmt.Errorf("%w: producer %d has an open transaction and sent a plain batch", ErrInvalidTxnState, b.producer)
	}
	if !open && b.transactional && len(t.open) >= MaxOpenTransactions {
		return fmt.Errorf("%w: %d transactions are open", ErrInvalidTxnState, len(t.open))
	}
	return nil
}

func (t *txns) accept(b *batchInfo) {
	switch {
	case b.marker:
		t.close(b)
	case b.transactional && !b.control && t.find(b.producer) < 0:
		t.open = append(t.open, openTxn{Producer: b.producer, FirstOffset: b.base})
	}
}

func (t *txns) close(b *batchInfo) {
	i := t.find(b.producer)
	if i < 0 {
		return
	}
	first := t.open[i].FirstOffset
	t.open = slices.Delete(t.open, i, i+1)
	if b.abort {
		t.aborted = append(t.aborted, AbortedTxn{Producer: b.producer, FirstOffset: first, LastOffset: b.base})
	}
}

// lastStable is the offset below which no transaction is open.
func (t *txns) lastStable(end int64) int64 {
	if len(t.open) > 0 {
		return t.open[0].FirstOffset
	}
	return end
}

// between returns the aborted transactions that have records in [from, to),
// sorted by first offset as clients need them (trap 11).
func (t *txns) between(from, to int64) []AbortedTxn {
	i, _ := slices.BinarySearchFunc(t.aborted, from, func(a AbortedTxn, at int64) int {
		if a.LastOffset < at {
			return -1
		}
		return 1
	})
	var found []AbortedTxn
	for _, a := range t.aborted[i:] {
		if a.FirstOffset < to {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b AbortedTxn) int { return int(min(1, max(-1, a.FirstOffset-b.FirstOffset))) })
	return found
}

// trim forgets aborted transactions that lie wholly below start.
func (t *txns) trim(start int64) {
	drop := 0
	for drop < len(t.aborted) && t.aborted[drop].LastOffset < start {
		drop++
	}
	if drop > 0 {
		t.aborted = append([]AbortedTxn(nil), t.aborted[drop:]...)
	}
}
