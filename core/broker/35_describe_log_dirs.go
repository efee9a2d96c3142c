package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
	"sluice/core/vfs"
)

// DescribeLogDirs v0 to v4 (KIP-113, KIP-827): the node's one data directory with the bytes of every partition it holds, and of the disk.
// A replica's lag is 0: what it holds is committed.
func init() { register(35, 0, 4, (*Broker).handleDescribeLogDirs) }

func (b *Broker) handleDescribeLogDirs(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DescribeLogDirsRequest)
	return func(context.Context) kafka.Response {
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

// localSizes lists this node's replicas: all of them when the request names no topics.
func (b *Broker) localSizes(wanted []kmsg.DescribeLogDirsRequestTopic) []kmsg.DescribeLogDirsResponseDirTopic {
	image := b.ctl.Image()
	var out []kmsg.DescribeLogDirsResponseDirTopic
	add := func(t *meta.Topic, indexes []int32) {
		answer := kmsg.NewDescribeLogDirsResponseDirTopic()
		answer.Topic = t.Name
		for _, index := range indexes {
			if part, _, ok := b.ctl.Local(t.ID, index); ok {
				p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
				p.Partition, p.Size = index, part.Bytes()
				answer.Partitions = append(answer.Partitions, p)
			}
		}
		if len(answer.Partitions) > 0 {
			out = append(out, answer)
		}
	}
	if wanted == nil {
		for t := range image.Topics() {
			add(t, allPartitions(t))
		}
		return out
	}
	for _, w := range wanted {
		if t := image.Topic(w.Topic); t != nil {
			add(t, w.Partitions)
		}
	}
	return out
}

func allPartitions(t *meta.Topic) []int32 {
	out := make([]int32, len(t.Partitions))
	for i := range out {
		out[i] = int32(i)
	}
	return out
}
