package history

import (
	"strings"
	"testing"
	"time"
)

// did is one operation of a hand-made history: it begins and ends at a position in the list.
type did struct {
	MetaCall
	MetaAnswer
}

func create(n int32) MetaCall { return MetaCall{Operation: CreateTopic, Topic: "x", Partitions: n} }
func remove() MetaCall        { return MetaCall{Operation: DeleteTopic, Topic: "x"} }
func extend(n int32) MetaCall {
	return MetaCall{Operation: CreatePartitions, Topic: "x", Partitions: n}
}
func set(v string) MetaCall       { return MetaCall{Operation: SetConfig, Topic: "x", Config: v} }
func look() MetaCall              { return MetaCall{Operation: DescribeTopic, Topic: "x"} }
func lookAtConfig() MetaCall      { return MetaCall{Operation: DescribeConfig, Topic: "x"} }
func is(o Outcome) MetaAnswer     { return MetaAnswer{Outcome: o} }
func withID(id string) MetaAnswer { return MetaAnswer{Outcome: Done, ID: id} }
func shows(id string, n int32) MetaAnswer {
	return MetaAnswer{Outcome: Done, ID: id, Partitions: n}
}
func value(v string) MetaAnswer { return MetaAnswer{Outcome: Done, Config: v} }

var metadataHistories = []struct {
	name string
	ok   bool
	ops  []did // one after the other
}{
	{"the life of a topic", true, []did{{look(), is(Missing)}, {create(2), withID("1")}, {look(), shows("1", 2)}, {extend(3), is(Done)}, {look(), shows("1", 3)}, {set("9"), is(Done)},
		{lookAtConfig(), value("9")}, {remove(), is(Done)}, {look(), is(Missing)}, {create(1), withID("2")}, {look(), shows("2", 1)}, {lookAtConfig(), value("")}}},
	{"created twice", false, []did{{create(1), withID("1")}, {create(1), withID("2")}}},
	{"deleted twice", false, []did{{create(1), withID("1")}, {remove(), is(Done)}, {remove(), is(Done)}}},
	{"exists, and nobody created it", false, []did{{create(1), is(Exists)}}},
	{"missing, though it was created", false, []did{{create(1), withID("1")}, {remove(), is(Missing)}}},
	{"still there after its deletion", false, []did{{create(1), withID("1")}, {remove(), is(Done)}, {look(), shows("1", 1)}}},
	{"another id", false, []did{{create(1), withID("1")}, {look(), shows("2", 1)}}},
	{"the id changes", false, []did{{create(1), is(Done)}, {look(), shows("1", 1)}, {look(), shows("2", 1)}}},
	{"fewer partitions than were created", false, []did{{create(1), withID("1")}, {extend(4), is(Done)}, {look(), shows("1", 1)}}},
	{"extended to fewer", false, []did{{create(3), withID("1")}, {extend(2), is(Done)}}},
	{"refused as too few", true, []did{{create(3), withID("1")}, {extend(3), is(TooFew)}, {extend(4), is(Done)}}},
	{"refused as too few, wrongly", false, []did{{create(3), withID("1")}, {extend(4), is(TooFew)}}},
	{"an old configuration", false, []did{{create(1), withID("1")}, {set("1"), is(Done)}, {set("2"), is(Done)}, {lookAtConfig(), value("1")}}},
	{"a configuration of a former life", false, []did{{create(1), withID("1")}, {set("1"), is(Done)}, {remove(), is(Done)}, {create(1), withID("2")}, {lookAtConfig(), value("1")}}},
	{"an unknown creation happened", true, []did{{create(2), is(Unknown)}, {look(), shows("1", 2)}, {look(), shows("1", 2)}}},
	{"an unknown creation happened late", true, []did{{create(2), is(Unknown)}, {look(), is(Missing)}, {look(), shows("1", 2)}}},
	{"an unknown creation never happened", true, []did{{create(2), is(Unknown)}, {look(), is(Missing)}, {create(1), withID("1")}, {look(), shows("1", 1)}}},
	{"an unknown creation happened twice", false, []did{{create(2), is(Unknown)}, {look(), shows("1", 2)}, {remove(), is(Done)}, {look(), is(Missing)}, {look(), shows("1", 2)}}},
	{"an unknown deletion happened late", true, []did{{create(2), withID("1")}, {remove(), is(Unknown)}, {look(), shows("1", 2)}, {look(), is(Missing)}}},
	{"an unknown deletion cannot undo a later creation and let it come back", false, []did{{create(2), withID("1")}, {remove(), is(Unknown)}, {look(), is(Missing)}, {look(), shows("1", 2)}}},
	{"an unknown configuration took effect after a later one", true, []did{{create(1), withID("1")}, {set("1"), is(Unknown)}, {set("2"), is(Done)}, {lookAtConfig(), value("2")}, {lookAtConfig(), value("1")}}},
	{"an ineffective operation says nothing", true, []did{{create(9), is(Ineffective)}, {look(), is(Missing)}}},
	{"an unanswered question says nothing", true, []did{{look(), is(Unknown)}, {create(1), withID("1")}}},
}

