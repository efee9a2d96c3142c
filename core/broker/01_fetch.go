package broker

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// Fetch (1), versions 4 to 18.
//
// Only committed records are served: the end of a log is its high watermark. Whole batches go out, from the one that holds the asked offset, and of the first
// partition that has any at least one, however large (KIP-74). The answer waits for min_bytes at most max_wait, woken by the partitions and by changes of leadership.
// KIP-227: sessions. KIP-320: leader epochs are checked. KIP-392: a leader sends a client to an in-sync replica in the client's rack, and followers serve what they
// have applied. KIP-516 (v13): topics by id. KIP-951 (v16): a wrong leader is answered with the right one. OFFSET_OUT_OF_RANGE above the end is answered
// only by a leader that has verified that it leads; consumers would reset themselves by a stale end otherwise.
func init() { register(1, 4, 18, (*Broker).handleFetch) }

const (
	// fetchBytesMax is Kafka's fetch.max.bytes of a broker.
	fetchBytesMax = 55 << 20
	// fetchWaitMax bounds how long one fetch may hold a connection.
	fetchWaitMax = 5 * time.Minute
	// fetchManyPartitions is the number from which a fetch waits for fetchManyWaitMax at most: what it holds meanwhile is not little.
	fetchManyPartitions = 2000
	fetchManyWaitMax    = time.Second
	// verifyTimeout bounds the round to the other replicas that proves leadership.
	verifyTimeout = 2 * time.Second

	readCommitted = 1
)

// fetch is one Fetch request at work, within its Reply: nothing is held while it waits for its turn.
type fetch struct {
	b       *Broker
	conn    *kafka.Conn
	req     *kmsg.FetchRequest
	session *fetchSession // nil without one
	full    bool          // the answer names every partition
	reads   []*fetchRead
	bytes   int64 // of all chunks
	cut     bool  // the connection takes no more at once than is in it
	first   int   // where to begin, when it does
	urgent  bool  // something is to be told at once
	resp    *kafka.FetchResponse
}

func (b *Broker) handleFetch(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.FetchRequest)
	return func(ctx context.Context) kafka.Response {
		f := &fetch{b: b, conn: r.Conn, req: req, resp: &kafka.FetchResponse{FetchResponse: *kmsg.NewPtrFetchResponse()}}
		f.resp.Version = req.Version
		f.serve(ctx)
		return f.resp
	}
}

// serve answers the request; f.resp is complete when it returns.
func (f *fetch) serve(ctx context.Context) {
	code := f.open(time.Now())
	if f.session != nil {
		defer f.session.mu.Unlock()
	}
	if code != codeNone {
		f.resp.ErrorCode = code
		f.b.metrics.failed("Fetch", code)
		return
	}
	f.collect(ctx)
	f.answer()
}

// open finds or makes the session of the request (KIP-227); the session it leaves in f is locked.
func (f *fetch) open(now time.Time) int16 {
	switch {
	case f.req.Version < 7 || f.req.SessionEpoch == sessionEpochFinal:
		if f.req.Version >= 7 && f.req.SessionID != 0 {
			f.b.sessions.remove(f.req.SessionID)
		}
		f.full = true
		f.addReads(newFetchSession(f.req).list())
		return codeNone
	case f.req.SessionEpoch == sessionEpochInitial:
		f.openNew(now)
		return codeNone
	}
	return f.openKnown(now)
}

// openNew begins a session with everything that the request names.
func (f *fetch) openNew(now time.Time) {
	if f.req.SessionID != 0 {
		f.b.sessions.remove(f.req.SessionID)
	}
	f.full = true
	s := newFetchSession(f.req)
	f.addReads(s.list())
	if len(f.reads) == 0 {
		return
	}
	s.mu.Lock()
	evicted, ok := f.b.sessions.add(s, now)
	f.b.metrics.sessionsEnded.Add(evicted)
	if !ok {
		s.mu.Unlock()
		return // answered without a session
	}
	f.b.metrics.sessionsOpened.Inc()
	f.session, f.resp.SessionID = s, s.id
}

// openKnown continues a session. One that is at work on another connection is refused like a wrong epoch: its client has given that request up.
func (f *fetch) openKnown(now time.Time) int16 {
	s := f.b.sessions.get(f.req.SessionID, now)
	if s == nil {
		return codeFetchSessionNotFound
	}
	if !s.mu.TryLock() {
		return codeInvalidFetchSessionEpoch
	}
	f.session = s
	switch {
	case s.byID != (f.req.Version >= 13):
		return codeFetchSessionTopicID
	case s.epoch != f.req.SessionEpoch:
		return codeInvalidFetchSessionEpoch
	}
	s.epoch = nextEpoch(s.epoch)
	s.update(f.req)
	if !f.b.sessions.resize(s) {
		return codeFetchSessionNotFound
	}
	f.resp.SessionID = s.id
	f.addReads(s.list())
	return codeNone
}

func (f *fetch) addReads(list []*fetchPartition) {
	f.reads = make([]*fetchRead, len(list))
	for i, p := range list {
		f.reads[i] = &fetchRead{want: p}
	}
	if f.session == nil && len(list) > 0 {
		f.first = rand.IntN(len(list)) // a session remembers whose turn it is; without one, a small window would starve the last
	}
}

