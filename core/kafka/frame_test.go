package kafka

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// encodeRequest is a request as a client sends it, without the length.
func encodeRequest(req kmsg.Request, correlationID int32, clientID string) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID)).AppendRequest(nil, req, correlationID)[lengthBytes:]
}

func TestDecodeEveryKeyAndVersion(t *testing.T) {
	for key := range int16(100) {
		req := kmsg.RequestForKey(key)
		if req == nil {
			continue
		}
		for v := range req.MaxVersion() + 1 {
			req.SetVersion(v)
			b := encodeRequest(req, 42, "client")
			r, err := decode(parseFixedHeader(b), b[fixedHeaderBytes:])
			if key == 7 && v == 0 {
				continue // ControlledShutdown v0 has a header of its own, and no client sends it
			}
			if err != nil {
				t.Errorf("%s v%d: %v", kmsg.NameForKey(key), v, err)
				continue
			}
			if r.ClientID != "client" || r.CorrelationID != 42 || r.Body.GetVersion() != v {
				t.Errorf("%s v%d: decoded %+v", kmsg.NameForKey(key), v, r)
			}
		}
	}
}

func TestDecodeTruncated(t *testing.T) {
	req := kmsg.NewPtrProduceRequest()
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic = "t"
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = []byte("twelve bytes")
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	for _, v := range []int16{0, 3, 8, 9, 12, 13} {
		req.Version = v
		b := encodeRequest(req, 1, "c")
		for n := fixedHeaderBytes; n < len(b); n++ {
			if _, err := decode(parseFixedHeader(b), b[fixedHeaderBytes:n]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("v%d cut at %d of %d: %v", v, n, len(b), err)
			}
		}
		if _, err := decode(parseFixedHeader(b), b[fixedHeaderBytes:]); err != nil {
			t.Fatalf("v%d whole: %v", v, err)
		}
	}
}

// TestHostileProduce checks that a frame which names very many topics or partitions costs no more memory than itself.
func TestHostileProduce(t *testing.T) {
	const size = 32 << 20
	head := fixedHeader{key: keyProduce, version: 8}
	rest := make([]byte, size)
	binary.BigEndian.PutUint16(rest, 0xffff)     // client id
	binary.BigEndian.PutUint16(rest[2:], 0xffff) // transactional id
	for name, counts := range map[string][2]uint32{
		"topics":     {size / 2, 0},
		"partitions": {1, size / 2},
	} {
		binary.BigEndian.PutUint32(rest[10:], counts[0])
		binary.BigEndian.PutUint16(rest[14:], 0)
		binary.BigEndian.PutUint32(rest[16:], counts[1])
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decode(head, rest)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if grew := after.TotalAlloc - before.TotalAlloc; grew > 1<<20 {
			t.Errorf("%s: allocated %d bytes for garbage", name, grew)
		}
	}
}

func TestCheckLength(t *testing.T) {
	for _, c := range []struct {
		length        int32
		authenticated bool
		ok            bool
	}{
		{-1, true, false}, {0, true, false}, {7, true, false}, {8, true, true}, {frameBytesMax, true, true}, {frameBytesMax + 1, true, false},
		{frameBytesMaxUnauthenticated, false, true}, {frameBytesMaxUnauthenticated + 1, false, false}, {1<<31 - 1, true, false},
	} {
		if err := checkLength(c.length, c.authenticated); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := checkKey(3, controlFrameBytesMax+1); !errors.Is(err, ErrFrameSize) {
		t.Errorf("a Metadata request of %d bytes: %v", controlFrameBytesMax+1, err)
	}
	if err := checkKey(keyProduce, frameBytesMax); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	for key := range int16(93) {
		req := kmsg.RequestForKey(key)
		if req == nil {
			continue
		}
		req.SetVersion(req.MaxVersion())
		f.Add(encodeRequest(req, 1, "c"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < fixedHeaderBytes {
			return
		}
		h := parseFixedHeader(b)
		if req := kmsg.RequestForKey(h.key); req == nil || h.version < 0 || h.version > req.MaxVersion() {
			return
		}
		if h.key == 7 && h.version == 0 {
			return // a header of its own, and no client sends it
		}
		r, err := decode(h, b[fixedHeaderBytes:])
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		// What was decoded can be encoded and decoded again.
		again := encodeRequest(r.Body, r.CorrelationID, r.ClientID)
		if _, err := decode(h, again[fixedHeaderBytes:]); err != nil {
			t.Fatalf("%s v%d: decoded, but not what it encodes to: %v", kmsg.NameForKey(h.key), h.version, err)
		}
	})
}

// FuzzCheckProduce checks that the walk takes exactly what kmsg takes, within its bounds.
func FuzzCheckProduce(f *testing.F) {
	req := kmsg.NewPtrProduceRequest()
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic = "t"
	topic.Partitions = append(topic.Partitions, kmsg.NewProduceRequestTopicPartition())
	req.Topics = append(req.Topics, topic)
	for _, v := range []int16{2, 3, 9, 13} {
		req.Version = v
		f.Add(req.AppendTo(nil), v)
	}
	f.Fuzz(func(t *testing.T, b []byte, v int16) {
		if v < 0 || v > 13 {
			return
		}
		walked := checkProduce(b, v)
		req := kmsg.NewPtrProduceRequest()
		req.Version = v
		if err := req.ReadFrom(b); err == nil && walked != nil && len(b) < producePartitionsMax {
			t.Fatalf("v%d: kmsg reads it, the walk does not: %v", v, walked)
		}
	})
}

func TestSkipTags(t *testing.T) {
	src := kbin.Reader{Src: []byte{2, 0, 1, 'x', 5, 2, 'y', 'z', 9}}
	skipTags(&src)
	if src.Complete() != nil || len(src.Src) != 1 {
		t.Errorf("left %v, %v", src.Src, src.Complete())
	}
}
