package kafka

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// paceModel is a node with light and heavy clients, in steps of a millisecond.
type paceModel struct {
	p     *pacer
	now   time.Time
	heavy []*heavyModel
	light *client
	feels func(m *paceModel) time.Duration // what a light Produce takes now
	load  meter                            // of all heavy clients
	slow  int                              // light requests over lightLatencyDefault
	sent  int
}

// heavyModel takes piece after piece, at most wants bytes a second.
type heavyModel struct {
	c            *client
	piece, wants int64
	next         time.Time
	took         int64
	held         time.Duration
}

func newPaceModel(feels func(*paceModel) time.Duration) *paceModel {
	m := &paceModel{p: newPacer(lightLatencyDefault), now: time.Unix(1e9, 0), feels: feels}
	m.light = m.p.join(clientKey{id: "light"}, m.now)
	return m
}

func (m *paceModel) add(wants, piece int64) *heavyModel {
	h := &heavyModel{c: m.p.join(clientKey{id: fmt.Sprint("heavy", len(m.heavy))}, m.now), wants: wants, piece: piece}
	m.heavy = append(m.heavy, h)
	return h
}

// run lets that much time pass; the light client asks 20 times a second, if at all.
func (m *paceModel) run(d time.Duration, light bool) {
	for end := m.now.Add(d); m.now.Before(end); m.now = m.now.Add(time.Millisecond) {
		for _, h := range m.heavy {
			for !h.next.After(m.now) {
				wait := m.p.spend(m.now, h.c, h.piece)
				m.load.add(m.now, float64(h.piece))
				h.took += h.piece
				h.held += wait
				h.next = m.now.Add(max(wait, time.Duration(h.piece)*time.Second/time.Duration(h.wants), time.Microsecond))
			}
		}
		if light && m.now.UnixMilli()%50 == 0 {
			m.ask()
		}
	}
}

func (m *paceModel) ask() {
	took := m.feels(m)
	if m.sent++; took > lightLatencyDefault {
		m.slow++
	}
	if wait := m.p.spend(m.now, m.light, requestCost); wait > 0 {
		panic(fmt.Sprintf("the light client is held for %v", wait))
	}
	m.p.felt(m.now, m.light, took)
}

// fastUpTo is a node whose light requests take 2 ms until its heavy clients take more than so many bytes a second.
func fastUpTo(bytes float64) func(*paceModel) time.Duration {
	return func(m *paceModel) time.Duration {
		if m.load.rate(m.now) > bytes {
			return 100 * time.Millisecond
		}
		return 2 * time.Millisecond
	}
}

// TestPaceFollowsWhatLightClientsFeel checks that a flood gets most of what does not disturb others, and that few of their requests are disturbed.
func TestPaceFollowsWhatLightClientsFeel(t *testing.T) {
	for _, mib := range []float64{20, 40, 100} {
		m := newPaceModel(fastUpTo(mib * (1 << 20)))
		m.run(2*time.Second, true)
		flood := m.add(1<<30, 256<<10)
		m.run(10*time.Second, true)
		m.slow, m.sent, flood.took = 0, 0, 0
		m.run(60*time.Second, true)
		rate := float64(flood.took) / 60 / (1 << 20)
		t.Logf("of %v MiB/s the flood takes %.1f; %d of %d requests were slow", mib, rate, m.slow, m.sent)
		if rate < 0.7*mib || rate > 1.1*mib {
			t.Errorf("the flood takes %.1f MiB/s, the node has %v for it", rate, mib)
		}
		if float64(m.slow) > 0.15*float64(m.sent) {
			t.Errorf("%d of %d light requests were slow", m.slow, m.sent)
		}
	}
}

