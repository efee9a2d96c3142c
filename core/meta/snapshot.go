package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// A snapshot is a header, a sequence of CBOR items and a checksum (FORMAT.md):
//
//	+---------------+------------+------------+-----+------------+------------------+
//	| "SLUMETA" (7) | version(1) | CBOR item  | ... | CBOR item  | CRC32C, LE (4)   |
//	+---------------+------------+------------+-----+------------+------------------+
//
// Each item is an array of its kind and its body. The checksum covers everything before it.
const (
	snapshotMagic   = "SLUMETA"
	snapshotVersion = 1
	// snapshotBytesMax bounds what Restore reads: some million partitions.
	snapshotBytesMax = 256 << 20
)

// ErrCorrupt is returned when a snapshot is not what WriteSnapshot wrote.
var ErrCorrupt = errors.New("corrupt metadata snapshot")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type itemKind uint8

const (
	itemCluster itemKind = iota + 1
	itemNode
	itemShard
	itemTopic
	itemConfig
	itemRemoval
	itemAnswer
	itemEnd
)

const (
	itemReplicaRemoval itemKind = iota + 20
	itemUnregistered
)

type item struct {
	_    struct{} `cbor:",toarray"`
	Kind itemKind
	Body cbor.RawMessage
}

type clusterItem struct {
	Index         uint64  `cbor:"1,keyasint"`
	ClusterID     string  `cbor:"2,keyasint"`
	NextShard     ShardID `cbor:"3,keyasint"`
	DefaultsIndex uint64  `cbor:"4,keyasint"`
	NextProducer  int64   `cbor:"5,keyasint"`
	Balance       uint64  `cbor:"6,keyasint,omitempty"`
}

type configItem struct {
	Type   int8              `cbor:"1,keyasint"`
	Name   string            `cbor:"2,keyasint"`
	Values map[string]string `cbor:"3,keyasint"`
}

type answerItem struct {
	Request RequestID `cbor:"1,keyasint"`
	Index   uint64    `cbor:"2,keyasint"`
	Result  Result    `cbor:"3,keyasint"`
}

// snapshotWriter collects items and their checksum; the first error stays.
type snapshotWriter struct {
	w   io.Writer
	crc uint32
	err error
}

func (s *snapshotWriter) write(b []byte) {
	if s.err != nil {
		return
	}
	s.crc = crc32.Update(s.crc, castagnoli, b)
	_, s.err = s.w.Write(b)
}

func (s *snapshotWriter) item(k itemKind, body any) {
	raw, err := encoding.Marshal(body)
	if err != nil {
		panic("BUG: encode snapshot item: " + err.Error())
	}
	whole, err := encoding.Marshal(item{Kind: k, Body: raw})
	if err != nil {
		panic("BUG: encode snapshot item: " + err.Error())
	}
	s.write(whole)
}

// WriteSnapshot writes the whole image. Equal images give equal bytes.
func (i *Image) WriteSnapshot(w io.Writer) error {
	s := &snapshotWriter{w: w}
	s.write(append([]byte(snapshotMagic), snapshotVersion))
	s.item(itemCluster, clusterItem{
		Index: i.index, ClusterID: i.clusterID, NextShard: i.nextShard, DefaultsIndex: i.defaultsIndex, NextProducer: i.nextProducer,
		Balance: i.balance,
	})
	for _, n := range i.nodes {
		s.item(itemNode, n)
	}
	for _, shard := range i.shards {
		s.item(itemShard, shard)
	}
	for _, t := range i.topics.all() {
		s.item(itemTopic, t)
	}
	for _, c := range i.configs.all() {
		s.item(itemConfig, configItem{Type: c.resource, Name: c.name, Values: c.values})
	}
	for _, r := range i.removals.all() {
		s.item(itemRemoval, r)
	}
	for _, r := range i.replicaRemovals.all() {
		s.item(itemReplicaRemoval, r)
	}
	for _, server := range i.unregistered {
		s.item(itemUnregistered, server)
	}
	i.writeAnswers(s)
	s.item(itemEnd, nil)
	s.write(binary.LittleEndian.AppendUint32(nil, s.crc))
	if s.err != nil {
		return fmt.Errorf("write metadata snapshot: %w", s.err)
	}
	return nil
}

func (i *Image) writeAnswers(s *snapshotWriter) {
	for index, key := range i.answerOrder.all() {
		a, _ := i.answers.get(key)
		s.item(itemAnswer, answerItem{Request: RequestID([]byte(key)), Index: index, Result: a.result})
	}
}

