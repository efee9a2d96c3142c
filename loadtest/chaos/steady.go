package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/loadtest/history"
)

// What the steady writer waits for. A node that is silent is left for another one after attemptMax, and whoever is asked for the leader has
// askLeaderMax; these are in what is measured. A leader that is slow but alive (it tells who leads) gets twice as long each time, up to patienceMax:
// whoever comes back too early is only one more request in the queue of a narrow link.
const (
	attemptMax   = 400 * time.Millisecond
	patienceMax  = 4 * attemptMax
	askLeaderMax = 200 * time.Millisecond
	againAfter   = 25 * time.Millisecond
	namedMax     = 4
)

const (
	// steadyInterval is the time between two writes to a partition.
	steadyInterval = 50 * time.Millisecond
	// steadyBatchMax bounds a batch of what has become due while nothing could be written.
	steadyBatchMax = 500
	// sequenceLimit is where sequences begin at 0 again.
	sequenceLimit = 1 << 31
)

// Versions of the requests, all without topic ids.
const (
	produceVersion      = 9
	metadataVersion     = 9
	initProducerVersion = 4
)

// steady is the client by which unavailability is measured: for every partition one idempotent producer that writes all the time, one batch after the
// other, to whoever leads, and asks all nodes at once who does when there is no answer. It has no queues and no patience of its own, which client
// libraries have in plenty: a stock client with a request timeout of a second needs several seconds to leave a frozen leader.
type steady struct {
	topic      string
	partitions int32
	brokers    map[int32]string // by node id; those that are there all the time
	timeline   *timeline
	size       int

	mu struct {
		sync.Mutex
		writes  []history.Write
		refused []string // answers that must not be
		joined  map[int32]string
	}
}

// joined says that there is one more node, left that there is none.
func (s *steady) joined(node int32, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.joined = map[int32]string{node: address}
}

func (s *steady) left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.joined = nil
}

// nodes are all there are now.
func (s *steady) nodes() map[int32]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.joined) == 0 {
		return s.brokers
	}
	out := maps.Clone(s.brokers)
	maps.Copy(out, s.mu.joined)
	return out
}

// run writes until until is closed, then brings to its end what is under way, at the latest when ctx ends.
func (s *steady) run(ctx context.Context, until <-chan struct{}) {
	var all sync.WaitGroup
	for p := range s.partitions {
		all.Go(func() {
			w := &steadyWriter{s: s, partition: p, wires: map[int32]*wire{}, leader: -1, patience: attemptMax}
			defer w.close()
			w.run(ctx, until)
		})
	}
	all.Wait()
}

// steadyWriter writes to one partition. Everything in it belongs to its goroutine.
type steadyWriter struct {
	s         *steady
	partition int32
	wires     map[int32]*wire
	leader    int32 // -1 = not known
	patience  time.Duration
	producer  int64
	epoch     int16
	sequence  int32
	number    int64 // of the next record
}

func (w *steadyWriter) name() string { return fmt.Sprintf("steady-%d", w.partition) }

func (w *steadyWriter) close() {
	for _, c := range w.wires {
		c.close()
	}
}

func (w *steadyWriter) run(ctx context.Context, until <-chan struct{}) {
	if !w.introduce(ctx) {
		return
	}
	begun := time.Now()
	for {
		due := time.Until(begun.Add(time.Duration(w.number) * steadyInterval))
		select {
		case <-time.After(due):
		case <-until:
			return
		case <-ctx.Done():
			return
		}
		n := min(steadyBatchMax, max(1, int64(time.Since(begun)/steadyInterval)-w.number+1))
		w.write(ctx, n)
	}
}

// introduce gets a producer id.
func (w *steadyWriter) introduce(ctx context.Context) bool {
	for ctx.Err() == nil {
		for node := range w.s.brokers {
			req, resp := kmsg.NewPtrInitProducerIDRequest(), kmsg.NewPtrInitProducerIDResponse()
			req.Version, req.TransactionTimeoutMillis, req.ProducerID, req.ProducerEpoch = initProducerVersion, 60000, -1, -1
			if err := w.wire(node).call(ctx, attemptMax, req, resp); err == nil && resp.ErrorCode == 0 {
				w.producer, w.epoch = resp.ProducerID, resp.ProducerEpoch
				return true
			}
		}
		_ = sleep(ctx, againAfter) // the loop looks at ctx
	}
	return false
}

func (w *steadyWriter) wire(node int32) *wire {
	c := w.wires[node]
	if c == nil || c.address == "" { // or it was named when it had just left
		c = &wire{address: w.s.nodes()[node]}
		w.wires[node] = c
	}
	return c
}

// write sends one batch until it is acknowledged.
func (w *steadyWriter) write(ctx context.Context, n int64) {
	var values [][]byte
	for i := range n {
		values = append(values, numbered(w.name(), w.number+i, w.s.size))
	}
	data := batch(w.producer, w.epoch, w.sequence, values)
	for ctx.Err() == nil {
		begun := time.Now()
		offset, err := w.attempt(ctx, data)
		if err == nil {
			w.patience = min(max(attemptMax, 2*time.Since(begun)), patienceMax)
			w.done(n, true, offset)
			return
		}
		if errors.Is(err, errRefused) {
			// The log does not hold what came before, or something else that must not be: it is written down, and a new producer goes on.
			w.s.refuse(fmt.Sprintf("%s, number %d, sequence %d: %v", w.name(), w.number, w.sequence, err))
			w.done(n, false, 0)
			w.introduce(ctx)
			w.sequence = 0
			return
		}
		w.look(ctx)
		_ = sleep(ctx, againAfter) // the loop looks at ctx
	}
	w.done(n, false, 0)
}