// TestPaceNeedsSomebodyToProtect checks that heavy clients alone are never held, nor beside light ones that feel nothing of them.
func TestPaceNeedsSomebodyToProtect(t *testing.T) {
	alone := newPaceModel(nil)
	flood := alone.add(1<<30, 1<<20)
	if alone.run(10*time.Second, false); flood.held > 0 {
		t.Errorf("a flood that disturbs nobody was held for %v", flood.held)
	}
	// It is light at first, and feels itself.
	for range 100 {
		alone.p.spend(alone.now, alone.light, requestCost)
		alone.p.felt(alone.now, alone.light, time.Second)
		alone.p.spend(alone.now, flood.c, requestCost)
	}
	for range 100 {
		if wait := alone.p.spend(alone.now, alone.light, heavyBytes); wait > 0 {
			t.Fatalf("a client that became heavy is held for %v, for itself", wait)
		}
		alone.now = alone.now.Add(10 * time.Millisecond)
	}
	off := newPaceModel(fastUpTo(20 << 20))
	off.p.target = -1
	flood = off.add(1<<30, 1<<20)
	if off.run(10*time.Second, true); flood.held > 0 {
		t.Errorf("a flood was held for %v, though nobody shall be", flood.held)
	}
	quick := newPaceModel(func(*paceModel) time.Duration { return time.Millisecond })
	quick.run(time.Second, true)
	flood = quick.add(1<<30, 1<<20)
	quick.run(10*time.Second, true) // it begins at paceBytesFirst
	flood.held = 0
	if quick.run(10*time.Second, true); flood.held > 0 {
		t.Errorf("a flood that nobody feels was held for %v after its first seconds", flood.held)
	}
	left := newPaceModel(fastUpTo(20 << 20))
	left.run(time.Second, true)
	flood = left.add(1<<30, 64<<10)
	left.run(5*time.Second, true)
	left.run(paceMemory+paceWaitMax, false)
	flood.held = 0
	if left.run(5*time.Second, false); flood.held > 0 {
		t.Errorf("a flood was held for %v for somebody who has left", flood.held)
	}
}

// TestPaceLeavesSomething checks that heavy clients are still served when light ones go on feeling them.
func TestPaceLeavesSomething(t *testing.T) {
	m := newPaceModel(fastUpTo(paceBytesMin / 2))
	m.run(5*time.Second, true)
	flood := m.add(1<<30, 64<<10)
	m.run(2*time.Second, true)
	flood.took = 0
	m.run(paceDoubt/2, true)
	if rate := float64(flood.took) / (paceDoubt / 2).Seconds(); rate < 0.9*paceBytesMin || rate > 1.1*paceBytesMin {
		t.Errorf("the flood takes %.1f MiB/s, want %d", rate/(1<<20), paceBytesMin>>20)
	}
}

// TestPaceBlamesNobodyForASlowNode checks that heavy clients are let go when holding them has not helped, and that this does not stay so.
func TestPaceBlamesNobodyForASlowNode(t *testing.T) {
	slow := true
	m := newPaceModel(func(m *paceModel) time.Duration {
		if slow {
			return 100 * time.Millisecond
		}
		return fastUpTo(20 << 20)(m)
	})
	flood := m.add(1<<30, 256<<10)
	m.run(30*time.Second, true)
	flood.took = 0
	m.run(30*time.Second, true)
	if rate := float64(flood.took) / 30; rate < 10*paceBytesMin {
		t.Errorf("the flood is held to %.1f MiB/s, though light requests take as long without it", rate/(1<<20))
	}
	slow = false
	flood.wants = 1 // for a while it wants nothing
	m.run(20*time.Second, true)
	flood.wants, flood.next = 1<<30, m.now
	m.run(10*time.Second, true)
	m.slow, m.sent = 0, 0
	m.run(30*time.Second, true)
	if float64(m.slow) > 0.15*float64(m.sent) {
		t.Errorf("%d of %d light requests were slow once the node was quick again", m.slow, m.sent)
	}
}

// TestPaceMeasuresByQuietTimes checks that a slow disk is not taken for a flood's doing.
func TestPaceMeasuresByQuietTimes(t *testing.T) {
	m := newPaceModel(func(*paceModel) time.Duration { return 40 * time.Millisecond })
	m.run(5*time.Second, true)
	flood := m.add(30<<20, 64<<10)
	m.run(5*time.Second, true)
	flood.held = 0
	if m.run(5*time.Second, true); flood.held > 0 {
		t.Errorf("held for %v, though nothing takes longer than without it", flood.held)
	}
}

