package mqtt

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowReadersShareABound lets many subscribers stop reading: together they hold no more than their share of memory, and one that becomes slow
// later still gets something.
func TestSlowReadersShareABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{config: Default(), metrics: newMeters()}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		defer s.cancel()
		o := &outbound{msg: &message{Topic: "t", Payload: make([]byte, 10<<10)}}
		var conns []*conn
		for range 300 {
			_, ours := net.Pipe()
			c := newConn(s, ours)
			conns = append(conns, c)
			for range 300 {
				c.publish(o, false, true)
			}
		}
		synctest.Wait()
		if n := s.waiting.Load(); n < outBytesTotal/2 || n > outBytesTotal+outBytesMax+int64(len(conns))*(outBytesMin+20<<10) {
			t.Errorf("%d bytes wait for slow readers", n)
		}
		if !conns[len(conns)-1].publish(o, false, true) && len(conns[len(conns)-1].w.out) == 0 {
			t.Error("the last one got nothing")
		}
		for _, c := range conns {
			c.close()
		}
		synctest.Wait()
		if n := s.waiting.Load(); n != 0 {
			t.Errorf("%d bytes are still counted", n)
		}
	})
}

func TestLightDevicesDoNotWait(t *testing.T) {
	c, now := &conn{}, time.Unix(1000, 0)
	for range 100 {
		if now = now.Add(lightPeriod / 10); !c.light(1000, now) {
			t.Fatal("a device with 10 kB a second has to wait")
		}
	}
	for range lightBytes / 1000 {
		c.light(1000, now)
	}
	if c.light(1000, now) {
		t.Error("a flood does not have to wait")
	}
	if !c.light(1000, now.Add(2*lightPeriod)) {
		t.Error("a device that was a flood once has to wait for ever")
	}
}
