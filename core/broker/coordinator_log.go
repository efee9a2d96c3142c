package broker

import (
	"context"
	"fmt"
	"time"

	"sluice/core/group"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/shard"
)

const (
	// loadBytes of the log are read at a time when a coordinator begins: a larger batch is read whole all the same.
	loadBytes = 1 << 20
	// joiningHeader marks the record of a group whose leader has not brought the assignments yet. Kafka's format has no place for it in key
	// and value, and its tools do not look at headers.
	joiningHeader = "sluice.joining"
)

// home is where a session's records are: the replica of a partition of __consumer_offsets, in the term in which it leads.
type home interface {
	// leads tells whether the term is still this node's.
	leads() bool
	// verify confirms it with a majority.
	verify(ctx context.Context) error
	// load gives all records to replay, in order, which keeps nothing of them.
	load(ctx context.Context, replay func(key, value []byte, joining bool) error) error
	// write appends records and returns when they are committed, or never will be in this term.
	write(records []group.Record) error
	// bounds are the first offset of the log and its end, which nobody can take back.
	bounds() (start, end int64)
	// cut has the log start at an offset, and returns when that is committed or failed.
	cut(start int64) error
	// exists tells whether the topic of a committed offset is in the metadata, by id or, when the id is zero, by name.
	exists(topic string, id group.TopicID) bool
	// now is the clock. What it says of the wall may jump; its monotonic reading does not, and timers go by that.
	now() time.Time
}

// replica is the home of sessions in a broker.
type replica struct {
	b    *Broker
	key  partition.Key
	part *partition.Partition
	raft *shard.Group
	term uint64
}

func (r *replica) leads() bool {
	term, ok := r.raft.Serving()
	return ok && term == r.term && !r.part.Frozen() && !r.part.Removed()
}

func (r *replica) now() time.Time { return r.b.opts.Now() }

// verify fails for a partition that is on its way to another shard: there may be another coordinator already.
func (r *replica) verify(ctx context.Context) error {
	if err := r.raft.Verify(ctx); err != nil {
		return err
	}
	if !r.leads() {
		return errNotCoordinator
	}
	return nil
}

func (r *replica) exists(topic string, id group.TopicID) bool {
	image := r.b.ctl.Image()
	if id == (group.TopicID{}) {
		return image.Topic(topic) != nil
	}
	return image.TopicByID(meta.TopicID(id)) != nil
}

// load reads the partition's log, one chunk at a time.
func (r *replica) load(ctx context.Context, replay func(key, value []byte, joining bool) error) error {
	end := r.part.End()
	for offset := r.part.Start(); offset < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := r.loadChunk(offset, replay)
		if err != nil {
			return fmt.Errorf("read at %d: %w", offset, err)
		}
		offset = next
	}
	return nil
}

func (r *replica) loadChunk(offset int64, replay func(key, value []byte, joining bool) error) (next int64, err error) {
	chunk, err := r.part.Read(offset, loadBytes, false)
	if err != nil {
		return 0, err
	}
	defer chunk.Release()
	buf, err := chunk.Bytes()
	if err != nil {
		return 0, err
	}
	for len(buf) > 0 {
		var b record.Batch
		if b, buf, err = record.Next(buf); err != nil {
			return 0, err
		}
		if err := replayBatch(b, replay); err != nil {
			return 0, fmt.Errorf("batch at %d: %w", b.BaseOffset(), err)
		}
	}
	if chunk.Next() <= offset {
		return 0, fmt.Errorf("no batch: %w", record.ErrCorrupt)
	}
	return chunk.Next(), nil
}

func replayBatch(b record.Batch, replay func(key, value []byte, joining bool) error) error {
	if b.IsControl() {
		return nil
	}
	return b.Each(func(r record.Record) error { return replay(r.Key, r.Value, joining(r.Headers)) })
}

func joining(headers []record.Header) bool {
	for _, h := range headers {
		if h.Key == joiningHeader {
			return true
		}
	}
	return false
}

// write has no context: what is given up too early could still be committed, after the next session has read the log. The shard answers
// every proposal when it loses the leadership or stops. The term is compared before the proposal: to get a record of this term into a later one, the
// node would have to lose the leadership and win it again between these two lines.
func (r *replica) write(records []group.Record) error {
	if !r.leads() {
		return errNotCoordinator
	}
	_, code, err := r.b.appendBatch(context.Background(), r.key, sealed(records, r.b.opts.Now()))
	if code == codeNotLeaderOrFollower {
		return errNotCoordinator
	}
	return err
}

// sealed builds one batch of the records.
func sealed(records []group.Record, now time.Time) record.Batch {
	b := record.NewBuilder(record.BuilderOptions{ProducerID: record.NoProducer, ProducerEpoch: -1, BaseSequence: -1})
	for _, r := range records {
		var headers []record.Header
		if r.Joining {
			headers = []record.Header{{Key: joiningHeader}}
		}
		b.Add(now.UnixMilli(), r.Key, r.Value, headers)
	}
	return b.Build(nil)
}
