package kafka

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// appendResponse appends the frame of a response to dst. Where payloads belong into it is returned in cuts, relative to dst's start; the frame's length counts them.
// The header is version 1 (correlation id, tags) for flexible responses and version 0 for all others and for ApiVersions, which is always read before versions are known.
func appendResponse(dst []byte, correlationID int32, resp Response) ([]byte, []Cut, error) {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(correlationID))
	if resp.IsFlexible() && resp.Key() != keyApiVersions {
		dst = append(dst, 0)
	}
	var cuts []Cut
	if s, ok := resp.(Streamer); ok {
		dst, cuts = s.AppendStream(dst)
	} else {
		dst = resp.AppendTo(dst)
	}
	size := int64(len(dst) - start - lengthBytes)
	for _, c := range cuts {
		size += c.Payload.Len()
	}
	if size > math.MaxInt32 {
		return nil, nil, fmt.Errorf("response of %s has %d bytes, more than a frame can say", kmsg.NameForKey(resp.Key()), size)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(size))
	return dst, cuts, nil
}

// writeFrame writes a frame and its payloads. beforeWrite is called before each write that may take long; small payloads are left to w's buffer.
func writeFrame(w *frameWriter, frame []byte, cuts []Cut) (int64, error) {
	at, sent := 0, int64(0)
	for _, c := range cuts {
		if _, err := w.Write(frame[at:c.At]); err != nil {
			return sent, err
		}
		sent += int64(c.At - at)
		at = c.At
		n, err := w.payload(c.Payload)
		if sent += n; err != nil {
			return sent, err
		}
		if n != c.Payload.Len() {
			return sent, fmt.Errorf("payload wrote %d of %d bytes: %w", n, c.Payload.Len(), io.ErrShortWrite)
		}
	}
	_, err := w.Write(frame[at:])
	return sent + int64(len(frame)-at), err
}
