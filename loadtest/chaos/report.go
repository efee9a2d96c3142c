package chaos

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"sluice/loadtest/history"
)

// Outcome is what became of one fault. Times are since the run began.
type Outcome struct {
	Fault  `json:"fault"`
	Text   string        `json:"text"`
	On     string        `json:"on"`            // the process, or two
	Did    string        `json:"did,omitempty"` // what it changed, where that is not said by the fault
	Began  time.Duration `json:"began"`
	Ended  time.Duration `json:"ended"`
	Healed time.Duration `json:"healed"`         // all in sync again; 0 = not within the bound
	Judged bool          `json:"judged"`         // unavailability counts
	Worst  gap           `json:"worst_gap"`      // the longest time without an acknowledged write that touches the fault
	Stock  gap           `json:"stock_gap"`      // the same for producers with a stock client library, whose own timeouts are in it
	Gaps   []gap         `json:"gaps,omitempty"` // those of every partition and device, the longest first
	Wrong  string        `json:"wrong,omitempty"`
	// Stalled is how much of the worst gap the machine itself stood still for all processes, or was taken by others.
	Stalled time.Duration `json:"stalled,omitempty"`
	// Last is what the cluster was waited for last.
	Last string `json:"last,omitempty"`
	// Second is what it cost when it was done once more, because it cost too much; Passed: then it did not.
	Second *gap `json:"second,omitempty"`
	Passed bool `json:"passed,omitempty"`
	// Helped is what was done to the node when the cluster did not heal by itself, and let it heal.
	Helped string `json:"helped,omitempty"`
}

// over tells whether a judged fault cost more than it may. What the machine itself stood still is nobody's fault.
func (o Outcome) over() bool {
	return o.Judged && !o.Passed && o.Worst.Long-o.Stalled > unavailableMax
}

// doubtful tells whether one that cost too much may have been the machine: one that cost twice as much as it may was not.
func (o Outcome) doubtful() bool {
	return o.over() && o.Wrong == "" && o.Worst.Long <= 2*unavailableMax
}

// excused tells whether only the machine made it too long.
func (o Outcome) excused() bool { return o.Judged && o.Worst.Long > unavailableMax && !o.over() }

func (o Outcome) excuse() string {
	text := fmt.Sprintf("fault %d (%s, on %s): %v on %s, of which the machine stood still or was taken by others for %v", o.Number, o.Text, o.On, round(o.Worst.Long), o.Worst.Who, round(o.Stalled))
	if o.Passed {
		text += fmt.Sprintf("; done once more %v", round(o.Second.Long))
	}
	return text
}

// Summary is what all faults of a kind cost.
type Summary struct {
	Count     int           `json:"count"`
	GapP50    time.Duration `json:"gap_p50"`
	GapMax    time.Duration `json:"gap_max"`
	StockMax  time.Duration `json:"stock_gap_max"`
	HealP50   time.Duration `json:"heal_p50"`
	HealMax   time.Duration `json:"heal_max"`
	OverBound int           `json:"over_bound"` // judged and longer than allowed
}

// Report is the outcome of a run. Durations are in nanoseconds.
type Report struct {
	Seed        uint64                      `json:"seed"`
	Run         string                      `json:"run"`
	Dir         string                      `json:"dir"`
	Began       time.Time                   `json:"began"`
	Took        time.Duration               `json:"took"`
	Lost        time.Duration               `json:"machine_lost"` // the part of it in which the machine stood still or was taken by others
	Conditions  Conditions                  `json:"conditions"`
	Planned     int                         `json:"planned"`
	Faults      []Outcome                   `json:"faults"`
	Kinds       map[Kind]Summary            `json:"kinds"`
	QuietGap    gap                         `json:"quiet_gap"` // the longest gap before the first fault: what the machine does by itself
	Acked       int                         `json:"acked"`
	Did         map[string]int64            `json:"did"` // what the clients did
	Workloads   map[string]*history.Verdict `json:"workloads"`
	Replicas    Replicas                    `json:"replicas"`
	NotPossible []Kind                      `json:"not_possible"` // kinds that need the fault switchboard or a gateway
	Excused     []string                    `json:"excused"`      // unavailable for too long only because of the machine, or not when done once more
	Violations  []string                    `json:"violations"`
	Failed      string                      `json:"failed,omitempty"` // why the run did not get to its end: there is no verdict
}

// OK tells whether the cluster kept its promises.
func (r *Report) OK() bool { return r.Failed == "" && len(r.Violations) == 0 }

