package broker

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
	"sluice/core/vfs"
)

// DescribeLogDirs v0 to v4 (KIP-113, KIP-827): the node's one data directory with the bytes of every partition it holds, and of the disk.
// A replica's lag is 0: what it holds is committed.
func init() { register(35, 0, 4, (*Broker).handleDescribeLogDirs) }

func (b *Broker) handleDescribeLogDirs(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DescribeLogDirsRequest)
	return func(ctx context.Context) kafka.Response {
		b.settle(ctx, req.Topics)
		resp := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
		dir := kmsg.NewDescribeLogDirsResponseDir()
		dir.Dir = b.ctl.DataDir()
		dir.Topics = b.localSizes(req.Topics)
		if total, free, err := vfs.Space(b.ctl.DataDir()); err == nil {
			dir.TotalBytes, dir.UsableBytes = int64(total), int64(free)
		}
		resp.Dirs = append(resp.Dirs, dir)
		return resp
	}
}

// settleTimeout bounds how long an answer waits for this node's replicas: some rounds of an idle follower hearing what is committed.
const settleTimeout = time.Second

// settle lets this node's replicas apply what is committed: what was acknowledged before the request shall be in the sizes.
func (b *Broker) settle(ctx context.Context, wanted []kmsg.DescribeLogDirsRequestTopic) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var waits sync.WaitGroup
	begun := make(map[*shard.Group]bool)
	b.eachReplica(wanted, func(_ *meta.Topic, _ int32, _ *partition.Partition, g *shard.Group) {
		if g == nil || begun[g] {
			return
		}
		begun[g] = true
		waits.Go(func() { _ = g.Settled(ctx) }) // in time or not: the sizes are those of the replica
	})
	waits.Wait()
}

// localSizes lists this node's replicas: all of them when the request names no topics.
func (b *Broker) localSizes(wanted []kmsg.DescribeLogDirsRequestTopic) []kmsg.DescribeLogDirsResponseDirTopic {
	var out []kmsg.DescribeLogDirsResponseDirTopic
	b.eachReplica(wanted, func(t *meta.Topic, index int32, part *partition.Partition, _ *shard.Group) {
		size, ok := b.localSize(t, index, part)
		if !ok {
			return
		}
		if len(out) == 0 || out[len(out)-1].Topic != t.Name {
			answer := kmsg.NewDescribeLogDirsResponseDirTopic()
			answer.Topic = t.Name
			out = append(out, answer)
		}
		p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
		p.Partition, p.Size = index, size
		last := &out[len(out)-1]
		last.Partitions = append(last.Partitions, p)
	})
	return out
}

// localSize is what a replica takes here. One that is only on its way here counts with what has been copied, as Kafka shows how far
// a reassignment is.
func (b *Broker) localSize(t *meta.Topic, index int32, part *partition.Partition) (size int64, ok bool) {
	if part != nil {
		return part.Bytes(), true
	}
	return b.ctl.CopiedBytes(t.ID, index)
}

// eachReplica walks the partitions that a request means, with this node's replica and its group where it has them; a replica may have the group
// before it knows of the partition.
func (b *Broker) eachReplica(wanted []kmsg.DescribeLogDirsRequestTopic, fn func(t *meta.Topic, index int32, p *partition.Partition, g *shard.Group)) {
	image := b.ctl.Image()
	each := func(t *meta.Topic, indexes []int32) {
		for _, index := range indexes {
			p, g, _ := b.ctl.Local(t.ID, index)
			fn(t, index, p, g)
		}
	}
	if wanted == nil {
		for t := range image.Topics() {
			each(t, allPartitions(t))
		}
	}
	for _, w := range wanted {
		if t := image.Topic(w.Topic); t != nil {
			each(t, w.Partitions)
		}
	}
}

func allPartitions(t *meta.Topic) []int32 {
	out := make([]int32, len(t.Partitions))
	for i := range out {
		out[i] = int32(i)
	}
	return out
}
