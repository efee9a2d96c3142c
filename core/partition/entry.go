package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/meta"
)

// An entry of a shard's Raft log, as proposed by its leader:
//
//	offset  size  field
//	0       1     kind
//	1       1     version of the kind's body
//	2       ...   body
//
// The body of an append is laid out by hand, since it is the hot path and its
// batches must be usable where they lie. All integers are big-endian:
//
//	0       4     number of items
//	then per item
//	0       16    topic id
//	16      4     partition index
//	20      1     flags, none defined: 0
//	21      4     n, bytes of batches
//	25      n     record batches v2, concatenated
//
// The other bodies are CBOR arrays. FORMAT.md lists them.
const (
	kindAppend    = 1
	kindCreate    = 2
	kindDelete    = 3
	kindConfigure = 4
	kindStart     = 5

	entryVersion = 1

	entryHeaderBytes  = 2
	appendHeaderBytes = 4
	appendItemBytes   = 25
)

// Append asks for batches to be appended to one partition. The batches of one
// item are accepted or refused together.
type Append struct {
	Key     Key
	Batches []byte // whole, validated record batches v2, concatenated
	Flags   uint8  // none defined yet: 0
}

// LogConfig is what applying needs to know of a topic's configuration. Zero
// values mean the defaults of package commitlog.
type LogConfig struct {
	_                  struct{} `cbor:",toarray"`
	SegmentBytes       int64
	SegmentMs          int64
	IndexIntervalBytes int64
}

// Create makes a partition. It changes nothing where the key exists already.
type Create struct {
	Key       Key
	Name      string // the topic's name; directories are called after it
	EpochBase int32  // leader epoch of a batch = EpochBase + term of its entry
	Config    LogConfig
}

// Start moves the start of a partition's log up to Offset (retention,
// DeleteRecords); -1 means its end. A start never goes back.
type Start struct {
	Key    Key
	Offset int64
}

type createBody struct {
	_         struct{} `cbor:",toarray"`
	Topic     meta.TopicID
	Index     int32
	Name      string
	EpochBase int32
	Config    LogConfig
}

type deleteBody struct {
	_     struct{} `cbor:",toarray"`
	Topic meta.TopicID
	Index int32
}

type configureBody struct {
	_      struct{} `cbor:",toarray"`
	Topic  meta.TopicID
	Index  int32
	Config LogConfig
}

type startItem struct {
	_      struct{} `cbor:",toarray"`
	Topic  meta.TopicID
	Index  int32
	Offset int64
}

type startBody struct {
	_     struct{} `cbor:",toarray"`
	Items []startItem
}

// EncodeAppend returns one entry for all batches of a request that go to this
// shard. Items are applied in order. The batches are copied.
func EncodeAppend(items []Append) []byte {
	size := entryHeaderBytes + appendHeaderBytes
	for i := range items {
		size += appendItemBytes + len(items[i].Batches)
	}
	e := make([]byte, 0, size)
	e = append(e, kindAppend, entryVersion)
	e = binary.BigEndian.AppendUint32(e, uint32(len(items)))
	for i := range items {
		it := &items[i]
		e = append(e, it.Key.Topic[:]...)
		e = binary.BigEndian.AppendUint32(e, uint32(it.Key.Index))
		e = append(e, it.Flags)
		e = binary.BigEndian.AppendUint32(e, uint32(len(it.Batches)))
		e = append(e, it.Batches...)
	}
	return e
}

// EncodeCreate returns the entry that creates a partition.
func EncodeCreate(c Create) []byte {
	return encodeBody(kindCreate, createBody{
		Topic: c.Key.Topic, Index: c.Key.Index,
		Name: c.Name, EpochBase: c.EpochBase, Config: c.Config,
	})
}

// EncodeDelete returns the entry that deletes a partition. Deleting one that
// does not exist is a success.
func EncodeDelete(k Key) []byte {
	return encodeBody(kindDelete, deleteBody{Topic: k.Topic, Index: k.Index})
}

// EncodeConfigure returns the entry that changes a partition's LogConfig.
func EncodeConfigure(k Key, c LogConfig) []byte {
	return encodeBody(kindConfigure, configureBody{Topic: k.Topic, Index: k.Index, Config: c})
}

// EncodeStart returns the entry that moves the starts of some partitions' logs.
func EncodeStart(items []Start) []byte {
	body := startBody{Items: make([]startItem, len(items))}
	for i, it := range items {
		body.Items[i] = startItem{Topic: it.Key.Topic, Index: it.Key.Index, Offset: it.Offset}
	}
	return encodeBody(kindStart, body)
}

func encodeBody(kind byte, body any) []byte {
	b, err := cbor.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("BUG: encode entry of kind %d: %v", kind, err))
	}
	return append([]byte{kind, entryVersion}, b...)
}

// splitEntry checks kind and version and returns the body, which aliases data.
func splitEntry(data []byte) (kind byte, body []byte, err error) {
	if len(data) < entryHeaderBytes {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrInvalidEntry, len(data))
	}
	if kind = data[0]; !known(kind) {
		return 0, nil, fmt.Errorf("%w: kind %d", ErrInvalidEntry, kind)
	}
	if v := data[1]; v == 0 || v > entryVersion {
		return 0, nil, fmt.Errorf("entry of kind %d has version %d: %w", kind, v, ErrVersion)
	}
	return kind, data[entryHeaderBytes:], nil
}

// appendItems walks over the body of an append entry without allocating.
type appendItems struct {
	rest  []byte
	count int
}

func decodeAppend(body []byte) (appendItems, error) {
	if len(body) < appendHeaderBytes {
		return appendItems{}, fmt.Errorf("%w: append of %d bytes", ErrInvalidEntry, len(body))
	}
	n := int64(binary.BigEndian.Uint32(body))
	body = body[appendHeaderBytes:]
	if n*appendItemBytes > int64(len(body)) {
		return appendItems{}, fmt.Errorf("%w: %d items in %d bytes", ErrInvalidEntry, n, len(body))
	}
	items := appendItems{rest: body, count: int(n)}
	return items, items.check()
}

// check walks to the end once, so that a cut entry is refused before any of its
// items is applied.
func (it appendItems) check() error {
	for range it.count {
		if _, err := it.next(); err != nil {
			return err
		}
	}
	if len(it.rest) != 0 {
		return fmt.Errorf("%w: %d bytes after the last item", ErrInvalidEntry, len(it.rest))
	}
	return nil
}

// next returns the next item; its batches alias the entry.
func (it *appendItems) next() (Append, error) {
	if len(it.rest) < appendItemBytes {
		return Append{}, fmt.Errorf("%w: item cut short", ErrInvalidEntry)
	}
	var a Append
	copy(a.Key.Topic[:], it.rest)
	a.Key.Index = int32(binary.BigEndian.Uint32(it.rest[16:]))
	a.Flags = it.rest[20]
	n := int64(binary.BigEndian.Uint32(it.rest[21:]))
	if n > int64(len(it.rest)-appendItemBytes) {
		return Append{}, fmt.Errorf("%w: %d bytes of batches, %d left", ErrInvalidEntry, n, len(it.rest)-appendItemBytes)
	}
	if a.Flags != 0 {
		return Append{}, fmt.Errorf("append item has flags %#x: %w", a.Flags, ErrVersion)
	}
	a.Batches = it.rest[appendItemBytes : appendItemBytes+n : appendItemBytes+n]
	it.rest = it.rest[appendItemBytes+n:]
	return a, nil
}

func decodeBody(body []byte, into any) error {
	if err := cbor.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidEntry, err)
	}
	return nil
}
