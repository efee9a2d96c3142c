package broker

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/meta"
)

// Fetch sessions (KIP-227): a client that fetches many partitions names them once and later only what changed; the answers, too, hold only what changed.
//
// A session belongs to whoever knows its id, as in Kafka. Requests of one session come one after another, each with the next epoch; the epoch is what keeps a
// doubled or lost request from confusing both ends. The cache is bounded; a client that gets no session works as well, with larger requests.
const (
	// sessionsMax is Kafka's max.incremental.fetch.session.cache.slots.
	sessionsMax = 1000
	// sessionPartitionsMax bounds what all sessions remember together, at about 200 bytes each.
	sessionPartitionsMax = 250_000
	// sessionEvictAge is the age from which an unused session makes place for a new one (min.incremental.fetch.session.eviction.ms).
	sessionEvictAge = 2 * time.Minute

	sessionEpochInitial = 0
	sessionEpochFinal   = -1
)

// fetchKey names a partition in a session as the client does: by id from Fetch v13 on, by name before.
type fetchKey struct {
	name  string
	id    meta.TopicID
	index int32
}

// fetchPartition is what a client wants of one partition.
type fetchPartition struct {
	key              fetchKey
	offset           int64
	maxBytes         int32
	leaderEpoch      int32
	lastFetchedEpoch int32

	// What the session's last answer said, so that the next one says only what is new.
	answered                        bool
	highWatermark, lastStable, from int64
}

// fetchSession is one session. Its mutex is held while a request of it is worked on.
type fetchSession struct {
	id int32
	mu sync.Mutex
	// epoch is what the next request must carry.
	epoch      int32
	byID       bool
	partitions map[fetchKey]*list.Element // of *fetchPartition
	order      *list.List                 // partitions that just gave records go to the back, so that none starves
}

// sessionCache holds the sessions of a node.
type sessionCache struct {
	mu struct {
		sync.Mutex
		byID       map[int32]*list.Element // of *cachedSession
		lru        *list.List              // least recently used first
		partitions int
	}
}

type cachedSession struct {
	session *fetchSession
	used    time.Time
	size    int
}

func newSessionCache() *sessionCache {
	c := &sessionCache{}
	c.mu.byID, c.mu.lru = make(map[int32]*list.Element), list.New()
	return c
}

func (c *sessionCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.lru.Len()
}

// get returns a session and counts it as used now.
func (c *sessionCache) get(id int32, now time.Time) *fetchSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.byID[id]
	if e == nil {
		return nil
	}
	s := e.Value.(*cachedSession)
	s.used = now
	c.mu.lru.MoveToBack(e)
	return s.session
}

// remove forgets a session.
func (c *sessionCache) remove(id int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.mu.byID[id]; e != nil {
		c.dropLocked(e)
	}
}

func (c *sessionCache) dropLocked(e *list.Element) {
	s := c.mu.lru.Remove(e).(*cachedSession)
	delete(c.mu.byID, s.session.id)
	c.mu.partitions -= s.size
}

// add gives the session an id and keeps it, if there is place or older ones can go; evicted says how many went.
func (c *sessionCache) add(s *fetchSession, now time.Time) (evicted int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := s.order.Len()
	for c.mu.lru.Len() >= sessionsMax || c.mu.partitions+size > sessionPartitionsMax {
		oldest := c.mu.lru.Front()
		if oldest == nil || now.Sub(oldest.Value.(*cachedSession).used) < sessionEvictAge {
			return evicted, false
		}
		c.dropLocked(oldest)
		evicted++
	}
	for s.id == 0 || c.mu.byID[s.id] != nil {
		s.id = rand.Int32()
	}
	c.mu.byID[s.id] = c.mu.lru.PushBack(&cachedSession{session: s, used: now, size: size})
	c.mu.partitions += size
	return evicted, true
}

// resize counts what a request added to or took from a session; false when the cache is full, and the session is forgotten.
func (c *sessionCache) resize(s *fetchSession) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.byID[s.id]
	if e == nil {
		return false
	}
	cached := e.Value.(*cachedSession)
	c.mu.partitions += s.order.Len() - cached.size
	cached.size = s.order.Len()
	if c.mu.partitions > sessionPartitionsMax {
		c.dropLocked(e)
		return false
	}
	return true
}

// newFetchSession returns a session with the partitions of a full request. Its id is given by the cache.
func newFetchSession(req *kmsg.FetchRequest) *fetchSession {
	s := &fetchSession{epoch: 1, byID: req.Version >= 13, partitions: make(map[fetchKey]*list.Element), order: list.New()}
	s.update(req)
	return s
}

// update takes what a request says: new and changed partitions, and forgotten ones. Of a partition named twice the last counts.
func (s *fetchSession) update(req *kmsg.FetchRequest) {
	for i := range req.Topics {
		t := &req.Topics[i]
		for j := range t.Partitions {
			s.want(fetchKey{name: t.Topic, id: t.TopicID, index: t.Partitions[j].Partition}, &t.Partitions[j])
		}
	}
	for i := range req.ForgottenTopics {
		t := &req.ForgottenTopics[i]
		for _, index := range t.Partitions {
			s.forget(fetchKey{name: t.Topic, id: t.TopicID, index: index})
		}
	}
}

func (s *fetchSession) want(key fetchKey, in *kmsg.FetchRequestTopicPartition) {
	e := s.partitions[key]
	if e == nil {
		e = s.order.PushBack(&fetchPartition{key: key})
		s.partitions[key] = e
	}
	p := e.Value.(*fetchPartition)
	p.offset, p.maxBytes = in.FetchOffset, in.PartitionMaxBytes
	p.leaderEpoch, p.lastFetchedEpoch = in.CurrentLeaderEpoch, in.LastFetchedEpoch
}

func (s *fetchSession) forget(key fetchKey) {
	if e := s.partitions[key]; e != nil {
		s.order.Remove(e)
		delete(s.partitions, key)
	}
}

// list returns the session's partitions in the order in which they are read.
func (s *fetchSession) list() []*fetchPartition {
	out := make([]*fetchPartition, 0, s.order.Len())
	for e := s.order.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value.(*fetchPartition))
	}
	return out
}

// gave puts a partition that was answered with records behind the others.
func (s *fetchSession) gave(p *fetchPartition) {
	if e := s.partitions[p.key]; e != nil {
		s.order.MoveToBack(e)
	}
}

// nextEpoch returns the epoch after one, which is never 0 again.
func nextEpoch(epoch int32) int32 {
	if epoch == 1<<31-1 {
		return 1
	}
	return epoch + 1
}
