package chaos

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// Clock is the process's wall clock, shifted.
type Clock struct{ offset atomic.Int64 }

// Now is time.Now as it would be if somebody had set the machine's clock: the wall reading is shifted, the monotonic one is not.
func (c *Clock) Now() time.Time { return shifted(time.Now(), time.Duration(c.offset.Load())) }

// Set sets how far the clock is off.
func (c *Clock) Set(offset time.Duration) { c.offset.Store(int64(offset)) }

// Offset is how far it is off.
func (c *Clock) Offset() time.Duration { return time.Duration(c.offset.Load()) }

// stamp is how package time lays out a Time: with the highest bit of wall set, 33 bits of seconds and 30 of nanoseconds follow, and ext is
// the monotonic reading. There is no other way to move one reading without the other; a test says when the layout has changed.
type stamp struct {
	wall uint64
	ext  int64
	_    *time.Location
}

const (
	hasMonotonic = 1 << 63
	nsecBits     = 30
	nsecMask     = 1<<nsecBits - 1
)

// shifted moves the wall reading of t by d.
func shifted(t time.Time, d time.Duration) time.Time {
	s := (*stamp)(unsafe.Pointer(&t))
	if s.wall&hasMonotonic == 0 {
		return t.Add(d)
	}
	nsec := int64(s.wall&nsecMask) + int64(d%time.Second)
	sec := int64(s.wall&^hasMonotonic>>nsecBits) + int64(d/time.Second)
	if nsec < 0 {
		nsec, sec = nsec+int64(time.Second), sec-1
	} else if nsec >= int64(time.Second) {
		nsec, sec = nsec-int64(time.Second), sec+1
	}
	s.wall = hasMonotonic | uint64(sec)<<nsecBits | uint64(nsec)
	return t
}
