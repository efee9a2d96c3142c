package workload

import (
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kmsgOffsetCommit keeps the answer to one commit of one topic.
type kmsgOffsetCommit struct{ codes map[int32]int16 }

func (k *kmsgOffsetCommit) keep(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
	if err != nil || resp == nil {
		return
	}
	k.codes = map[int32]int16{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			k.codes[p.Partition] = p.ErrorCode
		}
	}
}

// ok tells whether a partition's offset is known to be committed.
func (k *kmsgOffsetCommit) ok(partition int32) bool {
	code, answered := k.codes[partition]
	return answered && code == 0
}
