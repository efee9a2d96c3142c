package partition

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAppendEntryRoundTrip(t *testing.T) {
	want := []Append{
		{Key: Key{topicID("a"), 0}, Batches: []byte("one")},
		{Key: Key{topicID("b"), 1 << 30}, Batches: []byte{}},
		{Key: Key{topicID("a"), 2}, Batches: bytes.Repeat([]byte("x"), 5000)},
	}
	kind, body, err := splitEntry(EncodeAppend(want))
	if err != nil || kind != kindAppend {
		t.Fatalf("kind %d, %v", kind, err)
	}
	items, err := decodeAppend(body)
	if err != nil {
		t.Fatal(err)
	}
	var got []Append
	for range items.count {
		it, err := items.next()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, it)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDecodedItemsDoNotReachIntoEachOther(t *testing.T) {
	e := EncodeAppend([]Append{{Batches: []byte("aa")}, {Batches: []byte("bb")}})
	items, err := decodeAppend(e[entryHeaderBytes:])
	if err != nil {
		t.Fatal(err)
	}
	first, _ := items.next()
	_ = append(first.Batches, "overwritten by an append"...)
	second, err := items.next()
	if err != nil || string(second.Batches) != "bb" {
		t.Errorf("second item %q, %v", second.Batches, err)
	}
}

func TestEveryCutEntryIsRefused(t *testing.T) {
	whole := EncodeAppend([]Append{{Key: Key{topicID("a"), 1}, Batches: []byte("one")}, {Batches: []byte("two")}})
	for n := range len(whole) {
		if err := decodeAny(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes decoded", n, len(whole))
		}
	}
	for _, e := range [][]byte{
		EncodeCreate(Create{Name: "t"}), EncodeDelete(Key{}), EncodeConfigure(Key{}, LogConfig{}), EncodeStart([]Start{{}}),
	} {
		for n := range len(e) {
			if err := decodeAny(e[:n]); !errors.Is(err, ErrInvalidEntry) {
				t.Errorf("%d of %d bytes of kind %d: %v", n, len(e), e[0], err)
			}
		}
		if err := decodeAny(e); err != nil {
			t.Errorf("kind %d: %v", e[0], err)
		}
	}
}

func TestNewerEntryIsRefused(t *testing.T) {
	e := EncodeDelete(Key{})
	e[1]++
	if err := decodeAny(e); !errors.Is(err, ErrVersion) {
		t.Errorf("newer version: %v", err)
	}
	e = EncodeAppend([]Append{{Flags: 1}})
	if err := decodeAny(e); !errors.Is(err, ErrVersion) {
		t.Errorf("unknown flag: %v", err)
	}
}

// decodeAny decodes as apply does.
func decodeAny(data []byte) error {
	kind, body, err := splitEntry(data)
	if err != nil {
		return err
	}
	switch kind {
	case kindAppend:
		_, err = decodeAppend(body)
	case kindCreate:
		err = decodeBody(body, new(createBody))
	case kindDelete:
		err = decodeBody(body, new(deleteBody))
	case kindConfigure:
		err = decodeBody(body, new(configureBody))
	case kindStart:
		err = decodeBody(body, new(startBody))
	}
	return err
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(EncodeAppend([]Append{{Key: Key{topicID("a"), 1}, Batches: testBatch{producer: -1, count: 2}.build()}}))
	f.Add(EncodeCreate(Create{Key: Key{topicID("a"), 1}, Name: "t"}))
	f.Add(EncodeStart([]Start{{Key{topicID("a"), 1}, 5}}))
	f.Add([]byte{kindAppend, entryVersion, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		_ = decodeAny(data)
		if !bytes.Equal(before, data) {
			t.Error("decoding changed the entry")
		}
	})
}
