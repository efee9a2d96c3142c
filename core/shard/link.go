package shard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

const (
	// linkRetry after a connection for heartbeats was lost, or could not be made, the next is tried. Meanwhile each group sends its own.
	linkRetry = time.Second
	// linkRefusedRetry is the same for a server that does not take them, for it runs an early release.
	linkRefusedRetry = 10 * time.Second
	// linkIdle is how long a connection stays that nobody sends anything on.
	linkIdle = time.Minute
	// linkInlineBytes are written by who writes for all links: into the buffer of a connection on which all was answered they
	// fit, whatever the other side does.
	linkInlineBytes = 4 << 10
)

// Why a heartbeat was not answered, beside what a connection says.
var (
	errBeatTimeout = errors.New("heartbeat was not answered in time")
	errNoReplica   = errors.New("server has no replica of the shard, or is about to stop it")
	errUnderWay    = errors.New("the heartbeat before is still under way")
	errNewLife     = errors.New("replica was started anew")
	errOtherTerm   = errors.New("answer is to a heartbeat of another term")
	errBadVerdict  = errors.New("answer to a heartbeat is of a kind that this release does not know")
)

// links are a node's connections for the heartbeats of idle groups, one for each server that they are sent to. A message costs the
// waking of two processes, whatever it carries.
type links struct {
	n  *Node
	mu sync.Mutex
	to map[raft.ServerAddress]*link
}

// get returns the link to a server, which need not have a connection.
func (ls *links) get(to raft.ServerAddress) *link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.to[to]
	if l == nil {
		l = &link{n: ls.n, to: to}
		l.mu.owed = map[meta.ShardID]struct{}{}
		ls.to[to] = l
	}
	l.mu.Lock()
	l.mu.used = time.Now() // so that it is not ended before it is used
	l.mu.Unlock()
	return l
}

// send sends what waits for this moment, and ends links that nobody uses.
func (ls *links) send(turn uint64) {
	now := time.Now()
	ls.mu.Lock()
	all := make([]*link, 0, len(ls.to))
	for to, l := range ls.to {
		if l.unused(now) {
			delete(ls.to, to)
			continue
		}
		all = append(all, l)
	}
	ls.mu.Unlock()
	for _, l := range all {
		l.send(turn)
	}
}

// link is a connection to one server, when there is one.
type link struct {
	n  *Node
	to raft.ServerAddress

	writing sync.Mutex
	mu      struct {
		sync.Mutex
		conn    net.Conn // nil while there is none
		dialing bool
		retry   time.Time // the next try not before
		used    time.Time
		heard   time.Time // the last frame
		round   uint32
		waiting []*call           // for the next moment
		sent    map[callKey]*call // and not answered
		lives   map[meta.ShardID]uint64
		// owed are the groups that have not been told yet that the last connection was lost: a follower may have been started anew.
		owed map[meta.ShardID]struct{}
	}
}

type callKey struct {
	round uint32
	shard meta.ShardID
}

type callState int

const (
	callWaits callState = iota
	callSent
	callOver
)

// call is one heartbeat of one group.
type call struct {
	t     *transport
	l     *link
	q     question
	turn  uint64      // the moment at which it was sent
	last  uint64      // see peers.sending
	at    time.Time   // when it was sent
	timer *time.Timer // ends it

	state  callState // guarded by l.mu
	done   chan struct{}
	answer answer // when done
	first  bool   // it is the group's first answer on the connection: another life may have answered before
	err    error
}

