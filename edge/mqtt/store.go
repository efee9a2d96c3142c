package mqtt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"go.etcd.io/bbolt"

	"sluice/edge/buffer"
)

// The store is a bbolt file with what sessions are and what waits for them, see FORMAT.md. It is written behind: every second, and
// at once when a SUBACK waits for it. What happened to subscribers' messages since the last writing is replayed from the buffer,
// from the offset that was written in the same transaction.
var (
	bucketMeta     = []byte("meta")
	bucketSessions = []byte("sessions")
	bucketQueue    = []byte("queue") // client id, 0, sequence number (8 bytes)
	bucketRetained = []byte("retained")
	keyApplied     = []byte("applied")
	keyVersion     = []byte("version")
)

const (
	storeVersion = 1
	// storeEvery is how long a change may wait: it bounds what is replayed, not what is lost.
	storeEvery = time.Second
	// lockTimeout is how long another process may hold the file.
	lockTimeout = 3 * time.Second
	// willGrace is how long the wills of connections that a crash of the gateway ended wait for their clients to come back.
	willGrace = 30 * time.Second
)

type store struct {
	server *Server
	db     *bbolt.DB
	wake   chan struct{}
	floor  *buffer.Floor
	late   []write // of a writing that failed, for the next one

	mu struct {
		sync.Mutex
		sessions map[*session]struct{}
		retained map[string]struct{}
		waiters  []chan error
		closed   bool
	}
}

// write is one change of the file; a nil value deletes.
type write struct {
	bucket     []byte
	key, value []byte
}

// sessionState is a session in the file.
type sessionState struct {
	Expiry      uint32          `cbor:"1,keyasint"`
	UntilMs     int64           `cbor:"2,keyasint,omitempty"` // since 1970; 0: was connected
	Subs        []*subscription `cbor:"3,keyasint,omitempty"`
	Names       []string        `cbor:"4,keyasint,omitempty"` // of Subs, as the client wrote them
	Will        *message        `cbor:"5,keyasint,omitempty"`
	WillExpiry  uint32          `cbor:"6,keyasint,omitempty"`
	WillExpires bool            `cbor:"7,keyasint,omitempty"`
	WillDelay   uint32          `cbor:"8,keyasint,omitempty"`
}

// queuedState is a message on its way to a subscriber.
type queuedState struct {
	Message *message `cbor:"1,keyasint"`
	QoS     byte     `cbor:"2,keyasint"`
	Retain  bool     `cbor:"3,keyasint,omitempty"`
	IDs     []int    `cbor:"4,keyasint,omitempty"`
	ID      uint16   `cbor:"5,keyasint,omitempty"`
	State   byte     `cbor:"6,keyasint,omitempty"`
}

func openStore(file string, s *Server) (*store, error) {
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("open sessions in %s: %w", file, err)
	}
	st := &store{server: s, db: db, wake: make(chan struct{}, 1)}
	st.mu.sessions, st.mu.retained = map[*session]struct{}{}, map[string]struct{}{}
	return st, nil
}

func (st *store) close() error {
	st.mu.Lock()
	st.mu.closed = true
	st.mu.Unlock()
	return st.db.Close()
}

// touch has s written with the next writing.
func (st *store) touch(s *session) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mu.sessions[s] = struct{}{}
}

func (st *store) touchRetained(topic string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mu.retained[topic] = struct{}{}
}

// errStoreClosed is returned by wait after the last writing.
var errStoreClosed = errors.New("the session store is closed")

// wait returns when all that was touched before is on disk.
func (st *store) wait(ctx context.Context) error {
	done := make(chan error, 1)
	st.mu.Lock()
	if st.mu.closed {
		st.mu.Unlock()
		return errStoreClosed
	}
	st.mu.waiters = append(st.mu.waiters, done)
	st.mu.Unlock()
	select {
	case st.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run writes until ctx ends, and once more then.
func (st *store) run(ctx context.Context) error {
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-st.wake:
		case <-tick.C:
		case <-ctx.Done():
			return st.flush()
		}
		err := st.flush()
		if err != nil && !failing {
			st.server.logger.Error("cannot store sessions; trying on", "error", err)
		} else if err == nil && failing {
			st.server.logger.Info("sessions are stored again")
		}
		failing = err != nil
	}
}

