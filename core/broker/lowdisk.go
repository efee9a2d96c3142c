package broker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"sluice/core/controller"
	"sluice/core/group"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/shard"
)

// lowDisk refuses a batch for a shard with a voter whose disk is low. Clients try again after KAFKA_STORAGE_ERROR (librdkafka: "refresh and retry, message
// not persisted"), unlike after most errors that would fit, and the batch was not proposed, so that nothing of it is left and its sequence is still free.
func lowDisk(d controller.NodeDisk) rejection {
	return reject(codeStorageError, "The disk of node %d is low: %s free, and %s are kept in reserve. Nothing is lost: try again. "+
		"Free space there, delete topics or records, or shorten retention.", d.Node, bytesText(d.FreeBytes), bytesText(d.ReserveBytes))
}

// admit asks the disks of a shard's voters whether batches may be taken, unless an earlier batch of the same producer waits for them.
func (p *produce) admit(id meta.ShardID, g *shard.Group, key partition.Key, batches []byte) rejection {
	first, _, err := record.Next(batches)
	if err != nil {
		return rejection{code: recordCode(err), message: err.Error()}
	}
	why := rejection{}
	term, _ := g.Serving() // a leader that does not serve any more refuses what comes of it
	if p.b.queues.behind(key, term, first) {
		why = reject(codeStorageError, "An earlier batch of this producer was refused for want of disk space and comes first: try again.")
	} else {
		p.asked += int64(len(batches))
		if low, refused := p.b.ctl.Admit(id, int64(len(batches))); refused {
			p.b.queues.refused(key, term, first)
			why = lowDisk(low)
		}
	}
	if why.code != codeNone {
		p.b.metrics.refusedLowDisk.Inc()
	}
	return why
}

// refusedBatches keeps the order of idempotent producers over refusals. The sequence that needs it: a producer that is new to the partition sends batches 0 and 1
// at once; 0 is refused, space comes, 1 is taken, as a producer nobody remembers may begin anywhere (its records may have expired); then 0 can never be taken.
type refusedBatches struct {
	count atomic.Int64 // of mu.first, so that nobody locks while there is none
	mu    struct {
		sync.Mutex
		first map[refusedProducer]refusedBatch
	}
}

type refusedProducer struct {
	partition partition.Key
	producer  int64
}

// refusedBatch is the first that was refused of a producer, in a term of the shard's leader: what was refused here another leader may have taken
// meanwhile, with all that follows it, and the producer never comes back with it.
type refusedBatch struct {
	term     uint64
	epoch    int16
	sequence int32
	at       time.Time
}

const (
	// refusedKeep is how long a refused batch holds those behind it up: clients give a batch up after two minutes, and with it what follows.
	refusedKeep = 2 * time.Minute
	// refusedMax bounds what is remembered; all is forgotten when it is full.
	refusedMax = 20_000
)

// refused remembers a batch that was refused in a term.
func (r *refusedBatches) refused(key partition.Key, term uint64, b record.Batch) {
	if b.ProducerID() < 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.first == nil || len(r.mu.first) >= refusedMax {
		r.mu.first = make(map[refusedProducer]refusedBatch)
	}
	r.mu.first[refusedProducer{key, b.ProducerID()}] = refusedBatch{term, b.ProducerEpoch(), b.BaseSequence(), time.Now()}
	r.count.Store(int64(len(r.mu.first)))
}

// behind tells whether a batch follows one that was refused in this term and has not come again. When that comes, it is forgotten.
func (r *refusedBatches) behind(key partition.Key, term uint64, b record.Batch) bool {
	if r.count.Load() == 0 || b.ProducerID() < 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := refusedProducer{key, b.ProducerID()}
	first, ok := r.mu.first[at]
	if !ok {
		return false
	}
	const half = 1 << 30 // of all sequences, which wrap at 2^31
	after := uint32(b.BaseSequence()-first.sequence) & (1<<31 - 1)
	if first.term == term && first.epoch == b.ProducerEpoch() && time.Since(first.at) < refusedKeep && after != 0 {
		return after < half
	}
	delete(r.mu.first, at)
	r.count.Store(int64(len(r.mu.first)))
	return false
}

// bytesText is a number of bytes for a person.
func bytesText(n uint64) string {
	const unit = 1 << 10
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n)/unit, "KMGTPE"
	for value >= unit {
		value, units = value/unit, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", value, units[0])
}

// askToKeep is ask for what a coordinator has to write much of (offsets, members): not while a disk that its records go to is full.
// What a group does by itself still goes on. The code has clients look for the coordinator again, and wait in between.
func (c *coordinators) askToKeep(ctx context.Context, groupID string, event func(group.Ticket) group.Event) *question {
	s, code := c.session(groupID)
	if code == group.None && c.full(groupID) {
		code = group.CoordinatorNotAvailable
	}
	if code != group.None {
		return &question{code: code}
	}
	return s.ask(ctx, event)
}

// full tells whether a disk is full that the group's records go to.
func (c *coordinators) full(groupID string) bool {
	topic := c.b.ctl.Image().Topic(meta.OffsetsTopic)
	if topic == nil {
		return false
	}
	_, full := c.b.ctl.FullDisk(topic.Partitions[coordinatorPartition(groupID, len(topic.Partitions))].Shard)
	return full
}
