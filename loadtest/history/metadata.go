package history

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Operation on a topic.
type Operation uint8

const (
	CreateTopic Operation = iota
	DeleteTopic
	CreatePartitions
	SetConfig      // one configuration key of the topic, always the same one
	DescribeTopic  // partitions and id
	DescribeConfig // the value of the key
)

func (o Operation) String() string {
	return [...]string{"create", "delete", "create partitions", "set config", "describe", "describe config"}[o]
}

// Outcome of an operation.
type Outcome uint8

const (
	Unknown     Outcome = iota // no answer, or one that leaves it open: it may take effect at any later time, or never
	Done                       // succeeded
	Exists                     // refused: there is such a topic already
	Missing                    // refused: there is no such topic
	TooFew                     // refused: it has as many partitions, or more
	Ineffective                // refused for another reason that is certain to have no effect
)

func (o Outcome) String() string {
	return [...]string{"unknown", "done", "exists", "missing", "too few", "ineffective"}[o]
}

// MetaCall is what an operation asks for.
type MetaCall struct {
	Operation
	Topic      string
	Partitions int32  // CreateTopic, CreatePartitions
	Config     string // CreateTopic ("" = none), SetConfig
}

// MetaAnswer is what came back.
type MetaAnswer struct {
	Outcome
	ID         string // CreateTopic, DescribeTopic; "" = not told
	Partitions int32  // DescribeTopic
	Config     string // DescribeConfig; "" = not set
}

const (
	// metadataPatience bounds the time that judging one topic may take: the problem is NP-complete.
	metadataPatience = 20 * time.Second
	// metadataMax bounds the operations that are remembered, about 250 bytes each.
	metadataMax = 1_000_000
)

// Metadata records operations on topics, whose answers must be explained, topic by topic, by one order that agrees with real time.
type Metadata struct {
	bad *findings
	mu  struct {
		sync.Mutex
		lag    time.Duration
		clock  int64 // counts calls and returns: an order that cannot be wrong
		events []*MetaOp
		when   []time.Time // of each tick of the clock
	}
}

// MetaOp is an operation under way.
type MetaOp struct {
	m            *Metadata
	client       int
	call         MetaCall
	answer       MetaAnswer
	began, ended int64 // ended 0 = not yet
}

// Lag allows reads, and refusals because a topic is missing or there, to show what was true at any time since so long before they were asked: every
// node answers them from its own memory, and one that is cut off does not know better. 0 demands the present.
func (m *Metadata) Lag(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.lag = d
}

// Call is called before the request leaves. A request must not be repeated by the client on its own: each attempt is an operation.
func (m *Metadata) Call(client int, c MetaCall) *MetaOp {
	m.mu.Lock()
	defer m.mu.Unlock()
	op := &MetaOp{m: m, client: client, call: c, began: m.tickLocked()}
	if len(m.mu.events) < metadataMax {
		m.mu.events = append(m.mu.events, op)
	}
	return op
}

// Return notes the answer.
func (o *MetaOp) Return(a MetaAnswer) {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	o.answer, o.ended = a, o.m.tickLocked()
}

func (m *Metadata) tickLocked() int64 {
	m.mu.clock++
	m.mu.when = append(m.mu.when, time.Now())
	return m.mu.clock
}

// check judges topic by topic.
func (m *Metadata) check(v *Verdict) {
	byTopic := m.operations()
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		switch result := porcupine.CheckOperationsTimeout(topicModel, byTopic[topic], metadataPatience); result {
		case porcupine.Illegal:
			v.put(Violation{Kind: NotLinearized, Where: topic, Detail: explain(byTopic[topic])})
		case porcupine.Unknown:
			v.Undecided = append(v.Undecided, topic)
		}
	}
}

