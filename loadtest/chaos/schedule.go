package chaos

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Conditions decide which kinds a run can have.
type Conditions struct {
	Switchboard bool   // the program can be told to fail
	Gateway     bool   // there is a gateway
	Only        []Kind // when given, no others
}

// scheduleStream separates the schedule's random numbers from all others that are made of the same seed.
const scheduleStream = 0x5c4ed

// kinds are the faults that are possible, in a fixed order.
func (c Conditions) kinds() []Kind {
	all := []Kind{Kill, Pause, Restart, Isolate, Separate, Cut, CutOneWay, Lossy, Narrow, Slow, HalfOpen, FullDisk, Damage, DamageLog, LostDisk, Join, Move}
	if c.Gateway {
		all = append(all, GatewayCut, GatewayDie)
	}
	if c.Switchboard {
		all = append(all, SlowDisk, FailSync, LyingSync, PowerCut, Blackout, Clock)
	}
	if len(c.Only) == 0 {
		return all
	}
	if c.Switchboard {
		all = append(all, LyingLead)
	}
	return slices.DeleteFunc(all, func(k Kind) bool { return !slices.Contains(c.Only, k) })
}

// Schedule makes n faults of a seed. The kinds come in rounds: each once, in random order, then again, so that a short run has seen all of them.
// The same seed and conditions give the same schedule, of which a smaller n is the beginning.
func Schedule(seed uint64, n int, c Conditions) []Fault {
	r := rand.New(rand.NewPCG(seed, scheduleStream))
	kinds := c.kinds()
	var out []Fault
	for len(out) < n && len(kinds) > 0 {
		round := slices.Clone(kinds)
		r.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		for _, k := range round {
			f := draw(r, k)
			f.Number = len(out) + 1
			f.Wait = between(r, 500*time.Millisecond, 2*time.Second)
			out = append(out, f)
		}
	}
	return out[:min(n, len(out))]
}

// between is a duration in steps that a person can read.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	const step = 50 * time.Millisecond
	return from + step*time.Duration(r.Int64N(int64((to-from)/step)+1))
}

// oneOf draws a value.
func oneOf[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

// draw makes a fault of a kind. It draws the same number of values whatever they are, so that one kind's details do not move the others.
func draw(r *rand.Rand, k Kind) Fault {
	f := Fault{Kind: k, Role: oneOf(r, Leader, Leader, Controller, Follower), For: between(r, time.Second, 5*time.Second), Value: r.IntN(1 << 20)}
	also := oneOf(r, Lossy, Narrow, Slow)
	together, long := r.IntN(4) == 0, r.IntN(8) == 0
	if long {
		f.For *= 3 // so long that others take the node for dead
	}
	drawn := f.Value
	f.shape()
	if together && f.overlaps() {
		second := Fault{Kind: also, Value: drawn}
		second.shape()
		f.Also = &Fault{Kind: also, Value: second.Value}
	}
	return f
}

// overlaps tells whether a second fault on the node's links makes sense beside it.
func (f *Fault) overlaps() bool {
	switch f.Kind {
	case Kill, Pause, Restart, Cut, CutOneWay, FullDisk, SlowDisk, Clock:
		return true
	}
	return false
}

// lyingMax is how long a follower's disk lies: a node that was just restarted is given its leaderships back after about five seconds.
const lyingMax = 3 * time.Second

// shareMax is how long a node that has joined keeps its share, and how long moves are left alone: they take their own time besides.
const shareMax = 3 * time.Second

// shape turns what was drawn into values that fit the kind.
func (f *Fault) shape() {
	v := f.Value
	switch f.Kind {
	case Lossy:
		f.Value = 5 + v%26
	case Narrow:
		f.Value = 512 << (v % 4)
	case Slow:
		f.Value = 20 + v%100
	case SlowDisk:
		f.Value = 20 + v%200
	case Clock:
		f.Value = []int{-86400, -3600, -60, -2, 2, 60, 3600, 86400}[v%8]
	case Blackout, GatewayCut, GatewayDie, Join, Move:
		f.Role = ""
	}
	switch f.Kind {
	case LyingSync:
		f.For = min(f.For, lyingMax)
	case Join, Move:
		f.For = min(f.For, shareMax)
	case FullDisk:
		f.For += 2 * time.Second // longer than writes may be refused
	case Damage, DamageLog, LostDisk, Restart, PowerCut, Blackout:
		f.For = f.For / 4 // the time between stop and start
	}
}
