package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"sluice/core/group"
)

const (
	// questionsMax bounds the requests that wait for one coordinator's loop; who comes when it is full waits on its own connection.
	questionsMax = 1024
	// backlogBytesMax of records may wait for the write before them; beyond it no more requests are taken.
	backlogBytesMax = 4 << 20
	// cleanInterval is offsets.retention.check.interval.ms.
	cleanInterval = 10 * time.Minute
	// topicsInterval is how soon after a change of the metadata the offsets of deleted topics are looked for; changes within it are one.
	topicsInterval = time.Second
	// topicsGrace is how long a topic that this coordinator never saw may be missing before its offsets go: this node's metadata may
	// be late when the coordinator has just begun here.
	topicsGrace = time.Minute
)

// session is the coordinator of one partition of __consumer_offsets during one term. Its loop owns the state machine; one write at a
// time runs beside it, with everything that came while the last one ran. An answer waits until what it was made from is
// committed. When a write fails the session ends: whoever waits is sent to look for the coordinator anew, and the log says what is true.
type session struct {
	home    home
	metrics *groupMetrics
	tickets *atomic.Uint64

	questions chan asked
	topics    chan struct{} // the metadata has changed; holds one
	active    atomic.Bool   // the log is read
	done      chan struct{} // closed when the session has ended
	stats     atomic.Pointer[group.Stats]

	// The rest belongs to the loop.
	machine *group.Coordinator
	waiting map[group.Ticket]chan any
	backlog backlog
	held    []heldAnswer
	seen    map[seenTopic]struct{} // topics with offsets that the metadata had
	began   time.Time
	again   restatement

	restateMin int64
}

// write is what the writer does next: it appends records, or has the log start at an offset.
type write struct {
	records []group.Record
	start   int64
}

// asked is a request in the queue of a loop.
type asked struct {
	event  group.Event
	ticket group.Ticket
	answer chan any
}

// heldAnswer is an answer that waits for the record number `need` to be committed.
type heldAnswer struct {
	need   uint64
	answer group.Answer
}

// seenTopic is a topic as committed offsets name it.
type seenTopic struct {
	name string
	id   group.TopicID
}

func newSession(h home, config group.Config, m *groupMetrics, tickets *atomic.Uint64) *session {
	return &session{
		home: h, metrics: m, tickets: tickets,
		questions: make(chan asked, questionsMax), topics: make(chan struct{}, 1), done: make(chan struct{}),
		machine: group.New(config), waiting: map[group.Ticket]chan any{}, seen: map[seenTopic]struct{}{}, restateMin: restateMin,
	}
}

// ask queues an event; see coordinators.ask.
func (s *session) ask(ctx context.Context, event func(group.Ticket) group.Event) *question {
	t := group.Ticket(s.tickets.Add(1))
	q := &question{session: s, answer: make(chan any, 1)}
	select {
	case s.questions <- asked{event(t), t, q.answer}:
	case <-s.done:
		q.code = group.NotCoordinator
	case <-ctx.Done():
		q.code = group.NotCoordinator
	}
	return q
}

// topicsChanged has the loop look for deleted topics. It never waits.
func (s *session) topicsChanged() {
	select {
	case s.topics <- struct{}{}:
	default:
	}
}

// run reads the log, then serves until ctx ends or a write fails. All of the session has ended when it returns.
func (s *session) run(ctx context.Context) error {
	defer close(s.done)
	s.began = time.Now()
	if err := s.home.load(ctx, s.replay); err != nil {
		return fmt.Errorf("load groups: %w", err)
	}
	s.metrics.loads.Inc()
	s.metrics.loadSeconds.Update(time.Since(s.began).Seconds())
	s.step(group.Loaded{})
	s.active.Store(true)
	return s.loop(ctx)
}

// replay takes one record of the log. One that no coordinator wrote is counted and passed over: a record that a client has written into the topic
// must not take the groups of the whole partition away.
func (s *session) replay(key, value []byte, joining bool) error {
	err := s.machine.Replay(key, value, joining)
	if errors.Is(err, group.ErrRecord) {
		s.metrics.strange.Inc()
		return nil
	}
	return err
}

// writer writes what it is given, one batch of records after the other, until writes is closed.
func (s *session) writer(writes <-chan write, written chan<- error) {
	defer close(written)
	for w := range writes {
		if len(w.records) == 0 {
			if err := s.home.cut(w.start); err == nil { // else the log is as long as before, and it is tried again
				s.metrics.restatements.Inc()
			}
			written <- nil
			continue
		}
		err := s.home.write(w.records)
		if err == nil {
			s.metrics.records.Add(len(w.records))
			s.metrics.writes.Inc()
		}
		written <- err
	}
}

