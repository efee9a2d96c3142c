package broker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"unicode/utf16"

	"golang.org/x/sync/errgroup"

	"sluice/core/group"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

func init() {
	registerPart("groups", func(b *Broker) (part, error) {
		c := newCoordinators(b)
		b.parts["groups"] = c
		return c, nil
	})
}

// errNotCoordinator is returned when a coordinator stops, or was asked after it had: another node has the group.
var errNotCoordinator = errors.New("not the coordinator of the group")

// coordinators are the group coordinators of a node: one for each partition of __consumer_offsets that it leads, from the moment
// that the partition's log is read until the leadership is lost. Each has one loop (see session) that feeds the state machine of
// core/group.
type coordinators struct {
	b       *Broker
	log     *slog.Logger
	config  group.Config
	metrics *groupMetrics
	tickets atomic.Uint64 // of all coordinators, so that a ticket names one request
	create  sync.Mutex    // one creation of the topic at a time

	slots struct {
		sync.Mutex
		topic meta.TopicID
		byKey map[int32]*slot
	}
}

func newCoordinators(b *Broker) *coordinators {
	c := &coordinators{b: b, log: b.log.With("component", "groups"), config: b.opts.Groups}
	c.metrics = newGroupMetrics(c.total)
	if c.config.NewID == nil {
		c.config.NewID = newMemberID
	}
	return c
}

// newMemberID returns the random part of a member's id, as Kafka a UUID.
func newMemberID() string {
	var id [16]byte
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// groups returns the node's coordinators.
func (b *Broker) groups() *coordinators { return b.parts["groups"].(*coordinators) }

// Run follows the metadata: each partition of __consumer_offsets has a slot as long as the topic lives.
func (c *coordinators) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for ctx.Err() == nil {
		changed := c.b.ctl.Changed()
		for _, s := range c.newSlots() {
			g.Go(func() error { return s.run(ctx) })
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return g.Wait()
}

// newSlots returns the slots that have come with the present image. When the topic was created anew all of them are new; the old ones end by themselves.
func (c *coordinators) newSlots() []*slot {
	topic := c.b.ctl.Image().Topic(meta.OffsetsTopic)
	if topic == nil {
		return nil
	}
	c.slots.Lock()
	defer c.slots.Unlock()
	if c.slots.topic != topic.ID {
		c.slots.topic, c.slots.byKey = topic.ID, map[int32]*slot{}
	}
	var added []*slot
	for _, p := range topic.Partitions {
		if c.slots.byKey[p.Index] != nil {
			continue
		}
		s := &slot{c: c, key: partition.Key{Topic: topic.ID, Index: p.Index}}
		c.slots.byKey[p.Index] = s
		added = append(added, s)
	}
	return added
}

// all returns the slots in no particular order.
func (c *coordinators) all() []*slot {
	c.slots.Lock()
	defer c.slots.Unlock()
	slots := make([]*slot, 0, len(c.slots.byKey))
	for _, s := range c.slots.byKey {
		slots = append(slots, s)
	}
	return slots
}

// session returns the coordinator that the group has on this node.
func (c *coordinators) session(groupID string) (*session, group.Code) {
	topic := c.b.ctl.Image().Topic(meta.OffsetsTopic)
	if topic == nil {
		return nil, group.NotCoordinator
	}
	c.slots.Lock()
	s := c.slots.byKey[coordinatorPartition(groupID, len(topic.Partitions))]
	c.slots.Unlock()
	if s == nil {
		return nil, group.NotCoordinator
	}
	return s.session()
}

// coordinatorPartition returns the partition of __consumer_offsets that holds the group: as in Kafka by the hash of a Java string.
func coordinatorPartition(groupID string, partitions int) int32 {
	h := javaHash(groupID)
	if h == -1<<31 {
		h = 0
	}
	return max(h, -h) % int32(partitions)
}

func javaHash(s string) int32 {
	var h int32
	for _, u := range utf16.Encode([]rune(s)) {
		h = 31*h + int32(u)
	}
	return h
}

// ask hands an event to the group's coordinator, in the order of the calls, and returns where its answer will be. It waits only while
// the coordinator's queue is full.
func (c *coordinators) ask(ctx context.Context, groupID string, event func(group.Ticket) group.Event) *question {
	s, code := c.session(groupID)
	if code != group.None {
		return &question{code: code}
	}
	return s.ask(ctx, event)
}

// question is a request that a coordinator has not answered yet.
type question struct {
	code    group.Code // refused without being asked, unless None
	session *session
	answer  chan any
}

// wait returns the coordinator's answer, or the code to give instead.
func (q *question) wait(ctx context.Context) (any, group.Code) {
	if q.code != group.None {
		return nil, q.code
	}
	select {
	case a := <-q.answer:
		return a, group.None
	case <-q.session.done:
	case <-ctx.Done():
	}
	select {
	case a := <-q.answer:
		return a, group.None
	default:
		return nil, group.NotCoordinator
	}
}

// waitVerified is wait for answers that tell what must not go back: this node led still after the answer was made.
func (q *question) waitVerified(ctx context.Context) (any, group.Code) {
	a, code := q.wait(ctx)
	if code != group.None {
		return nil, code
	}
	if err := q.session.home.verify(ctx); err != nil {
		return nil, group.NotCoordinator
	}
	return a, group.None
}

// waitFor is wait for an answer of a known type; instead of an answer it makes one of the code.
func waitFor[R any](ctx context.Context, q *question, refused func(group.Code) R) R {
	a, code := q.wait(ctx)
	if code != group.None {
		return refused(code)
	}
	return a.(R)
}

// waitForVerified is waitFor with waitVerified.
func waitForVerified[R any](ctx context.Context, q *question, refused func(group.Code) R) R {
	a, code := q.waitVerified(ctx)
	if code != group.None {
		return refused(code)
	}
	return a.(R)
}

// ensureTopic creates __consumer_offsets on its first use.
func (c *coordinators) ensureTopic(ctx context.Context) (*meta.Topic, error) {
	if t := c.b.ctl.Image().Topic(meta.OffsetsTopic); t != nil {
		return t, nil
	}
	c.create.Lock()
	defer c.create.Unlock()
	if t := c.b.ctl.Image().Topic(meta.OffsetsTopic); t != nil {
		return t, nil
	}
	results := c.b.ctl.CreateTopics(ctx, []meta.NewTopic{{
		Name: meta.OffsetsTopic, Partitions: offsetsPartitions, ReplicationFactor: -1,
		Configs: map[string]string{"cleanup.policy": "compact", "compression.type": "producer", "segment.bytes": "104857600"},
	}}, false)
	if len(results) == 1 && results[0].Err != nil && results[0].Err.Code != meta.CodeTopicAlreadyExists {
		return nil, fmt.Errorf("create %s: %w", meta.OffsetsTopic, results[0].Err)
	}
	t := c.b.ctl.Image().Topic(meta.OffsetsTopic)
	if t == nil {
		return nil, fmt.Errorf("create %s: %w", meta.OffsetsTopic, shard.ErrUnknown)
	}
	return t, nil
}

// offsetsPartitions is offsets.topic.num.partitions.
const offsetsPartitions = 10

// WritePrometheus writes the coordinators' metrics.
func (c *coordinators) WritePrometheus(w io.Writer) { c.metrics.set.WritePrometheus(w) }