// flush writes all that was touched, in one transaction with the offset up to which messages have been handed out.
func (st *store) flush() error {
	writes, applied, touched, waiters := st.capture()
	writes = append(st.late, writes...)
	var err error
	if touched || len(writes) > 0 || applied-st.server.stored.Load() >= appliedStep {
		err = st.write(writes, applied)
	}
	st.late = nil
	if err != nil {
		st.late = writes
	} else { // also when nothing was written: then the file has all that the records below applied left behind
		st.floor.Set(applied)
	}
	for _, w := range waiters {
		w <- err
	}
	return err
}

// capture takes the state between two commits: while it holds delivery nothing is handed out.
func (st *store) capture() (writes []write, applied int64, touched bool, waiters []chan error) {
	s := st.server
	s.delivery.Lock()
	defer s.delivery.Unlock()
	st.mu.Lock()
	sessions, retained := st.mu.sessions, st.mu.retained
	waiters, st.mu.waiters = st.mu.waiters, nil
	st.mu.sessions, st.mu.retained = map[*session]struct{}{}, map[string]struct{}{}
	st.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for sess := range sessions {
		writes = sess.captureLocked(writes)
	}
	for topic := range retained {
		w := write{bucket: bucketRetained, key: []byte(topic)}
		if m := s.retained.get(topic); m != nil {
			w.value = encodeMessage(m)
		}
		writes = append(writes, w)
	}
	return writes, s.applied.Load(), len(sessions)+len(retained) > 0, waiters
}

// captureLocked needs Server.mu.
func (s *session) captureLocked(writes []write) []write {
	s.out.Lock()
	defer s.out.Unlock()
	if s.gone {
		// A session of the same name may have begun meanwhile: what it wrote comes after, as its own writes.
		if again := s.server.mu.sessions[s.id]; again == nil {
			writes = append(writes, write{bucketSessions, []byte(s.id), nil})
		}
		return s.deleteQueueLocked(writes)
	}
	if s.out.dirty {
		s.out.dirty = false
		writes = append(writes, write{bucketSessions, []byte(s.id), s.stateLocked()})
	}
	if !s.lasts.Load() {
		return writes
	}
	for _, seq := range s.out.deleted {
		writes = append(writes, write{bucketQueue, queueKey(s.id, seq), nil})
	}
	s.out.deleted = nil
	s.eachLocked(func(o *outbound) {
		if o.stored && !o.changed {
			return
		}
		o.stored, o.changed = true, false
		writes = append(writes, write{bucketQueue, queueKey(s.id, o.seq), encodeQueued(o)})
	})
	return writes
}

func (s *session) deleteQueueLocked(writes []write) []write {
	for _, seq := range s.out.deleted {
		writes = append(writes, write{bucketQueue, queueKey(s.id, seq), nil})
	}
	s.eachLocked(func(o *outbound) {
		if o.stored {
			writes = append(writes, write{bucketQueue, queueKey(s.id, o.seq), nil})
		}
	})
	return writes
}

func (s *session) eachLocked(fn func(*outbound)) {
	for _, o := range s.out.resend {
		fn(o)
	}
	for _, o := range s.out.inflight {
		fn(o)
	}
	for _, o := range s.out.queue {
		fn(o)
	}
}

// stateLocked is nil, which deletes, for a session that leaves nothing behind.
func (s *session) stateLocked() []byte {
	if s.expiry == 0 && s.will == nil {
		return nil
	}
	st := sessionState{Expiry: s.expiry, Will: s.will, WillDelay: s.delay}
	if !s.until.IsZero() {
		st.UntilMs = s.until.UnixMilli()
	}
	if s.will != nil {
		st.WillExpiry, st.WillExpires = s.will.expiry, s.will.hasExpiry
	}
	for name, sub := range s.out.subs {
		st.Subs, st.Names = append(st.Subs, sub), append(st.Names, name)
	}
	return mustEncode(st)
}

func encodeQueued(o *outbound) []byte {
	return mustEncode(queuedState{Message: o.msg, QoS: o.qos, Retain: o.retain, IDs: o.ids, ID: o.id, State: o.state})
}

func mustEncode(v any) []byte {
	b, err := cbor.Marshal(v)
	if err != nil {
		panic("BUG: stored state does not encode: " + err.Error())
	}
	return b
}

func queueKey(client string, seq uint64) []byte {
	key := append(append(make([]byte, 0, len(client)+9), client...), 0)
	return binary.BigEndian.AppendUint64(key, seq)
}