func TestMetadataHistories(t *testing.T) {
	for _, c := range metadataHistories {
		h := New(nil)
		for i, op := range c.ops {
			h.Metadata().Call(i, op.MetaCall).Return(op.MetaAnswer)
		}
		v := h.Check()
		if v.OK() != c.ok || len(v.Undecided) > 0 || !c.ok && v.Counts[NotLinearized] != 1 {
			t.Errorf("%s: %v, undecided %v", c.name, v.Violations, v.Undecided)
		}
	}
}

// Operations at the same time may take effect in either order; a call without a return may be any time.
func TestMetadataAtTheSameTime(t *testing.T) {
	h := New(nil)
	m := h.Metadata()
	one, two := m.Call(0, create(1)), m.Call(1, create(2))
	one.Return(is(Exists))
	two.Return(withID("1"))
	m.Call(2, remove()) // never returns
	seen, gone := m.Call(3, look()), m.Call(4, look())
	gone.Return(is(Missing))
	seen.Return(shows("1", 2))
	if v := h.Check(); !v.OK() {
		t.Error(v.Violations)
	}
	m.Call(5, look()).Return(shows("1", 2))
	if v := h.Check(); v.OK() || !strings.Contains(v.Violations[0].Detail, "create partitions=2") {
		t.Errorf("a topic that is gone came back: %v", v.Violations)
	}
}

// Answers from a node's memory may lag behind if that is allowed, but not further than that, and effects may not.
func TestMetadataLag(t *testing.T) {
	for _, c := range []struct {
		name string
		lag  time.Duration
		wait int // operations between the deletion and the question
		op   did
		ok   bool
	}{
		{"a late view", time.Hour, 0, did{look(), shows("1", 1)}, true},
		{"a late view that is not allowed", 0, 0, did{look(), shows("1", 1)}, false},
		{"a late refusal", time.Hour, 0, did{create(1), is(Exists)}, true},
		{"a deletion that cannot have succeeded", time.Hour, 0, did{remove(), is(Done)}, false},
		{"a view of what never was", time.Hour, 0, did{look(), shows("1", 7)}, false},
		{"a view from too long ago", time.Nanosecond, 2000, did{look(), shows("1", 1)}, false},
	} {
		h := New(nil)
		m := h.Metadata()
		m.Lag(c.lag)
		m.Call(0, create(1)).Return(withID("1"))
		m.Call(0, remove()).Return(is(Done))
		for range c.wait {
			m.Call(0, MetaCall{Operation: DescribeTopic, Topic: "other"}).Return(is(Missing))
		}
		m.Call(1, c.op.MetaCall).Return(c.op.MetaAnswer)
		if v := h.Check(); v.OK() != c.ok {
			t.Errorf("%s: %v", c.name, v.Violations)
		}
	}
}
