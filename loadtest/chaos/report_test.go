package chaos

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/loadtest/history"
)

func itoa(n int) string { return strconv.Itoa(n) }

func outcome(k Kind, long time.Duration) Outcome {
	f := Fault{Kind: k, Role: Leader}
	return Outcome{Fault: f, Text: f.String(), On: "core-1", Judged: f.judged(), Worst: gap{Who: "steady-0", Long: long}, Ended: time.Second, Healed: 2 * time.Second}
}

func TestReportJudges(t *testing.T) {
	bad := &history.Verdict{Counts: map[history.Kind]int64{history.Lost: 2}, Violations: []history.Violation{{Kind: history.Lost, Detail: "gone"}}}
	for name, c := range map[string]struct {
		r    Report
		want string
	}{
		"good":             {Report{Faults: []Outcome{outcome(Kill, 2*time.Second)}}, ""},
		"too long":         {Report{Faults: []Outcome{outcome(Kill, 4*time.Second)}}, "unavailable: fault 0 (kill the leader, on core-1): steady-0 had no acknowledged write for 4s"},
		"only reported":    {Report{Faults: []Outcome{outcome(Clock, 4*time.Second), outcome(SlowDisk, time.Minute)}}, ""},
		"did not heal":     {Report{Faults: []Outcome{{Fault: Fault{Kind: Cut}, Wrong: "shard 3"}}}, "shard 3"},
		"lost":             {Report{Workloads: map[string]*history.Verdict{"steady": bad}}, "steady: map[lost:2]"},
		"divergent":        {Report{Replicas: Replicas{Divergent: []string{"a-0 at 7"}}}, "divergent: a-0 at 7"},
		"few replicas":     {Report{Replicas: Replicas{Few: []string{"a-0: 2"}}}, "replicas are missing: a-0: 2"},
		"two directories":  {Report{Replicas: Replicas{Twice: []string{"a-0: 2 in core-1"}}}, "several directories on one node: a-0: 2"},
		"not to its end":   {Report{Failed: "no disk"}, "the run did not get to its end: no disk"},
		"found on its way": {Report{Violations: []string{"core-2 did not stop"}}, "core-2 did not stop"},
	} {
		c.r.judge()
		var out strings.Builder
		c.r.WriteText(&out)
		if c.r.OK() != (c.want == "") || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: OK is %v, and it says\n%s", name, c.r.OK(), &out)
		}
		if strings.Contains(out.String(), "OK:") != c.r.OK() {
			t.Errorf("%s: it says\n%s", name, &out)
		}
	}
}

func TestReportSummarises(t *testing.T) {
	s := summarise([]Outcome{outcome(Kill, time.Second), outcome(Kill, 5*time.Second), outcome(Kill, 2*time.Second)})
	if s.Count != 3 || s.GapP50 != 2*time.Second || s.GapMax != 5*time.Second || s.OverBound != 1 || s.HealMax != time.Second {
		t.Errorf("%+v", s)
	}
}

func TestOptions(t *testing.T) {
	good := Options{Nodes: 3, Faults: 1, DurationMax: time.Second, Rate: 1, DeviceRate: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Options){
		"two nodes": func(o *Options) { o.Nodes = 2 }, "no faults": func(o *Options) { o.Faults = 0 }, "no time": func(o *Options) { o.DurationMax = 0 },
		"no rate": func(o *Options) { o.Rate = 0 }, "an unknown kind": func(o *Options) { o.Only = []Kind{"earthquake"} },
	} {
		o := good
		if change(&o); !errors.Is(o.validate(), ErrOptions) {
			t.Errorf("%s: %v", name, o.validate())
		}
	}
}

// A fault of the network that cannot be begun whole leaves nothing behind.
func TestChangesAreUndone(t *testing.T) {
	dir := t.TempDir()
	touch := func(name string) change {
		return change{do: command{"mkdir", dir + "/" + name}, undo: command{"rmdir", dir + "/" + name}}
	}
	a := changes(touch("a"), touch("b"), change{do: command{"false"}, undo: command{"false"}})
	if err := a.begin(context.Background()); err == nil {
		t.Error("it began")
	}
	b := changes(touch("a"), touch("b"))
	if err := b.begin(context.Background()); err != nil {
		t.Errorf("something was left: %v", err)
	}
	if err := b.end(context.Background()); err != nil {
		t.Error(err)
	}
}

// A fault that cost too much and did not when it was done once more is listed and no violation; one that did again is.
func TestOnceMore(t *testing.T) {
	first := outcome(Kill, 4*time.Second)
	if !first.doubtful() || outcome(Kill, 7*time.Second).doubtful() || outcome(Kill, time.Second).doubtful() || outcome(Clock, 4*time.Second).doubtful() {
		t.Error("what is done once more is not what cost a little too much")
	}
	first.Second = &gap{Long: time.Second}
	for passed, violations := range map[bool]int{true: 0, false: 1} {
		first.Passed = passed
		r := Report{Faults: []Outcome{first, outcome(Kill, time.Second)}}
		r.judge()
		if len(r.Violations) != violations || len(r.Excused) != 1-violations {
			t.Errorf("passed %v: violations %q, excused %q", passed, r.Violations, r.Excused)
		}
	}
}