func (s *session) loop(ctx context.Context) error {
	writes := make(chan write)
	written := make(chan error)
	go s.writer(writes, written)
	// The write that runs is waited for: a record of this term must not be on its way when the next term's session reads the log.
	defer func() {
		close(writes)
		for range written {
		}
	}()
	deadline := time.NewTimer(time.Hour)
	defer deadline.Stop()
	clean := time.NewTicker(cleanInterval)
	defer clean.Stop()
	lookAtLength := time.NewTicker(restateInterval)
	defer lookAtLength.Stop()
	lookAtTopics := time.NewTimer(topicsGrace + topicsInterval)
	defer lookAtTopics.Stop()
	for {
		s.arm(deadline)
		s.restate()
		cut, due := s.cut()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case q := <-s.open():
			s.waiting[q.ticket] = q.answer
			s.step(q.event)
		case <-deadline.C:
			s.step(group.Tick{})
		case <-clean.C:
			s.step(group.Clean{})
		case <-s.topics:
			lookAtTopics.Reset(topicsInterval)
		case <-lookAtTopics.C:
			if again := s.forgetTopics(); again > 0 {
				lookAtTopics.Reset(again)
			}
		case <-lookAtLength.C:
			s.beginRestatement()
		case s.to(writes) <- write{records: s.backlog.next()}:
			s.backlog.start()
		case when(due, writes) <- cut:
			s.again = restatement{}
			s.backlog.startNothing()
		case err := <-written:
			if err != nil {
				return err
			}
			s.release(s.backlog.finish())
		}
	}
}

// open is the queue, unless too much waits to be written.
func (s *session) open() <-chan asked {
	if s.backlog.bytes > backlogBytesMax {
		return nil
	}
	return s.questions
}

// to is the writer's channel when there is something to write and it is free.
func (s *session) to(writes chan<- write) chan<- write {
	return when(!s.backlog.writing && len(s.backlog.records) > 0, writes)
}

// when is the channel if it is wanted.
func when(wanted bool, writes chan<- write) chan<- write {
	if wanted {
		return writes
	}
	return nil
}

// arm sets the timer to the next deadline of the state machine. Without one it fires for nothing now and then.
func (s *session) arm(t *time.Timer) {
	at, ok := s.machine.Next()
	if !ok {
		t.Reset(time.Hour)
		return
	}
	t.Reset(time.Until(at))
}

// step feeds the state machine and takes care of what it wants done.
func (s *session) step(e group.Event) {
	effects := s.machine.Step(s.home.now(), e)
	s.backlog.add(effects.Records)
	for _, a := range effects.Answers {
		need := s.backlog.need(a.Group)
		if need > s.backlog.committed {
			s.held = append(s.held, heldAnswer{need, a})
			continue
		}
		s.deliver(a)
	}
	s.publish()
}

// release delivers the answers that waited for records up to committed.
func (s *session) release(committed uint64) {
	kept := s.held[:0]
	for _, h := range s.held {
		if h.need > committed {
			kept = append(kept, h)
			continue
		}
		s.deliver(h.answer)
	}
	clear(s.held[len(kept):])
	s.held = kept
}

func (s *session) deliver(a group.Answer) {
	answer, ok := s.waiting[a.Ticket]
	if !ok {
		panic(fmt.Sprintf("BUG: second answer to one request of group %q: %T", a.Group, a.Response))
	}
	delete(s.waiting, a.Ticket)
	answer <- a.Response
}

// publish lets others see the counts.
func (s *session) publish() {
	stats := s.machine.Stats()
	s.metrics.count(s.published(), stats)
	s.stats.Store(&stats)
}

func (s *session) published() group.Stats {
	if stats := s.stats.Load(); stats != nil {
		return *stats
	}
	return group.Stats{}
}

// forgetTopics removes the offsets of topics that are gone: those that the metadata had and has no more, and those that it has not
// had since the session began long enough ago. Until then it returns when to look again.
func (s *session) forgetTopics() (again time.Duration) {
	age := time.Since(s.began)
	known := age > topicsGrace
	gone := func(name string, id group.TopicID) bool {
		topic := seenTopic{name, id}
		if s.home.exists(name, id) {
			s.seen[topic] = struct{}{}
			return false
		}
		_, seen := s.seen[topic]
		return seen || known
	}
	if s.machine.AnyTopic(gone) {
		s.step(group.ForgetTopics{Gone: gone})
	}
	if known {
		return 0
	}
	return topicsGrace - age + topicsInterval
}