// ReadSnapshot reads what WriteSnapshot wrote. It returns ErrCorrupt or ErrNewer.
func ReadSnapshot(r io.Reader) (*Image, error) {
	raw, err := io.ReadAll(io.LimitReader(r, snapshotBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("read metadata snapshot: %w", err)
	}
	body, err := checkSnapshot(raw)
	if err != nil {
		return nil, err
	}
	t := &transition{Image: &Image{}, nodesOwned: true, shardsOwned: true}
	dec := decoding.NewDecoder(bytes.NewReader(body))
	for {
		var it item
		if err := dec.Decode(&it); err != nil {
			return nil, fmt.Errorf("read metadata snapshot: %w: %w", ErrCorrupt, err)
		}
		if it.Kind == itemEnd {
			return t.Image, nil
		}
		if err := t.restore(it); err != nil {
			return nil, err
		}
	}
}

func checkSnapshot(raw []byte) (body []byte, err error) {
	const head, tail = len(snapshotMagic) + 1, crc32.Size
	switch {
	case len(raw) > snapshotBytesMax:
		return nil, fmt.Errorf("read metadata snapshot: more than %d bytes: %w", snapshotBytesMax, ErrCorrupt)
	case len(raw) < head+tail || string(raw[:len(snapshotMagic)]) != snapshotMagic:
		return nil, fmt.Errorf("read metadata snapshot: no magic: %w", ErrCorrupt)
	case raw[head-1] > snapshotVersion:
		return nil, fmt.Errorf("read metadata snapshot: version %d: %w", raw[head-1], ErrNewer)
	}
	end := len(raw) - tail
	if crc := crc32.Checksum(raw[:end], castagnoli); crc != binary.LittleEndian.Uint32(raw[end:]) {
		return nil, fmt.Errorf("read metadata snapshot: checksum of %d bytes does not match: %w", end, ErrCorrupt)
	}
	return raw[head:end], nil
}

func unpack[T any](body []byte, use func(T)) error {
	var v T
	if err := decoding.Unmarshal(body, &v); err != nil {
		return fmt.Errorf("read metadata snapshot: %w: %w", ErrCorrupt, err)
	}
	use(v)
	return nil
}

func (t *transition) restore(it item) error {
	switch it.Kind {
	case itemCluster:
		return unpack(it.Body, t.restoreCluster)
	case itemNode:
		return unpack(it.Body, t.putNode)
	case itemShard:
		return unpack(it.Body, func(s *Shard) { t.shards = append(t.shards, s) })
	case itemTopic:
		return unpack(it.Body, t.restoreTopic)
	case itemConfig:
		return unpack(it.Body, func(c configItem) { t.setConfig(c.Type, c.Name, c.Values) })
	case itemRemoval:
		return unpack(it.Body, func(r Removal) { t.removals = t.removals.put(r.key(), r) })
	case itemReplicaRemoval:
		return unpack(it.Body, func(r ReplicaRemoval) { t.replicaRemovals = t.replicaRemovals.put(r.key(), r) })
	case itemUnregistered:
		return unpack(it.Body, func(s Server) { t.unregistered = append(t.unregistered, s) })
	case itemAnswer:
		return unpack(it.Body, t.restoreAnswer)
	}
	return fmt.Errorf("read metadata snapshot: item of kind %d: %w", it.Kind, ErrNewer)
}

func (t *transition) restoreCluster(c clusterItem) {
	t.index, t.clusterID, t.nextShard = c.Index, c.ClusterID, c.NextShard
	t.defaultsIndex, t.nextProducer, t.balance = c.DefaultsIndex, c.NextProducer, c.Balance
}

func (t *transition) restoreTopic(topic *Topic) {
	mod := topic.ModIndex
	t.putTopic(topic)
	topic.ModIndex = mod
	for id := range countShards(topic.shards()) {
		t.shardTopics = t.shardTopics.put(shardTopicKey(id, topic.ID), struct{}{})
	}
	t.restoreMoves(topic)
	t.partitions += len(topic.Partitions)
}

func (t *transition) restoreAnswer(a answerItem) {
	key := string(a.Request[:])
	t.answers = t.answers.put(key, answer{index: a.Index, result: a.Result})
	t.answerOrder = t.answerOrder.put(a.Index, key)
}