// look finds the leader after a failure. One that is silent itself is tried only after it has been named several times: its answer may be what was lost.
func (w *steadyWriter) look(ctx context.Context) {
	before := w.leader
	for range namedMax {
		leader, alive := w.s.askLeader(ctx, w.partition)
		w.leader = leader
		if leader == before && alive {
			w.patience = min(2*w.patience, patienceMax)
		} else {
			w.patience = attemptMax
		}
		if alive || leader < 0 || sleep(ctx, againAfter) != nil {
			return
		}
	}
}

// done writes down what became of a batch.
func (w *steadyWriter) done(n int64, acked bool, offset int64) {
	if acked {
		w.s.timeline.heard(fmt.Sprintf("%s-%d", w.s.topic, w.partition), time.Now())
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for i := range n {
		one := history.Write{Writer: w.name(), Number: w.number + i, Acked: acked}
		if acked && offset >= 0 {
			one.Place = &history.Place{Partition: w.partition, Offset: offset + i}
		}
		w.s.mu.writes = append(w.s.mu.writes, one)
	}
	w.number += n
	w.sequence = int32((int64(w.sequence) + n) % sequenceLimit)
}

// errRefused is returned for an answer that must not be to a producer that has sent everything in order.
var errRefused = errors.New("refused")

// attempt sends the batch once. The offset is -1 when the answer says only that the batch is there.
func (w *steadyWriter) attempt(ctx context.Context, data []byte) (offset int64, err error) {
	if w.leader < 0 {
		return 0, kerr.LeaderNotAvailable
	}
	req, resp := kmsg.NewPtrProduceRequest(), kmsg.NewPtrProduceResponse()
	req.Version, req.Acks, req.TimeoutMillis = produceVersion, -1, int32(w.patience.Milliseconds())
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = w.partition, data
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.Partitions = w.s.topic, append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	if err := w.wire(w.leader).call(ctx, w.patience, req, resp); err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("%w: an answer for %d topics", errRefused, len(resp.Topics))
	}
	answer := resp.Topics[0].Partitions[0]
	return produceOutcome(answer.ErrorCode, answer.BaseOffset)
}

// produceOutcome tells what may be tried again from what must not be.
func produceOutcome(code int16, offset int64) (int64, error) {
	err := kerr.ErrorForCode(code)
	switch {
	case err == nil:
		return offset, nil
	case errors.Is(err, kerr.DuplicateSequenceNumber):
		return -1, nil
	case kerr.IsRetriable(err) || errors.Is(err, kerr.KafkaStorageError):
		return 0, err
	}
	return 0, fmt.Errorf("%w: %w", errRefused, err)
}

// refusedMax bounds the list: one wrong answer may come again and again.
const refusedMax = 20

func (s *steady) refuse(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.refused) < refusedMax {
		s.mu.refused = append(s.mu.refused, text)
	}
}

// askLeader asks all nodes at once and believes the newest answer: one that is cut off may still take itself for the leader. alive tells whether
// the leader itself has answered; without any answer the leader is -1.
func (s *steady) askLeader(ctx context.Context, partition int32) (leader int32, alive bool) {
	type answer struct {
		from int32
		told *kmsg.MetadataResponseTopicPartition
	}
	nodes := s.nodes()
	answers := make(chan answer, len(nodes))
	for node, address := range nodes {
		go func() { answers <- answer{node, s.askOne(ctx, address, partition)} }()
	}
	leader, epoch := int32(-1), int32(-1)
	from := map[int32]bool{}
	for range nodes {
		a := <-answers
		if a.told == nil {
			continue
		}
		from[a.from] = true
		if a.told.Leader >= 0 && a.told.LeaderEpoch > epoch {
			leader, epoch = a.told.Leader, a.told.LeaderEpoch
		}
		if len(from) > len(nodes)/2 && from[leader] {
			return leader, true // whoever is silent need not be waited for
		}
	}
	return leader, from[leader]
}

// askOne is nil when there is no answer in time.
func (s *steady) askOne(ctx context.Context, address string, partition int32) *kmsg.MetadataResponseTopicPartition {
	w := &wire{address: address}
	defer w.close()
	req, resp := kmsg.NewPtrMetadataRequest(), kmsg.NewPtrMetadataResponse()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(s.topic)
	req.Version, req.Topics = metadataVersion, append(req.Topics, topic)
	if err := w.call(ctx, askLeaderMax, req, resp); err != nil || len(resp.Topics) != 1 {
		return nil
	}
	for i := range resp.Topics[0].Partitions {
		if p := &resp.Topics[0].Partitions[i]; p.Partition == partition {
			return p
		}
	}
	return nil
}

// numbered makes a value that tells its writer and number.
func numbered(writer string, number int64, size int) []byte {
	b := fmt.Appendf(nil, "%s %d ", writer, number)
	for len(b) < size {
		b = append(b, "sluice"[len(b)%6])
	}
	return b
}
