package broker

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/commitlog"
	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

// fetchRead is the work of a fetch on one partition.
type fetchRead struct {
	want  *fetchPartition
	topic *meta.Topic
	part  *partition.Partition
	group *shard.Group
	// leads says whether this node leads the partition, epoch in which leader epoch it is led.
	leads bool
	epoch int32

	out   kmsg.FetchResponseTopicPartition
	chunk *commitlog.Chunk // nil without records
	// limit is the end of what was readable when it was read last, room what the answer had left.
	limit, room int64
}

// urgent says whether the answer shall not wait.
func (r *fetchRead) urgent() bool {
	return r.out.ErrorCode != codeNone || r.out.PreferredReadReplica >= 0 || r.out.DivergingEpoch.EndOffset >= 0
}

// short says whether there are more records than the answer had room for, behind before bytes of others. The first gets a batch
// whatever the room is: where it has none, nothing can be read.
func (r *fetchRead) short(before int64) bool {
	return r.out.ErrorCode == codeNone && (r.chunk != nil || before > 0) && r.want.offset < r.limit && r.room < int64(r.want.maxBytes) && (r.chunk == nil || r.chunk.Next() < r.limit)
}

// payload returns the records to send.
func (r *fetchRead) payload() kafka.Payload {
	if r.chunk == nil {
		return nil
	}
	return r.chunk
}

// drop gives the chunk back.
func (r *fetchRead) drop() {
	if r.chunk != nil {
		r.chunk.Release()
		r.chunk = nil
	}
}

// fail makes the answer an error.
func (r *fetchRead) fail(code int16) {
	r.drop()
	r.reset()
	r.out.ErrorCode, r.out.HighWatermark = code, -1
}

// reset makes the answer an empty one.
func (r *fetchRead) reset() {
	r.out = kmsg.NewFetchResponseTopicPartition()
	r.out.Partition = r.want.key.index
}

// read brings the answer up to date; room is how many bytes the whole answer has left.
func (r *fetchRead) read(ctx context.Context, f *fetch, room int64) {
	if code := r.resolve(f); code != codeNone {
		r.fail(code)
		return
	}
	if code := currentEpoch(r.want.leaderEpoch, r.epoch); code != codeNone {
		r.fail(code)
		return
	}
	chunk, limit, kept := r.chunk, r.limit, r.room
	r.reset()
	if r.redirect(f) || r.diverges() {
		r.drop()
		return
	}
	if code := r.bounds(ctx, f.req.Version); code != codeNone {
		r.fail(code)
		return
	}
	committed := f.req.IsolationLevel == readCommitted
	r.limit, r.room = r.out.HighWatermark, room
	if committed {
		r.limit = r.out.LastStableOffset
	}
	if chunk != nil && kept == room && (limit == r.limit || chunk.Next() < limit) {
		r.aborted(committed)
		return // nothing is new, or the chunk ends before what is
	}
	r.drop()
	if r.want.offset < r.limit && room > 0 {
		r.records(f, committed, room)
	}
}

// resolve finds the partition and who leads it. Followers serve clients that know of it (v11 on, KIP-392), while they know their leader.
func (r *fetchRead) resolve(f *fetch) int16 {
	r.topic, r.part, r.group = nil, nil, nil
	topic, code := f.b.topic(r.want.key.name, r.want.key.id)
	if code != codeNone {
		return code
	}
	p, g, code := f.b.replicaFor(topic, r.want.key.index)
	if code == codeUnknownTopicOrPartition {
		return code
	}
	r.topic = topic
	if code != codeNone {
		return code
	}
	term, leads := g.Serving()
	if !leads {
		node, t, ok := g.Leader()
		if !ok || node == f.b.self() || f.req.Version < 11 {
			return codeNotLeaderOrFollower
		}
		term = t
	}
	r.part, r.group, r.leads, r.epoch = p, g, leads, p.LeaderEpoch(term)
	return codeNone
}

// redirect sends a client to an in-sync replica in its own rack (KIP-392).
func (r *fetchRead) redirect(f *fetch) bool {
	if !r.leads || f.req.Version < 11 || f.req.Rack == "" {
		return false
	}
	to := f.b.replicaInRack(r.group, f.req.Rack)
	if to == meta.NoNode {
		return false
	}
	r.out.PreferredReadReplica = int32(to)
	r.ends()
	return true
}