// operations are the recorded ones as porcupine wants them.
func (m *Metadata) operations() map[string][]porcupine.Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]porcupine.Operation{}
	for _, o := range m.mu.events {
		op := porcupine.Operation{ClientId: o.client, Input: o.call, Call: o.began, Output: o.answer, Return: o.ended}
		switch {
		case o.answer.Outcome == Unknown && o.call.Operation >= DescribeTopic, o.answer.Outcome == Ineffective:
			continue // says nothing
		case o.answer.Outcome == Unknown:
			op.Return = math.MaxInt64
		case m.mu.lag > 0 && o.fromMemory():
			op.Call = m.earlierLocked(o.began)
		}
		out[o.call.Topic] = append(out[o.call.Topic], op)
	}
	return out
}

func (o *MetaOp) fromMemory() bool {
	return o.call.Operation >= DescribeTopic || o.answer.Outcome == Missing || o.answer.Outcome == Exists || o.answer.Outcome == TooFew
}

// earlierLocked is the tick that lies the lag before another.
func (m *Metadata) earlierLocked(tick int64) int64 {
	from := m.mu.when[tick-1].Add(-m.mu.lag)
	i, _ := slices.BinarySearchFunc(m.mu.when[:tick], from, time.Time.Compare)
	return int64(min(i+1, int(tick)))
}

// explain lists the operations on a topic that cannot be explained, the last ones first if there are many.
func explain(ops []porcupine.Operation) string {
	const listed = 40
	var b strings.Builder
	fmt.Fprintf(&b, "no order explains its %d operations:", len(ops))
	for _, o := range ops[max(0, len(ops)-listed):] {
		end := fmt.Sprint(o.Return)
		if o.Return == math.MaxInt64 {
			end = "?"
		}
		fmt.Fprintf(&b, " [%d-%s client %d: %s]", o.Call, end, o.ClientId, describe(o.Input, o.Output))
	}
	return b.String()
}

func describe(input, output any) string {
	c, a := input.(MetaCall), output.(MetaAnswer)
	return fmt.Sprintf("%s partitions=%d config=%q -> %s id=%s partitions=%d config=%q", c.Operation, c.Partitions, c.Config, a.Outcome, a.ID, a.Partitions, a.Config)
}

// topicState is a topic as the model has it. An id that nobody was told yet is "".
type topicState struct {
	exists     bool
	id         string
	partitions int32
	config     string
}

// topicModel is the sequential specification of one topic.
var topicModel = porcupine.Model{
	Init: func() any { return topicState{} },
	Step: func(state, input, output any) (bool, any) {
		return step(state.(topicState), input.(MetaCall), output.(MetaAnswer))
	},
	DescribeOperation: describe,
}

// step tells whether the answer is right for the state, and what the state is afterwards. An operation whose outcome is unknown fits
// everywhere, and takes effect if it can: one that never happened is explained by putting it at the end.
func step(s topicState, c MetaCall, a MetaAnswer) (bool, topicState) {
	switch a.Outcome {
	case Missing:
		return !s.exists, s
	case Exists:
		return s.exists, s
	case TooFew:
		return s.exists && s.partitions >= c.Partitions, s
	}
	after, possible := effect(s, c, a)
	if a.Outcome == Unknown {
		return true, after
	}
	return possible, after
}

// effect is what an operation that succeeded leaves behind; possible is false when it cannot have succeeded, or not with this answer.
func effect(s topicState, c MetaCall, a MetaAnswer) (after topicState, possible bool) {
	switch {
	case c.Operation == CreateTopic && !s.exists:
		return topicState{exists: true, id: a.ID, partitions: c.Partitions, config: c.Config}, true
	case c.Operation == CreateTopic || !s.exists:
		return s, false
	}
	switch c.Operation {
	case DeleteTopic:
		return topicState{}, true
	case CreatePartitions:
		if c.Partitions <= s.partitions {
			return s, false
		}
		s.partitions = c.Partitions
	case SetConfig:
		s.config = c.Config
	case DescribeTopic:
		if a.Partitions != s.partitions || s.id != "" && a.ID != "" && a.ID != s.id {
			return s, false
		}
		if s.id == "" {
			s.id = a.ID
		}
	case DescribeConfig:
		return s, a.Config == s.config
	}
	return s, true
}
