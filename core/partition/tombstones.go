package partition

import "sluice/core/meta"

// MaxTombstones bounds the deleted partitions that a shard remembers, the oldest
// first out. They guard against a create entry that was on its way when the
// partition was deleted, a matter of seconds.
const MaxTombstones = 10_000

// tombstones remembers deleted keys: a partition lives once.
type tombstones struct {
	known map[Key]struct{}
	order []Key // the oldest first; what is in it is never changed, so that a checkpoint can hold a part
}

func (t *tombstones) has(k Key) bool {
	_, ok := t.known[k]
	return ok
}

func (t *tombstones) add(k Key) {
	if t.known == nil {
		t.known = make(map[Key]struct{})
	}
	if t.has(k) {
		return
	}
	t.known[k] = struct{}{}
	t.order = append(t.order, k)
	for len(t.order) > MaxTombstones {
		delete(t.known, t.order[0])
		t.order = t.order[1:]
	}
}

// savedKey is a key in a manifest.
type savedKey struct {
	_     struct{} `cbor:",toarray"`
	Topic meta.TopicID
	Index int32
}

func saveKeys(keys []Key) []savedKey {
	saved := make([]savedKey, len(keys))
	for i, k := range keys {
		saved[i] = savedKey{Topic: k.Topic, Index: k.Index}
	}
	return saved
}

func loadTombstones(saved []savedKey) tombstones {
	var t tombstones
	for _, k := range saved {
		t.add(Key{k.Topic, k.Index})
	}
	return t
}