func (st *store) write(writes []write, applied int64) error {
	err := st.db.Update(func(tx *bbolt.Tx) error {
		for _, w := range writes {
			if err := w.apply(tx.Bucket(w.bucket)); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(keyApplied, binary.BigEndian.AppendUint64(nil, uint64(applied)))
	})
	if err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	st.server.stored.Store(applied)
	st.server.metrics.stores.Inc()
	return nil
}

// appliedStep is how many records of the buffer may pass before the store notes it for its own sake: an idle store costs no sync.
const appliedStep = 1 << 17

func (w *write) apply(b *bbolt.Bucket) error {
	if w.value == nil {
		return b.Delete(w.key)
	}
	return b.Put(w.key, w.value)
}

// load reads the file into the server, at Open.
func (st *store) load() error {
	applied := st.server.door.Buffer().Log().Start()
	err := st.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketSessions, bucketQueue, bucketRetained} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if v := meta.Get(keyVersion); v == nil {
			if err := meta.Put(keyVersion, []byte{storeVersion}); err != nil {
				return err
			}
		} else if v[0] > storeVersion {
			return fmt.Errorf("version %d was written by a newer release, this one knows %d", v[0], storeVersion)
		}
		if v := meta.Get(keyApplied); len(v) == 8 {
			applied = max(applied, int64(binary.BigEndian.Uint64(v)))
		}
		return st.loadAll(tx)
	})
	if err != nil {
		return fmt.Errorf("read sessions in %s: %w", st.db.Path(), err)
	}
	applied = min(applied, st.server.door.Buffer().Log().End())
	st.server.applied.Store(applied)
	st.server.stored.Store(applied)
	st.floor = st.server.door.Buffer().NewFloor(applied)
	return nil
}

func (st *store) loadAll(tx *bbolt.Tx) error {
	if err := tx.Bucket(bucketSessions).ForEach(st.loadSession); err != nil {
		return err
	}
	if err := tx.Bucket(bucketQueue).ForEach(st.loadQueued); err != nil {
		return err
	}
	return tx.Bucket(bucketRetained).ForEach(func(topic, value []byte) error {
		m := &message{}
		if err := cbor.Unmarshal(value, m); err != nil {
			return fmt.Errorf("retained message of %q: %w", topic, err)
		}
		st.server.retained.messages[string(topic)] = m
		return nil
	})
}

func (st *store) loadSession(id, value []byte) error {
	var state sessionState
	if err := cbor.Unmarshal(value, &state); err != nil {
		return fmt.Errorf("session %q: %w", id, err)
	}
	s := newSession(st.server, string(id))
	now := time.Now()
	s.expiry, s.will, s.delay, s.recovered = state.Expiry, state.Will, state.WillDelay, state.UntilMs == 0
	s.lasts.Store(s.expiry > 0)
	switch {
	case state.UntilMs != 0:
		s.until = time.UnixMilli(state.UntilMs)
	case s.expiry == 0:
		s.until = now.Add(willGrace)
	case s.expiry != expiryNever:
		s.until = now.Add(max(time.Duration(s.expiry)*time.Second, willGrace))
	}
	if s.will != nil { // one that waited already waits its delay again: when its connection ended is not stored
		s.will.expiry, s.will.hasExpiry = state.WillExpiry, state.WillExpires
		s.willAt = now.Add(max(time.Duration(s.delay)*time.Second, willGrace))
	}
	for i, sub := range state.Subs {
		sub.name = state.Names[i]
		s.out.subs[sub.name] = sub
		st.server.subs.add(s, sub)
	}
	st.server.mu.sessions[s.id] = s
	if !s.until.IsZero() || !s.willAt.IsZero() {
		st.server.mu.waiting[s] = struct{}{}
	}
	return nil
}

func (st *store) loadQueued(key, value []byte) error {
	if len(key) < 9 {
		return fmt.Errorf("queue key %x: too short", key)
	}
	s := st.server.mu.sessions[string(key[:len(key)-9])]
	if s == nil {
		return nil // its session is gone; the next session of the name does not want it
	}
	var q queuedState
	if err := cbor.Unmarshal(value, &q); err != nil || q.Message == nil {
		return fmt.Errorf("queue of %q: %w", s.id, err)
	}
	o := &outbound{msg: q.Message, qos: q.QoS, retain: q.Retain, ids: q.IDs, id: q.ID, state: q.State, stored: true}
	o.seq = binary.BigEndian.Uint64(key[len(key)-8:])
	s.out.nextSeq = max(s.out.nextSeq, o.seq)
	s.out.bytes += o.msg.bytes()
	if o.state == waiting {
		s.out.queue = append(s.out.queue, o)
	} else {
		s.out.resend = append(s.out.resend, o)
		s.out.inflight[o.id] = o
	}
	return nil
}
