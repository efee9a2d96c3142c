package broker

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

// ListOffsets (2), versions 1 to 11.
//
// Answered only by a leader that has verified within this request that it leads: an offset told here never goes back, whoever is asked next. The end is the
// high watermark, or the last stable offset for read_committed (v2). KIP-320 (v4): leader epochs. KIP-734 (v7): MAX_TIMESTAMP. KIP-405 (v8), KIP-1005 (v9) and KIP-1023
// (v11): offsets of tiered storage, which there is none of: the local log is the whole log, and nothing is tiered or waits for it.
func init() { register(2, 1, 11, (*Broker).handleListOffsets) }

// Special timestamps and the versions that brought them.
const (
	timestampLatest                = -1
	timestampEarliest              = -2
	timestampMax                   = -3
	timestampEarliestLocal         = -4
	timestampLatestTiered          = -5
	timestampEarliestPendingUpload = -6

	listOffsetsTimeout = 30 * time.Second // where the request names none (before v10)
)

var timestampVersions = map[int64]int16{
	timestampLatest: 0, timestampEarliest: 0, timestampMax: 7, timestampEarliestLocal: 8, timestampLatestTiered: 9, timestampEarliestPendingUpload: 11,
}

func (b *Broker) handleListOffsets(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.ListOffsetsRequest)
	return func(ctx context.Context) kafka.Response {
		timeout := listOffsetsTimeout
		if r.Version >= 10 && req.TimeoutMillis > 0 {
			timeout = min(timeout, time.Duration(req.TimeoutMillis)*time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		l := &listOffsets{b: b, req: req, version: r.Version, verified: newVerified()}
		return l.answer(ctx)
	}
}

// verified remembers which groups have proved within one request that they are led from here.
type verified map[meta.ShardID]error

func newVerified() verified { return make(verified) }

// check verifies a group once.
func (v verified) check(ctx context.Context, g *shard.Group) error {
	err, done := v[g.ID()]
	if !done {
		ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
		defer cancel()
		err = g.Verify(ctx)
		v[g.ID()] = err
	}
	return err
}

type listOffsets struct {
	b        *Broker
	req      *kmsg.ListOffsetsRequest
	version  int16
	verified verified
}

func (l *listOffsets) answer(ctx context.Context) kafka.Response {
	resp := kmsg.NewPtrListOffsetsResponse()
	named := make(map[fetchKey]int)
	for i := range l.req.Topics {
		for j := range l.req.Topics[i].Partitions {
			named[fetchKey{name: l.req.Topics[i].Topic, index: l.req.Topics[i].Partitions[j].Partition}]++
		}
	}
	for i := range l.req.Topics {
		in, out := &l.req.Topics[i], kmsg.NewListOffsetsResponseTopic()
		out.Topic = in.Topic
		for j := range in.Partitions {
			p := kmsg.NewListOffsetsResponseTopicPartition()
			p.Partition, p.Offset, p.Timestamp, p.LeaderEpoch = in.Partitions[j].Partition, -1, -1, -1
			if named[fetchKey{name: in.Topic, index: p.Partition}] > 1 {
				p.ErrorCode = codeInvalidRequest
			} else {
				p.ErrorCode = l.partition(ctx, in.Topic, &in.Partitions[j], &p)
			}
			l.b.metrics.failed("ListOffsets", p.ErrorCode)
			out.Partitions = append(out.Partitions, p)
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp
}

// partition answers for one partition; what it leaves untouched says "unknown".
func (l *listOffsets) partition(ctx context.Context, name string, in *kmsg.ListOffsetsRequestTopicPartition, out *kmsg.ListOffsetsResponseTopicPartition) int16 {
	if since, ok := timestampVersions[in.Timestamp]; in.Timestamp < 0 && (!ok || l.version < since) {
		return codeUnsupportedVersion
	}
	p, epoch, code := l.b.verifiedLeader(ctx, l.verified, name, in.Partition, in.CurrentLeaderEpoch)
	if code != codeNone {
		return code
	}
	end := p.End()
	if l.req.IsolationLevel == readCommitted {
		end = p.LastStable()
	}
	found, err := lookup(p, in.Timestamp, end)
	if err != nil {
		return errorCode(err)
	}
	out.Offset, out.Timestamp = found.offset, found.timestamp
	switch {
	case found.offset >= p.End(): // there is no record yet: it will be of this epoch
		out.LeaderEpoch = epoch
	case found.offset >= 0:
		out.LeaderEpoch = p.EpochAt(found.offset)
	}
	return codeNone
}

// foundOffset is an answer to a timestamp; offset -1 means there is none.
type foundOffset struct{ offset, timestamp int64 }

// lookup finds the offset for a timestamp among the records before end.
func lookup(p *partition.Partition, timestamp, end int64) (foundOffset, error) {
	none := foundOffset{offset: -1, timestamp: -1}
	switch timestamp {
	case timestampLatest:
		return foundOffset{offset: end, timestamp: -1}, nil
	case timestampEarliest, timestampEarliestLocal:
		return foundOffset{offset: p.Start(), timestamp: -1}, nil
	case timestampLatestTiered, timestampEarliestPendingUpload:
		return none, nil
	case timestampMax:
		if offset, ts, ok := p.MaxTimestamp(); ok && offset < end {
			return foundOffset{offset: offset, timestamp: ts}, nil
		}
		return none, nil
	}
	offset, ts, ok, err := p.LookupTime(timestamp)
	if err != nil || !ok || offset >= end {
		return none, err
	}
	return foundOffset{offset: offset, timestamp: ts}, nil
}

// verifiedLeader returns a partition that this node leads, proven by its group, and its leader epoch, which a claimed one is checked against.
func (b *Broker) verifiedLeader(ctx context.Context, v verified, name string, index, claimed int32) (*partition.Partition, int32, int16) {
	topic, code := b.topic(name, meta.TopicID{})
	if code != codeNone {
		return nil, -1, code
	}
	p, g, code := b.leaderFor(topic, index)
	if code != codeNone {
		return nil, -1, code
	}
	if v.check(ctx, g) != nil || p.Frozen() || p.Removed() { // frozen: what another shard has appended since is not known here
		return nil, -1, codeNotLeaderOrFollower
	}
	term, ok := g.Serving()
	if !ok {
		return nil, -1, codeNotLeaderOrFollower
	}
	epoch := p.LeaderEpoch(term)
	return p, epoch, currentEpoch(claimed, epoch)
}