// enroll has a heartbeat sent at the next moment. It returns nil when there is no connection: then the group sends its own.
func (l *link) enroll(t *transport, term uint64) *call {
	c := &call{t: t, l: l, q: question{t.g.id, term}, done: make(chan struct{})}
	now := time.Now()
	l.mu.Lock()
	if _, owed := l.mu.owed[t.g.id]; owed {
		delete(l.mu.owed, t.g.id)
		l.mu.Unlock()
		c.state, c.at, c.err = callOver, now, net.ErrClosed
		close(c.done)
		return c
	}
	if l.mu.conn == nil {
		if !l.mu.dialing && !now.Before(l.mu.retry) {
			l.mu.dialing = l.n.spawn(l.run)
		}
		l.mu.Unlock()
		return nil
	}
	l.mu.waiting = append(l.mu.waiting, c)
	l.mu.Unlock()
	l.n.moments.wait() // after it waits: a moment that comes between the two sends it
	return c
}

// withdraw takes a heartbeat back that has not been sent. It returns false when it has.
func (c *call) withdraw() bool {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.state != callWaits {
		return false
	}
	c.state = callOver
	return true
}

// endLocked gives a call its result. It returns false when it has one.
func (c *call) endLocked(a answer, err error) bool {
	if c.state == callOver {
		return false
	}
	c.state, c.answer, c.err = callOver, a, err
	if c.timer != nil {
		c.timer.Stop()
	}
	close(c.done)
	return true
}

// send sends everything that waits.
func (l *link) send(turn uint64) {
	l.mu.Lock()
	waiting := l.mu.waiting
	l.mu.waiting = nil
	l.mu.Unlock()
	for _, c := range waiting {
		if err := c.t.mayLead(); err != nil { // asks the log and the group: not with the lock
			l.mu.Lock()
			c.endLocked(answer{}, err)
			l.mu.Unlock()
			continue
		}
		c.last, c.turn = c.t.g.peers.sending(), turn
	}
	for some := range slices.Chunk(waiting, maxBeats) {
		l.ask(some)
	}
}

// ask sends one frame.
func (l *link) ask(calls []*call) {
	now := time.Now()
	l.mu.Lock()
	conn, idle := l.mu.conn, len(l.mu.sent) == 0
	l.mu.round++
	round := l.mu.round
	var all []question
	for _, c := range calls {
		switch {
		case c.state != callWaits:
		case conn == nil:
			c.at = now
			c.endLocked(answer{}, net.ErrClosed)
		default:
			l.sendLocked(c, round, now)
		}
	}
	for _, c := range calls {
		if c.state == callSent {
			all = append(all, c.q)
		}
	}
	l.mu.Unlock()
	if len(all) == 0 {
		return
	}
	frame := encodeQuestions(round, all)
	if idle && len(frame) <= linkInlineBytes && l.writing.TryLock() {
		l.write(conn, frame)
		return
	}
	l.n.spawn(func() { // ends with the deadline at the latest
		l.writing.Lock()
		l.write(conn, frame)
	})
}

// sendLocked has a call go with a frame. Of two calls of a group, by a replication that ends and by the next, the newer one goes: a frame has
// one answer for each group.
func (l *link) sendLocked(c *call, round uint32, now time.Time) {
	key, conn := callKey{round, c.q.shard}, l.mu.conn
	if other := l.mu.sent[key]; other != nil {
		if c.q.term < other.q.term {
			c.endLocked(answer{}, errUnderWay)
			return
		}
		other.at = time.Time{} // it is not sent
		other.endLocked(answer{}, errUnderWay)
	}
	c.state, c.at = callSent, now
	c.timer = time.AfterFunc(quickTimeout, func() { l.expire(conn, key) })
	l.mu.sent[key] = c
}

// write writes a frame and unlocks writing.
func (l *link) write(conn net.Conn, frame []byte) {
	defer l.writing.Unlock()
	err := conn.SetWriteDeadline(time.Now().Add(quickTimeout))
	if err == nil {
		_, err = conn.Write(frame)
	}
	if err != nil {
		l.fail(conn, fmt.Errorf("send heartbeats: %w", err))
	}
}

