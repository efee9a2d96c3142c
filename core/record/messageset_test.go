package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// oldMessage encodes a message of magic 0 or 1 by franz-go's definitions.
func oldMessage(magic int8, attributes int8, offset, timestamp int64, key, value []byte) []byte {
	if magic == 0 {
		m := kmsg.MessageV0{Offset: offset, Magic: 0, Attributes: attributes, Key: key, Value: value}
		return sealOld(m.AppendTo(nil))
	}
	m := kmsg.MessageV1{Offset: offset, Magic: 1, Attributes: attributes, Timestamp: timestamp, Key: key, Value: value}
	return sealOld(m.AppendTo(nil))
}

func sealOld(p []byte) []byte {
	binary.BigEndian.PutUint32(p[8:], uint32(len(p)-12))
	binary.BigEndian.PutUint32(p[12:], crc32.ChecksumIEEE(p[16:]))
	return p
}

func oldSet(magic int8, timestamp int64, n int) []byte {
	var set []byte
	for i := range n {
		set = append(set, oldMessage(magic, 0, int64(i), timestamp+int64(i), fmt.Appendf(nil, "k%d", i), fmt.Appendf(nil, "value %d", i))...)
	}
	return set
}

func TestFromMessageSet(t *testing.T) {
	for magic := int8(0); magic <= 1; magic++ {
		want := make([]full, 3)
		for i := range want {
			want[i] = full{Offset: int64(i), Timestamp: int64(500 + i), Key: fmt.Appendf(nil, "k%d", i), Value: fmt.Appendf(nil, "value %d", i)}
			if magic == 0 {
				want[i].Timestamp = NoTimestamp
			}
		}
		for _, c := range codecs[:4] {
			set := oldSet(magic, 500, 3)
			if c != None {
				inner, err := compress(nil, c, 0, set)
				if err != nil {
					t.Fatal(err)
				}
				set = oldMessage(magic, int8(c), 2, 502, nil, inner)
			}
			b, err := FromMessageSet(set)
			if err != nil {
				t.Fatalf("magic %d %s: %v", magic, c, err)
			}
			if err := b.Validate(); err != nil || b.Codec() != c {
				t.Fatal(err, b.Codec())
			}
			if diff := cmp.Diff(want, collect(t, b)); diff != "" {
				t.Fatalf("magic %d %s: %s", magic, c, diff)
			}
		}
	}
}

func TestMessageSetNulls(t *testing.T) {
	b, err := FromMessageSet(append(oldMessage(1, 0, 0, 9, nil, nil), oldMessage(1, 0, 1, 8, []byte{}, []byte{})...))
	if err != nil {
		t.Fatal(err)
	}
	want := []full{{Timestamp: 9}, {Offset: 1, Timestamp: 8, Key: []byte{}, Value: []byte{}}}
	if diff := cmp.Diff(want, collect(t, b)); diff != "" {
		t.Fatal(diff)
	}
}

func TestWrapperWithLogAppendTime(t *testing.T) {
	inner, err := compress(nil, Gzip, 0, oldSet(1, 500, 2))
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromMessageSet(oldMessage(1, int8(Gzip)|attrLogAppend, 1, 9000, nil, inner))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range collect(t, b) {
		if r.Timestamp != 9000 {
			t.Fatalf("timestamp %d is not the wrapper's", r.Timestamp)
		}
	}
}

// TestLZ4OfMagic0 reads a frame with the header checksum as old clients
// computed it: over the frame's magic too.
func TestLZ4OfMagic0(t *testing.T) {
	inner, err := compress(nil, LZ4, 0, oldSet(0, 0, 2))
	if err != nil {
		t.Fatal(err)
	}
	inner[6] = byte(xxh32Short(inner[:6]) >> 8)
	if _, err := decompress(nil, LZ4, inner); err == nil {
		t.Fatal("test is wrong: the header is good")
	}
	b, err := FromMessageSet(oldMessage(0, int8(LZ4), 1, 0, nil, inner))
	if err != nil || len(collect(t, b)) != 2 {
		t.Fatal(err)
	}
}

func TestMessageSetRefuses(t *testing.T) {
	good := oldSet(1, 1, 2)
	wrapper := func(c Codec, inner []byte) []byte {
		p, err := compress(nil, c, 0, inner)
		if err != nil {
			t.Fatal(err)
		}
		return oldMessage(1, int8(c), 0, 0, nil, p)
	}
	flipped := append([]byte{}, good...)
	flipped[30] ^= 1
	for name, tc := range map[string]struct {
		set  []byte
		want error
	}{
		"empty":             {nil, ErrInvalid},
		"cut":               {good[:len(good)-1], ErrCorrupt},
		"CRC":               {flipped, ErrCorrupt},
		"mixed":             {append(oldSet(0, 1, 1), oldSet(1, 1, 1)...), ErrInvalid},
		"v2":                {sealOld(append([]byte{}, sample(None, "a")...)), ErrMagic},
		"zstd":              {wrapper(Zstd, good), ErrCodec},
		"nested":            {wrapper(Gzip, wrapper(Gzip, good)), ErrInvalid},
		"other magic in it": {wrapper(Gzip, oldSet(0, 1, 1)), ErrInvalid},
		"not compressed":    {oldMessage(1, int8(Gzip), 0, 0, nil, []byte("no gzip")), ErrInvalid},
		"empty wrapper":     {oldMessage(1, int8(Snappy), 0, 0, nil, nil), ErrInvalid},
	} {
		if b, err := FromMessageSet(tc.set); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v %v, want %v", name, b, err, tc.want)
		}
	}
}
