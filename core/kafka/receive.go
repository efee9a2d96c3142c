package kafka

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Frames of Produce requests come from pools by size, as they are large, frequent and free again as soon as they are proposed.
const (
	pooledFrameBitsMin = 12 // 4 KiB
	pooledFrameBitsMax = 23 // 8 MiB; larger ones are rare
	// arrivalCheckPeriod is how often a frame that does not come is looked at.
	arrivalCheckPeriod = time.Second
)

var framePools [pooledFrameBitsMax + 1]sync.Pool // of *[]byte with capacity 1 << index

// frame is a read frame: what follows the fixed header, the buffer it lies in, and the memory counted for it.
type frame struct {
	fixedHeader
	rest   []byte
	pooled *[]byte
	held   hold
}

// readFrame reads one frame. The length and key are checked before memory is taken for it.
func (c *Conn) readFrame(ctx, parent context.Context, br *bufio.Reader) (frame, error) {
	var head [lengthBytes + fixedHeaderBytes]byte
	a := arrival{c: c, parent: parent, br: br}
	a.begin(lengthBytes+fixedHeaderBytes, nil)
	if err := a.fill(head[:lengthBytes]); err != nil {
		return frame{}, fmt.Errorf("read frame length: %w", err)
	}
	length := int32(binary.BigEndian.Uint32(head[:]))
	if err := checkLength(length, c.server.opts.Authenticated(c)); err != nil {
		return frame{}, err
	}
	if err := a.fill(head[lengthBytes:]); err != nil {
		return frame{}, fmt.Errorf("read frame header: %w", err)
	}
	f := frame{fixedHeader: parseFixedHeader(head[lengthBytes:])}
	if err := checkKey(f.key, length); err != nil {
		return frame{}, err
	}
	if _, ok := c.server.opts.Versions.Get(f.key); !ok {
		return frame{}, fmt.Errorf("%w: %d (%s) v%d", ErrUnknownKey, f.key, kmsg.NameForKey(f.key), f.version)
	}
	if err := c.readRest(ctx, &a, &f, int(length)-fixedHeaderBytes); err != nil {
		f.release()
		return frame{}, fmt.Errorf("read %d bytes of a frame: %w", length, err)
	}
	c.server.metrics.received.Add(int(length) + lengthBytes)
	return f, nil
}

// readRest reads what follows the fixed header, taking memory as the bytes come (see lanes).
func (c *Conn) readRest(ctx context.Context, a *arrival, f *frame, size int) error {
	l := c.server.lanes
	a.begin(size, nil)
	if err := a.more(f, min(size, unmeteredFrameBytes)); err != nil || size <= unmeteredFrameBytes {
		return err
	}
	if err := f.held.exchange(ctx, l.small, int64(min(size, smallFrameBytes))); err != nil {
		return err
	}
	a.begin(size, &f.held)
	if err := a.more(f, min(size, smallFrameBytes)); err != nil {
		return err
	}
	if size > smallFrameBytes {
		if err := f.held.exchange(ctx, l.of(size), int64(size)); err != nil {
			return err
		}
		a.begin(size, &f.held)
		// A large frame's memory is taken when a sixteenth of it is there.
		for n := len(f.rest); n < size; {
			n = min(16*n, size)
			if err := a.more(f, n); err != nil {
				return err
			}
		}
	}
	if f.key == keyProduce {
		return nil
	}
	return f.held.exchange(ctx, l.control, l.control.share(weight(f.key, size)))
}

// frameBuffer returns a buffer of that size, and its pooled form when it has to be given back.
func frameBuffer(key int16, size int) ([]byte, *[]byte) {
	class := max(bits.Len(uint(max(size, 1)-1)), pooledFrameBitsMin)
	if key != keyProduce || class > pooledFrameBitsMax {
		return make([]byte, size), nil
	}
	p, _ := framePools[class].Get().(*[]byte)
	if p == nil {
		b := make([]byte, 1<<class)
		p = &b
	}
	return (*p)[:size], p
}

func putFrameBuffer(p *[]byte) {
	if p != nil {
		framePools[bits.Len(uint(cap(*p)-1))].Put(p)
	}
}

// release gives a frame's memory back. Nothing of it may be used afterwards.
func (f *frame) release() {
	f.held.release()
	putFrameBuffer(f.pooled)
	f.rest, f.pooled = nil, nil
}

// arrival reads the bytes of a frame as they come, and gives up when they do not.
type arrival struct {
	c        *Conn
	parent   context.Context
	br       *bufio.Reader
	held     *hold
	since    time.Time // when the current hold was taken
	deadline time.Time
	got      int64 // bytes since then
}

// begin starts the clock for a frame of that many bytes: time for its slowest rate, and, while others wait for what it holds, for the contended one.
func (a *arrival) begin(bytes int, held *hold) {
	a.held, a.since, a.got = held, time.Now(), 0
	a.deadline = a.since.Add(frameStallTimeout + time.Duration(bytes)*time.Second/frameBytesPerSecondMin)
}

// more reads until n bytes of the frame are there, moving them to a larger buffer.
func (a *arrival) more(f *frame, n int) error {
	have := len(f.rest)
	buf, pooled := frameBuffer(f.key, n)
	copy(buf, f.rest)
	putFrameBuffer(f.pooled)
	f.rest, f.pooled = buf, pooled
	return a.fill(buf[have:])
}

// fill reads all of p.
func (a *arrival) fill(p []byte) error {
	for len(p) > 0 {
		now := time.Now()
		a.c.nc.SetReadDeadline(earlier(now.Add(arrivalCheckPeriod), a.deadline))
		if a.parent.Err() != nil { // after setting it, as the stop sets it too
			return errStopping
		}
		n, err := a.br.Read(p)
		p, a.got = p[n:], a.got+int64(n)
		switch {
		case err == io.EOF: //nolint:errorlint // a Reader returns it bare
			return io.ErrUnexpectedEOF
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case err != nil && !time.Now().Before(a.deadline):
			return err
		case len(p) > 0 && a.tooSlow(time.Now()):
			return errTooSlow
		}
	}
	return nil
}

// tooSlow says whether a frame is in others' way.
func (a *arrival) tooSlow(now time.Time) bool {
	took := now.Sub(a.since)
	return took > contendedGrace && a.held != nil && a.held.contended() && a.got < int64(took.Seconds()*contendedBytesPerSecond)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
