package mqtt

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"sluice/edge/buffer"
	"sluice/edge/ingest"
)

// Prepare implements ingest.Local: most messages have no subscriber here, and cost a look at the index at most.
func (s *Server) Prepare(in *ingest.Input) (local any, own []byte) {
	keep := in.Retain
	found := keep
	s.subs.match(in.Topic, func(sess *session, sub *subscription) {
		found = true
		keep = keep || in.QoS > 0 && sub.QoS > 0 && sess.lasts.Load()
	}, func(g *group) {
		found = true
		keep = keep || in.QoS > 0
	})
	if !found {
		return nil, nil
	}
	m := &message{
		Topic: strings.Clone(in.Topic), Payload: bytes.Clone(in.Payload), Props: bytes.Clone(in.Properties),
		QoS: in.QoS, Retain: in.Retain, From: in.Client,
	}
	if !in.Expires.IsZero() {
		m.ExpiresMs = in.Expires.UnixMilli()
	}
	if keep { // somebody must get it also after a crash
		own = encodeMessage(m)
	}
	return m, own
}

func encodeMessage(m *message) []byte {
	b, err := cbor.Marshal(m)
	if err != nil {
		panic("BUG: a message does not encode: " + err.Error())
	}
	return b
}

// handOut gives a commit's messages to their subscribers, in the log's order. next is 0 when more of the commit follows.
func (s *Server) handOut(locals []any, next int64) {
	s.delivery.Lock()
	defer s.delivery.Unlock()
	for _, l := range locals {
		switch l := l.(type) {
		case *message:
			s.handOutOne(l)
		case []any:
			for _, m := range l {
				s.handOutOne(m.(*message))
			}
		}
	}
	if next > 0 {
		s.applied.Store(next)
	}
}

// target is one subscriber of one message, its overlapping subscriptions taken together (MQTT 5, 3.3.4).
type target struct {
	session *session
	qos     byte
	retain  bool
	ids     []int
}

func (s *Server) handOutOne(m *message) {
	if m.Retain {
		s.retained.set(m, s.config.RetainedMax)
		s.store.touchRetained(m.Topic)
	}
	var targets []target
	var seen map[*session]int
	s.subs.match(m.Topic, func(sess *session, sub *subscription) {
		if sub.NoLocal && m.From == sess.id {
			return
		}
		at, ok := seen[sess]
		if !ok {
			if seen == nil {
				seen = map[*session]int{}
			}
			at = len(targets)
			seen[sess] = at
			targets = append(targets, target{session: sess})
		}
		t := &targets[at]
		t.qos = max(t.qos, sub.QoS)
		t.retain = t.retain || sub.RetainAsPublished && m.Retain
		t.ids = append(t.ids, sub.ids()...)
	}, func(g *group) {
		if one, ok := g.pick(); ok {
			targets = append(targets, target{one.session, one.sub.QoS, one.sub.RetainAsPublished && m.Retain, one.sub.ids()})
		}
	})
	for _, t := range targets {
		t.session.send(m, t.qos, t.retain, t.ids)
	}
}

// retained are the retained messages by topic.
type retained struct {
	mu       sync.Mutex
	messages map[string]*message
}

// set keeps m as its topic's message; an empty payload removes it (MQTT-3.3.1-6). Beyond most, new topics are not kept.
func (r *retained) set(m *message, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(m.Payload) == 0 {
		delete(r.messages, m.Topic)
	} else if r.messages[m.Topic] != nil || len(r.messages) < most {
		r.messages[m.Topic] = m
	}
}

func (r *retained) get(topic string) *message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.messages[topic]
}

func (r *retained) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.messages)
}

// match returns the messages of a filter that have not expired.
func (r *retained) match(filter string) []*message {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().UnixMilli()
	if !strings.ContainsAny(filter, "+#") {
		if m := r.messages[filter]; m != nil && !m.expired(now) {
			return []*message{m}
		}
		return nil
	}
	var found []*message
	for topic, m := range r.messages {
		if !m.expired(now) && ingest.Match(filter, topic) {
			found = append(found, m)
		}
	}
	return found
}

// publishWillLocked sends a session's will, as any message: through the buffer.
func (s *Server) publishWillLocked(sess *session) {
	m := sess.will
	sess.will, sess.willAt = nil, time.Time{}
	if m == nil {
		return
	}
	in := ingest.Input{
		Client: sess.id, Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retain: m.Retain, Properties: m.Props, Time: time.Now(),
	}
	if m.hasExpiry {
		in.Expires = in.Time.Add(time.Duration(m.expiry) * time.Second)
	}
	err := s.door.Put(&in, &ingest.Scratch{})
	if err != nil && !errors.Is(err, buffer.ErrStopped) {
		s.metrics.lostWills.Inc()
		s.logger.Warn("a will could not be stored", "client", sess.id, "error", err)
	}
}

// keepTimeEvery is how late a session's end or will may be.
const keepTimeEvery = 100 * time.Millisecond

// keepTime ends sessions and sends wills whose time has come.
func (s *Server) keepTime(ctx context.Context) {
	tick := time.NewTicker(keepTimeEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.due(now)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) due(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopping {
		return
	}
	for sess := range s.mu.waiting {
		if !sess.until.IsZero() && !now.Before(sess.until) {
			s.endLocked(sess)
			continue
		}
		if !sess.willAt.IsZero() && !now.Before(sess.willAt) {
			s.publishWillLocked(sess)
			s.rememberLocked(sess)
		}
		if sess.until.IsZero() && sess.willAt.IsZero() {
			delete(s.mu.waiting, sess)
		}
	}
}
