package partition

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/meta"
)

// The entries that move a partition from one shard to another. Each names its move, so that one
// that comes late, or twice, changes nothing.
const (
	kindFreeze   = 10 // in the source: no appends from here on
	kindUnfreeze = 11 // in the source: the move was called off
	kindAdopt    = 12 // in the target: the partition lives here, with the state that it was frozen in
	kindDrop     = 13 // in both: what the move has left behind goes
)

func known(kind byte) bool {
	return kind >= kindAppend && kind <= kindSwap || kind >= kindFreeze && kind <= kindDrop
}

// moveBody is the body of freeze, unfreeze and drop.
type moveBody struct {
	_     struct{} `cbor:",toarray"`
	Topic meta.TopicID
	Index int32
	Move  uint64
}

type adoptBody struct {
	_         struct{} `cbor:",toarray"`
	Move      uint64
	EpochBase int32
	Section   []byte
}

// Adopt makes a partition of another shard one of this shard.
type Adopt struct {
	Move uint64
	// EpochBase must be such that leader epochs go on rising.
	EpochBase int32
	// Section is what Frozen returned in the source.
	Section []byte
}

// EncodeFreeze returns the entry that stops appends to a partition, for the move of that id.
func EncodeFreeze(k Key, move uint64) []byte { return encodeMove(kindFreeze, k, move) }

// EncodeUnfreeze returns the entry that takes a freeze for that move back.
func EncodeUnfreeze(k Key, move uint64) []byte { return encodeMove(kindUnfreeze, k, move) }

// EncodeDrop returns the entry that removes what a move has left behind: the frozen partition in its
// source, or what was adopted in its target.
func EncodeDrop(k Key, move uint64) []byte { return encodeMove(kindDrop, k, move) }

// EncodeAdopt returns the entry that adopts a partition. It may be large: a producer takes up to 200 bytes.
func EncodeAdopt(a Adopt) []byte {
	return encodeBody(kindAdopt, adoptBody{Move: a.Move, EpochBase: a.EpochBase, Section: a.Section})
}

func encodeMove(kind byte, k Key, move uint64) []byte {
	return encodeBody(kind, moveBody{Topic: k.Topic, Index: k.Index, Move: move})
}

func (s *Set) claimOf(p *Partition) claim {
	return claim{key: p.key, shard: s.o.Shard, move: p.arrived}
}

func (s *Set) applyMove(kind byte, body []byte) any {
	if kind == kindAdopt {
		return s.applyAdopt(body)
	}
	var b moveBody
	if err := decodeBody(body, &b); err != nil {
		return s.refuseEntry(err)
	}
	if b.Move == 0 {
		return s.refuseEntry(fmt.Errorf("%w: a move without an id", ErrInvalidEntry))
	}
	p := s.partitions[Key{b.Topic, b.Index}]
	if p == nil {
		return ErrUnknownPartition
	}
	switch kind {
	case kindFreeze:
		return s.freeze(p, b.Move)
	case kindUnfreeze:
		if p.frozen.Load() == b.Move {
			s.setFrozen(p, 0)
			s.touch(p)
		}
	case kindDrop:
		s.dropMoved(p, b.Move)
	}
	return nil
}

// freeze stops appends. A later move takes the place of an earlier one, which is over then.
func (s *Set) freeze(p *Partition, move uint64) any {
	if p.frozen.Load() > move || p.arrived >= move {
		return ErrConflict
	}
	s.write(p) // what was accepted before belongs to the frozen state
	s.setFrozen(p, move)
	s.touch(p)
	return nil
}

// setFrozen keeps count, so that who looks for frozen partitions need not look at all.
func (s *Set) setFrozen(p *Partition, move uint64) {
	if was := p.frozen.Swap(move); (was != 0) != (move != 0) {
		if move != 0 {
			s.frozen.Add(1)
		} else {
			s.frozen.Add(-1)
		}
	}
}

func (s *Set) dropMoved(p *Partition, move uint64) {
	if p.frozen.Load() != move && p.arrived != move {
		return
	}
	s.deleted.add(p.key)
	if err := s.drop(p); err != nil {
		s.fail(err)
	}
}

// applyAdopt makes a partition of what lies in its staging directory, which was made durable there.
// A replica that lacks some of it is incomplete, as after a checkpoint from elsewhere.
func (s *Set) applyAdopt(body []byte) any {
	var b adoptBody
	if err := decodeBody(body, &b); err != nil {
		return s.refuseEntry(err)
	}
	sec, err := decodeSection(b.Section)
	if err != nil {
		return s.refuseEntry(fmt.Errorf("%w: %w", ErrInvalidEntry, err))
	}
	if b.Move == 0 || b.EpochBase < 0 {
		return s.refuseEntry(fmt.Errorf("%w: adopt by move %d with epoch base %d", ErrInvalidEntry, b.Move, b.EpochBase))
	}
	if p := s.partitions[sec.key()]; p != nil && p.arrived == b.Move {
		return nil
	} else if p != nil {
		return ErrConflict
	}
	sec.EpochBase, sec.arrived, sec.frozen = b.EpochBase, b.Move, 0
	p, missing, err := s.open(sec, true)
	if err != nil {
		s.fail(err)
		return nil
	}
	s.catchUp.add(incomplete{p: p, missing: missing})
	return nil
}

