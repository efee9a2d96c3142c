package partition

import (
	"bytes"
	"cmp"
	"fmt"

	"sluice/core/meta"
)

// Key identifies a partition for ever: a topic that is deleted and created
// again under its old name has another topic id.
type Key struct {
	Topic meta.TopicID
	Index int32
}

// String returns `<topic id>-<index>`.
func (k Key) String() string { return fmt.Sprintf("%s-%d", k.Topic, k.Index) }

// compareKeys orders keys by topic id, then index: the order of a manifest.
func compareKeys(a, b Key) int {
	if c := bytes.Compare(a.Topic[:], b.Topic[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Index, b.Index)
}