func (r *Report) violate(format string, args ...any) {
	r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
}

// judge fills in what is counted, and finds the violations.
func (r *Report) judge() {
	r.Kinds = map[Kind]Summary{}
	of := map[Kind][]Outcome{}
	for _, o := range r.Faults {
		of[o.Kind] = append(of[o.Kind], o)
		if o.excused() {
			r.Excused = append(r.Excused, o.excuse())
		}
		if o.over() {
			r.violate("unavailable: fault %d (%s, on %s): %s had no acknowledged write for %v, of which the machine stood still or was taken by others for %v", o.Number, o.Text, o.On, o.Worst.Who, round(o.Worst.Long), round(o.Stalled))
		}
		if o.Wrong != "" {
			r.violate("fault %d (%s, on %s): %s", o.Number, o.Text, o.On, o.Wrong)
		}
	}
	for k, outcomes := range of {
		r.Kinds[k] = summarise(outcomes)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Workloads)) {
		if v := r.Workloads[name]; v != nil && !v.OK() {
			r.violate("%s: %v, the first: %v", name, v.Counts, v.Violations[0])
		}
	}
	for _, f := range r.Replicas.Few {
		r.violate("replicas are missing: %s", f)
	}
	for _, t := range r.Replicas.Twice {
		r.violate("a partition has several directories on one node: %s", t)
	}
	for _, d := range r.Replicas.Divergent {
		r.violate("divergent: %s", d)
	}
}

func summarise(outcomes []Outcome) (s Summary) {
	var gaps, heals []time.Duration
	for _, o := range outcomes {
		gaps, heals = append(gaps, o.Worst.Long), append(heals, max(0, o.Healed-o.Ended))
		s.StockMax = max(s.StockMax, o.Stock.Long)
		if o.over() {
			s.OverBound++
		}
	}
	slices.Sort(gaps)
	slices.Sort(heals)
	s.Count = len(outcomes)
	s.GapP50, s.GapMax = gaps[len(gaps)/2], gaps[len(gaps)-1]
	s.HealP50, s.HealMax = heals[len(heals)/2], heals[len(heals)-1]
	return s
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) {
	fmt.Fprintf(w, "\nseed %d: %d faults of %d in %v, %d acknowledged writes; longest gap before the first fault %v; the machine stood still or was taken by others for %v\n", r.Seed,
		len(r.Faults), r.Planned, r.Took.Round(time.Second), r.Acked, round(r.QuietGap.Long), r.Lost.Round(time.Second))
	fmt.Fprintf(w, "%-14s %5s  %10s %10s %10s  %10s %10s\n", "fault", "count", "gap p50", "gap max", "stock max", "heal p50", "heal max")
	for _, k := range slices.Sorted(maps.Keys(r.Kinds)) {
		s := r.Kinds[k]
		bound := ""
		if k.judged() {
			bound = fmt.Sprintf("  (at most %v: %d over)", unavailableMax, s.OverBound)
		}
		fmt.Fprintf(w, "%-14s %5d  %10v %10v %10v  %10v %10v%s\n", k, s.Count, round(s.GapP50), round(s.GapMax), round(s.StockMax), round(s.HealP50), round(s.HealMax), bound)
	}
	if len(r.NotPossible) > 0 {
		fmt.Fprintf(w, "not possible here: %v\n", r.NotPossible)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Workloads)) {
		if v := r.Workloads[name]; v != nil {
			fmt.Fprintf(w, "%s: sent %d, acknowledged %d, found %d, sent twice by the writer %d; violations %v\n", name, v.Sent, v.Acked, v.Found, v.Resent, v.Counts)
		}
	}
	fmt.Fprintf(w, "replicas: %d partitions, %d batches equal byte for byte, %d end earlier, %d findings\n", r.Replicas.Partitions, r.Replicas.Batches, r.Replicas.Shorter, len(r.Replicas.Divergent))
	for _, text := range r.Excused {
		fmt.Fprintf(w, "excused: %s\n", text)
	}
	if r.Failed != "" {
		fmt.Fprintf(w, "the run did not get to its end: %s\n", r.Failed)
	}
	if r.OK() {
		fmt.Fprintln(w, "OK: nothing lost, doubled, reordered or divergent")
		return
	}
	fmt.Fprintf(w, "%d violations:\n  %s\nreplay with --seed %d; what the nodes said is in %s\n", len(r.Violations), strings.Join(r.Violations, "\n  "), r.Seed, r.Dir)
}
