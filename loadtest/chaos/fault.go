package chaos

import (
	"fmt"
	"strings"
	"time"
)

// Kind of a fault.
type Kind string

// The kinds. Those below the line are done by the program itself, when it is built with its fault switchboard.
const (
	Kill       Kind = "kill"        // SIGKILL; started again
	Pause      Kind = "pause"       // SIGSTOP, SIGCONT
	Restart    Kind = "restart"     // SIGTERM, a clean stop; started again
	Isolate    Kind = "isolate"     // cut from everybody, clients too
	Separate   Kind = "separate"    // cut from the other nodes; clients still reach it
	Cut        Kind = "cut"         // the link between two nodes, both ways
	CutOneWay  Kind = "cut-one-way" // what one node sends to another
	Lossy      Kind = "lossy"       // a part of a node's packets is lost, both ways
	Narrow     Kind = "narrow"      // a bound on what a node may send
	Slow       Kind = "slow"        // the links between a node and the others answer late
	HalfOpen   Kind = "half-open"   // the links between a node and the others stop forwarding; nothing closes
	FullDisk   Kind = "full-disk"   // a node's file system is filled up
	Damage     Kind = "damage"      // a closed segment of a stopped node is changed or cut short
	DamageLog  Kind = "damage-log"  // a Raft log file of a stopped node is changed or cut short
	LostDisk   Kind = "lost-disk"   // a node is killed and comes back with an empty disk
	Join       Kind = "join"        // a node joins with an empty disk, gets its share, is drained and removed
	Move       Kind = "move"        // all partitions that are written to move to other shards
	GatewayCut Kind = "gateway-cut" // the gateway loses its uplink
	GatewayDie Kind = "gateway-kill"

	SlowDisk  Kind = "slow-disk"
	FailSync  Kind = "fail-sync"
	LyingSync Kind = "lying-sync" // a follower's syncs are answered and not done, then its power goes
	LyingLead Kind = "lying-lead" // the same of a node that leads: only when asked for: what protects from it ends by time
	PowerCut  Kind = "power-cut"  // what was not synced is lost
	Blackout  Kind = "blackout"   // a power cut of all nodes at once
	Clock     Kind = "clock"      // the node's wall clock jumps
)

// Role says on whom a fault comes, in words that hold for every cluster.
type Role string

// The roles. Who has them is looked up when the fault begins.
const (
	Leader     Role = "leader"     // the node that leads most partitions
	Controller Role = "controller" // the leader of the metadata
	Follower   Role = "follower"   // neither of them, where there is such a node
)

// Fault is one entry of a schedule.
type Fault struct {
	Number int           `json:"number"`
	Kind   Kind          `json:"kind"`
	Role   Role          `json:"role,omitempty"`
	Wait   time.Duration `json:"wait"`  // before it begins, with everything healthy
	For    time.Duration `json:"for"`   // how long it lasts
	Value  int           `json:"value"` // of the kind: percent, kbit/s, ms, seconds; a seed for damage
	// Also is a second fault on the same node for the same time: still one node, so still a minority.
	Also *Fault `json:"also,omitempty"`
}

// String is the fault for people.
func (f Fault) String() string {
	parts := []string{string(f.Kind)}
	if f.Role != "" {
		parts = append(parts, "the "+string(f.Role))
	}
	if text := f.value(); text != "" {
		parts = append(parts, text)
	}
	if f.For > 0 {
		parts = append(parts, "for "+f.For.String())
	}
	if f.Also != nil {
		parts = append(parts, "while "+string(f.Also.Kind)+" "+f.Also.value())
	}
	return strings.TrimSpace(strings.Join(parts, " "))
}

func (f Fault) value() string {
	switch f.Kind {
	case Lossy:
		return fmt.Sprintf("%d %%", f.Value)
	case Narrow:
		return fmt.Sprintf("%d kbit/s", f.Value)
	case Slow, SlowDisk:
		return fmt.Sprintf("%d ms", f.Value)
	case Clock:
		return fmt.Sprintf("%+d s", f.Value)
	}
	return ""
}

// judged tells whether writes have to go on within unavailableMax after a fault of this kind. Not after a move: it may freeze a partition for as long
// as that before it is begun anew, by itself without harm.
func (k Kind) judged() bool {
	switch k {
	case Kill, Pause, Restart, Isolate, Separate, Cut, CutOneWay, FullDisk, Damage, DamageLog, LostDisk, Join, PowerCut:
		return true
	}
	return false
}

// judged: of two faults at once neither can be told from the other, so they are reported only.
func (f Fault) judged() bool { return f.Kind.judged() && f.Also == nil }

// unavailableMax is the longest time without an acknowledged write that a judged fault may cost a partition.
const unavailableMax = 3 * time.Second