// Frozen returns the state of a partition that is frozen for that move: what its target adopts. The
// error is ErrUnknownPartition or ErrNotFrozen.
func (s *Set) Frozen(k Key, move uint64) (section []byte, err error) {
	p, ok := s.Get(k)
	if !ok {
		return nil, ErrUnknownPartition
	}
	if p.frozen.Load() != move {
		return nil, ErrNotFrozen
	}
	p.state.Lock()
	defer p.state.Unlock()
	return capture(p).encode(), nil
}

// FrozenPartition is a partition with the move that it is frozen for.
type FrozenPartition struct {
	Key  Key
	Move uint64
}

// AllFrozen returns the frozen partitions, ordered by key.
func (s *Set) AllFrozen() []FrozenPartition {
	if s.frozen.Load() == 0 {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []FrozenPartition
	for k, p := range s.partitions {
		if move := p.frozen.Load(); move != 0 {
			list = append(list, FrozenPartition{k, move})
		}
	}
	slices.SortFunc(list, func(a, b FrozenPartition) int { return compareKeys(a.Key, b.Key) })
	return list
}

// Frozen tells whether the partition takes no appends, because it is being handed to another shard:
// what its log ends with may be old then.
func (p *Partition) Frozen() bool { return p.frozen.Load() != 0 }

// EpochBase is what the term of an entry is added to, for the leader epoch of its batches.
func (p *Partition) EpochBase() int32 { return p.epochBase.Load() }

// Arrived returns the move that brought the partition into its shard, 0 when it was created there.
func (p *Partition) Arrived() uint64 { return p.arrived }

// savedMove is what a manifest says of a partition that was moved or is frozen.
type savedMove struct {
	Topic   meta.TopicID
	Index   int32
	Arrived uint64
	Frozen  uint64
}

func (m savedMove) key() Key { return Key{m.Topic, m.Index} }

func sortedMoves(moves []savedMove) []savedMove {
	slices.SortFunc(moves, func(a, b savedMove) int { return compareKeys(a.key(), b.key()) })
	return moves
}

func loadMoves(sections []*section, moves []savedMove) {
	for _, sec := range sections {
		i, ok := slices.BinarySearchFunc(moves, sec.key(), func(m savedMove, k Key) int { return compareKeys(m.key(), k) })
		if ok {
			sec.arrived, sec.frozen = moves[i].Arrived, moves[i].Frozen
		}
	}
}

// headerV2 is manifestHeader with moves, and is used by version 3 too. A manifest without any, and without compacted partitions, is written as version 1, which older
// releases read.
type headerV2 struct {
	_          struct{} `cbor:",toarray"`
	Version    uint16
	Shard      meta.ShardID
	Origin     []byte
	Partitions int64
	Deleted    []savedKey
	Moves      []moveInHeader
}

type moveInHeader struct {
	_       struct{} `cbor:",toarray"`
	Topic   meta.TopicID
	Index   int32
	Arrived uint64
	Frozen  uint64
}

func (h manifestHeader) encode() []byte {
	h.Version = 1
	var body any = h
	if len(h.moves) > 0 || h.compacted {
		v2 := headerV2{Version: 2, Moves: []moveInHeader{}, Shard: h.Shard, Origin: h.Origin, Partitions: h.Partitions, Deleted: h.Deleted}
		if h.compacted {
			v2.Version = 3
		}
		for _, m := range h.moves {
			v2.Moves = append(v2.Moves, moveInHeader{Topic: m.Topic, Index: m.Index, Arrived: m.Arrived, Frozen: m.Frozen})
		}
		body = v2
	}
	b, err := cbor.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("BUG: encode manifest header: %v", err))
	}
	return b
}

// arrayOf6 begins a CBOR array of six elements: a header of version 2.
const arrayOf6 = 0x86

func (h *manifestHeader) decode(body []byte) error {
	if !bytes.HasPrefix(body, []byte{arrayOf6}) {
		return cbor.Unmarshal(body, h)
	}
	var v2 headerV2
	if err := sectionDecoding.Unmarshal(body, &v2); err != nil {
		return err
	}
	*h = manifestHeader{Version: v2.Version, Shard: v2.Shard, Origin: v2.Origin, Partitions: v2.Partitions, Deleted: v2.Deleted}
	for _, m := range v2.Moves {
		h.moves = append(h.moves, savedMove{m.Topic, m.Index, m.Arrived, m.Frozen})
	}
	if !slices.IsSortedFunc(h.moves, func(a, b savedMove) int { return cmp.Or(compareKeys(a.key(), b.key()), -1) }) {
		return fmt.Errorf("%w: moves are not in order", ErrCorruptManifest)
	}
	return nil
}