// expire ends a call that has taken too long. The connection ends with it when nothing came over it meanwhile.
func (l *link) expire(conn net.Conn, key callKey) {
	l.mu.Lock()
	c := l.mu.sent[key]
	if c == nil || l.mu.conn != conn {
		l.mu.Unlock()
		return
	}
	delete(l.mu.sent, key)
	c.endLocked(answer{}, errBeatTimeout)
	silent := l.mu.heard.Before(c.at)
	l.mu.Unlock()
	if silent {
		l.fail(conn, errBeatTimeout)
	}
}

// run makes a connection and takes answers from it until it ends.
func (l *link) run() {
	ctx, cancel := context.WithTimeout(l.n.ctx, prefaceTimeout)
	conn, err := l.n.dialServer(ctx, preface{kind: kindBeats}, l.to)
	cancel()
	if err == nil && !l.n.track(conn) {
		err = net.ErrClosed
	}
	if err != nil {
		l.retry(err)
		return
	}
	defer l.n.wg.Done()
	defer l.n.untrack(conn)
	l.use(conn)
}

// retry has the next connection tried later.
func (l *link) retry(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.dialing = false
	l.mu.retry = time.Now().Add(linkRetry)
	if errors.Is(err, ErrRefused) {
		l.mu.retry = time.Now().Add(linkRefusedRetry)
	}
}

// use takes answers from a new connection until it ends.
func (l *link) use(conn net.Conn) {
	l.mu.Lock()
	l.mu.dialing = false
	l.mu.conn, l.mu.sent, l.mu.lives = conn, map[callKey]*call{}, map[meta.ShardID]uint64{}
	l.mu.Unlock()
	r := bufio.NewReader(conn)
	for {
		round, all, err := readAnswers(r)
		if err != nil {
			l.fail(conn, err)
			return
		}
		l.take(conn, round, all)
	}
}

// take gives answers to those who wait for them. What nobody waits for any more is dropped.
func (l *link) take(conn net.Conn, round uint32, all []answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.conn != conn {
		return
	}
	l.mu.heard = time.Now()
	for _, a := range all {
		key := callKey{round, a.shard}
		c := l.mu.sent[key]
		if c == nil {
			continue
		}
		delete(l.mu.sent, key)
		c.endLocked(a, l.judgeLocked(c, a))
	}
}

// judgeLocked tells why an answer is none to a call.
func (l *link) judgeLocked(c *call, a answer) error {
	switch a.verdict {
	case beatRefused, beatTaken:
	case beatNoReplica:
		return errNoReplica
	case beatUnderWay:
		return errUnderWay
	default:
		return errBadVerdict
	}
	life, known := l.mu.lives[a.shard]
	l.mu.lives[a.shard] = a.life
	if known && life != a.life {
		return errNewLife // as a connection of its own would have ended with the replica
	}
	if a.verdict == beatTaken && a.term != c.q.term {
		return errOtherTerm
	}
	c.first = !known
	return nil
}

// fail ends a connection and everything that goes over it.
func (l *link) fail(conn net.Conn, err error) {
	conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.conn != conn {
		return
	}
	l.mu.conn, l.mu.retry = nil, time.Now().Add(linkRetry)
	for id := range l.mu.lives {
		l.mu.owed[id] = struct{}{}
	}
	for _, c := range l.mu.waiting {
		c.at = time.Now()
		l.tellLocked(c, err)
	}
	for _, c := range l.mu.sent {
		l.tellLocked(c, err)
	}
	l.mu.waiting, l.mu.sent = nil, nil
}

func (l *link) tellLocked(c *call, err error) {
	if c.endLocked(answer{}, err) {
		delete(l.mu.owed, c.q.shard)
	}
}

// unused tells whether nothing was sent for long, and ends the connection then.
func (l *link) unused(now time.Time) bool {
	l.mu.Lock()
	conn, unused := l.mu.conn, now.Sub(l.mu.used) > linkIdle && !l.mu.dialing && len(l.mu.waiting)+len(l.mu.sent) == 0
	l.mu.Unlock()
	if unused && conn != nil {
		conn.Close() // and its reader ends
	}
	return unused
}