// ends fills in the offsets of an answer.
func (r *fetchRead) ends() {
	r.out.LogStartOffset, r.out.LastStableOffset, r.out.HighWatermark = r.part.Start(), r.part.LastStable(), r.part.End()
}

// diverges tells a client whose last epoch ended elsewhere (KIP-595). Here no committed record is ever taken back, so only a client of another log meets it.
func (r *fetchRead) diverges() bool {
	if r.want.lastFetchedEpoch < 0 || r.want.lastFetchedEpoch >= r.epoch {
		return false
	}
	epoch, end := r.part.EpochEnd(r.want.lastFetchedEpoch)
	if end < 0 || (epoch >= r.want.lastFetchedEpoch && end >= r.want.offset) {
		return false
	}
	r.ends()
	r.out.DivergingEpoch.Epoch, r.out.DivergingEpoch.EndOffset = epoch, end
	return true
}

// bounds checks the offset. Above the end it is wrong only if no other node leads and has more: the leader asks the others first.
func (r *fetchRead) bounds(ctx context.Context, version int16) int16 {
	r.ends()
	later := codeOffsetNotAvailable
	if version < 11 { // does not know the code
		later = codeNotLeaderOrFollower
	}
	switch {
	case r.want.offset < r.out.LogStartOffset:
		return codeOffsetOutOfRange
	case r.want.offset <= r.out.HighWatermark:
		return codeNone
	case !r.leads:
		return later
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	if err := r.group.Verify(ctx); errors.Is(err, shard.ErrNotLeader) {
		return codeNotLeaderOrFollower
	} else if err != nil {
		return later
	}
	if r.part.Frozen() || r.part.Removed() { // another shard may have appended since
		return codeNotLeaderOrFollower
	}
	if r.ends(); r.want.offset > r.out.HighWatermark {
		return codeOffsetOutOfRange
	}
	return codeNone
}

// records reads the chunk to send. A batch that is larger than the room is sent only when the answer would hold nothing otherwise.
func (r *fetchRead) records(f *fetch, committed bool, room int64) {
	chunk, err := r.part.Read(r.want.offset, max(min(room, int64(r.want.maxBytes)), 1), committed)
	if err != nil {
		r.fail(r.readCode(err))
		return
	}
	switch {
	case chunk == nil:
		return
	case chunk.Len() == 0, chunk.Len() > room && f.bytes > 0:
		chunk.Release()
		return
	}
	r.chunk = chunk
	r.aborted(committed)
}

// readCode is the code for a failed read. A follower that lacks something sends its clients back to the leader.
func (r *fetchRead) readCode(err error) int16 {
	switch {
	case errors.Is(err, commitlog.ErrOutOfRange) && r.want.offset < r.part.Start():
		return codeOffsetOutOfRange
	case !r.leads:
		return codeNotLeaderOrFollower
	}
	return errorCode(err)
}

// aborted lists the aborted transactions in the chunk, for clients that read only committed ones.
func (r *fetchRead) aborted(committed bool) {
	if !committed || r.chunk == nil {
		return
	}
	r.out.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
	for _, a := range r.part.Aborted(r.want.offset, r.chunk.Next()) {
		t := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
		t.ProducerID, t.FirstOffset = a.Producer, a.FirstOffset
		r.out.AbortedTransactions = append(r.out.AbortedTransactions, t)
	}
}

// replicaInRack returns an in-sync voter in that rack, NoNode when this node is there itself or nobody is.
func (b *Broker) replicaInRack(g *shard.Group, rack string) meta.NodeID {
	image := b.ctl.Image()
	if n, ok := image.Node(b.self()); !ok || n.Rack == rack {
		return meta.NoNode
	}
	for _, r := range g.Replicas() {
		if n, ok := image.Node(r.Server.Node); ok && r.InSync && r.Voter && !n.Fenced && n.Rack == rack {
			return n.ID
		}
	}
	return meta.NoNode
}