// TestPaceSharesAmongHeavy checks that a client which takes less than its part of the rate does not wait for one that wants all.
func TestPaceSharesAmongHeavy(t *testing.T) {
	m := newPaceModel(fastUpTo(20 << 20))
	m.run(time.Second, true)
	m.add(1<<30, 64<<10)
	modest := m.add(3<<20, 64<<10)
	m.run(30*time.Second, true)
	if !m.p.holds(modest.c) || m.p.holds(m.light) {
		t.Error("it is not said who is held")
	}
	if rate := float64(modest.took) / 30 / (1 << 20); rate < 2.8 {
		t.Errorf("the modest client takes %.1f MiB/s of the 3 that it wants", rate)
	}
}

// TestPaceForgets checks that nothing is kept of clients that are gone, and that one which comes anew for each request is one client all the while.
func TestPaceForgets(t *testing.T) {
	p, now := newPacer(lightLatencyDefault), time.Unix(1e9, 0)
	key := clientKey{id: "churn"}
	for range 100 {
		c := p.join(key, now)
		p.spend(now, c, connectionCost)
		p.leave(c)
		now = now.Add(time.Millisecond)
	}
	if c := p.clients[key]; c == nil || c.use.rate(now) < heavyBytes {
		t.Fatal("a client that comes 1000 times a second counts as many light ones")
	}
	for i := range 100 {
		c := p.join(clientKey{id: fmt.Sprint(i)}, now)
		p.spend(now, c, 2*heavyBytes)
		p.leave(c)
	}
	now = now.Add(time.Minute)
	other := p.join(clientKey{id: "other"}, now)
	p.spend(now, other, 2*heavyBytes)
	if len(p.clients) > 1 || len(p.heavy) > 1 {
		t.Errorf("%d clients and %d heavy ones are kept of those that are gone", len(p.clients), len(p.heavy))
	}
}

// produceFrameOf is a Produce request of a client.
func produceFrameOf(id string) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks = 9, -1
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID(id)).AppendRequest(nil, req, 1)
}

// TestFloodIsNotReadWhileOthersFeelIt checks the same on connections: requests of a flood are read at the rate that a light client does not feel, as fast as
// they come once that has left, and a stop does not wait for the rest.
func TestFloodIsNotReadWhileOthersFeelIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken atomic.Int64
		s := startServer(t, Options{Grace: time.Second, Handler: HandlerFunc(func(_ context.Context, r *Request) Reply {
			if r.ClientID == "flood" {
				time.Sleep(time.Millisecond) // of the bubble's clock, here and below
				r.Conn.Owe(64 << 10)
				taken.Add(64 << 10)
				return answerProduce(nil, r)
			}
			return func(ctx context.Context) Response {
				before := taken.Load()
				time.Sleep(time.Millisecond)
				if taken.Load() > before {
					time.Sleep(40 * time.Millisecond)
				}
				return answerProduce(nil, r)(ctx)
			}
		})})
		light := s.l.dial()
		defer light.Close()
		ask := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if err := <-send(light, produceFrameOf("light")); err != nil {
					t.Fatal(err)
				}
				receive(t, light, produceResponse())
			}
		}
		ask(time.Second)
		flood := s.l.dial()
		defer flood.Close()
		go io.Copy(io.Discard, flood)
		go func() {
			for frame := produceFrameOf("flood"); ; {
				if _, err := flood.Write(frame); err != nil {
					return
				}
			}
		}()
		ask(5 * time.Second)
		before := taken.Load()
		ask(5 * time.Second)
		if rate := float64(taken.Load()-before) / 5; rate > 1.5*paceBytesMin {
			t.Errorf("the flood is read at %.1f MiB/s, while another client feels all of it", rate/(1<<20))
		}
		time.Sleep(paceMemory + paceWaitMax)
		before = taken.Load()
		time.Sleep(5 * time.Second)
		if rate := float64(taken.Load()-before) / 5; rate < 60<<20 {
			t.Errorf("the flood is read at %.1f MiB/s, though nobody else is there", rate/(1<<20))
		}
		ask(time.Second)
		before, began := taken.Load(), time.Now()
		if s.stop(); time.Since(began) > time.Second {
			t.Errorf("the stop took %v", time.Since(began))
		}
	})
}