// collect reads until there is enough to answer or the time is over.
func (f *fetch) collect(ctx context.Context) {
	wait := min(time.Duration(f.req.MaxWaitMillis)*time.Millisecond, fetchWaitMax)
	if len(f.reads) > fetchManyPartitions {
		wait = min(wait, fetchManyWaitMax)
	}
	f.readAll(ctx)
	if f.enough() || wait <= 0 || len(f.reads) == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		w := f.waiters(ctx, timer.C)
		f.readAll(ctx) // after the waiters were taken: nothing is missed in between
		if f.enough() || !w.wait() {
			return
		}
	}
}

// waiters are the channels of which the first ends the waiting.
func (f *fetch) waiters(ctx context.Context, timeout <-chan time.Time) *waiters {
	w := &waiters{timeout: timeout, done: ctx.Done(), stopping: f.conn.Stopping()}
	groups := make(map[meta.ShardID]bool)
	for _, r := range f.reads {
		if r.part == nil {
			continue
		}
		w.changes = append(w.changes, r.part.Waiter())
		if id := r.group.ID(); !groups[id] {
			groups[id] = true
			w.changes = append(w.changes, r.group.Changed())
		}
	}
	return w
}

// enough says whether the answer need not wait any longer. One that is as large as its connection takes is not made larger by waiting.
func (f *fetch) enough() bool { return f.urgent || f.cut || f.bytes >= int64(f.req.MinBytes) }

// readAll brings every partition up to date with what is there now.
func (f *fetch) readAll(ctx context.Context) {
	f.bytes, f.urgent, f.cut = 0, false, false
	limit := int64(min(f.req.MaxBytes, fetchBytesMax))
	if f.req.MaxBytes <= 0 {
		limit = fetchBytesMax
	}
	window := f.conn.AnswerBytes()
	for i := range f.reads {
		r := f.reads[i]
		if window < limit {
			r = f.reads[(f.first+i)%len(f.reads)]
		}
		r.read(ctx, f, min(limit, window)-f.bytes)
		f.cut = f.cut || window < limit && r.short(f.bytes)
		if r.chunk != nil {
			f.bytes += r.chunk.Len()
		}
		f.urgent = f.urgent || r.urgent()
	}
}

// answer turns what was read into the response.
func (f *fetch) answer() {
	at := make(map[fetchKey]int) // topic to its place in the response
	for _, r := range f.reads {
		if f.skip(r) {
			continue
		}
		key := fetchKey{name: r.want.key.name, id: r.want.key.id}
		i, ok := at[key]
		if !ok {
			i = len(f.resp.Topics)
			at[key] = i
			t := kmsg.NewFetchResponseTopic()
			t.Topic, t.TopicID = key.name, key.id
			f.resp.Topics = append(f.resp.Topics, t)
			f.resp.Records = append(f.resp.Records, nil)
		}
		f.resp.Topics[i].Partitions = append(f.resp.Topics[i].Partitions, f.partition(r))
		f.resp.Records[i] = append(f.resp.Records[i], r.payload())
	}
	f.resp.OnRelease = f.release
	f.count()
}

// skip says whether a session's answer leaves a partition out, as nothing of it is new, and remembers what is answered.
func (f *fetch) skip(r *fetchRead) bool {
	w, out := r.want, &r.out
	news := r.chunk != nil || r.urgent() || !w.answered ||
		w.highWatermark != out.HighWatermark || w.lastStable != out.LastStableOffset || w.from != out.LogStartOffset
	w.answered = out.ErrorCode == codeNone // an error is told until it is gone, and then that it is gone
	w.highWatermark, w.lastStable, w.from = out.HighWatermark, out.LastStableOffset, out.LogStartOffset
	if r.chunk != nil && f.session != nil {
		f.session.gave(w)
	}
	return !news && !f.full
}

// partition is the answer for one partition, with hints where to go when it is an error (KIP-951).
func (f *fetch) partition(r *fetchRead) kmsg.FetchResponseTopicPartition {
	out := r.out
	f.b.metrics.failed("Fetch", out.ErrorCode)
	if f.req.Version >= 16 && r.topic != nil && (out.ErrorCode == codeNotLeaderOrFollower || out.ErrorCode == codeFencedLeaderEpoch) {
		node, epoch := f.b.leader(&r.topic.Partitions[out.Partition])
		out.CurrentLeader.LeaderID, out.CurrentLeader.LeaderEpoch = int32(node), epoch
		f.hint(node)
	}
	return out
}

func (f *fetch) hint(id meta.NodeID) {
	for i := range f.resp.Brokers {
		if f.resp.Brokers[i].NodeID == int32(id) {
			return
		}
	}
	if n, ok := f.b.ctl.Image().Node(id); ok {
		h := kmsg.NewFetchResponseBroker()
		h.NodeID, h.Host, h.Port, h.Rack = int32(n.ID), n.KafkaHost, n.KafkaPort, rack(n)
		f.resp.Brokers = append(f.resp.Brokers, h)
	}
}

func (f *fetch) count() {
	f.b.metrics.fetchedBytes.Add(int(f.bytes))
	if f.bytes == 0 {
		f.b.metrics.fetchedEmpty.Inc()
	}
}

// release gives the chunks back when the response is written or given up.
func (f *fetch) release() {
	for _, r := range f.reads {
		r.drop()
	}
}
