package partition

import "sort"

// maxEpochs bounds the leader epochs that a partition remembers; the oldest go
// first. An epoch is an election followed by a record, so this is years of them,
// and a consumer asks only for epochs it has read records of.
const maxEpochs = 4096

// epochStart says at which offset the records of a leader epoch begin.
type epochStart struct {
	_     struct{} `cbor:",toarray"`
	Epoch int32
	Start int64
}

// epochs is the leader-epoch table of a partition (KIP-101, KIP-279): rising in
// both columns, one row per epoch that has records.
type epochs struct{ rows []epochStart }

func (t *epochs) assign(epoch int32, start int64) {
	if n := len(t.rows); n > 0 && t.rows[n-1].Epoch >= epoch {
		return
	}
	if len(t.rows) == maxEpochs {
		t.rows = append(t.rows[:0:0], t.rows[1:]...)
	}
	t.rows = append(t.rows, epochStart{Epoch: epoch, Start: start})
}

// trim forgets the epochs whose records all lie below start.
func (t *epochs) trim(start int64) {
	drop := 0
	for drop+1 < len(t.rows) && t.rows[drop+1].Start <= start {
		drop++
	}
	if drop > 0 {
		t.rows = append([]epochStart(nil), t.rows[drop:]...)
	}
	if len(t.rows) > 0 && t.rows[0].Start < start {
		t.rows[0].Start = start
	}
}

// end answers OffsetForLeaderEpoch: the largest known epoch that is not above
// the one asked for, and where its records end.
func (t *epochs) end(epoch int32, logEnd int64) (int32, int64) {
	above := sort.Search(len(t.rows), func(i int) bool { return t.rows[i].Epoch > epoch })
	end := logEnd
	if above < len(t.rows) {
		end = t.rows[above].Start
	}
	if above == 0 {
		return epoch, end
	}
	return t.rows[above-1].Epoch, end
}
