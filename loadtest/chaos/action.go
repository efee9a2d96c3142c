package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// action is how one fault begins and ends on a node.
type action struct {
	prepare    func(ctx context.Context) error // what has to be done before, with the cluster whole again afterwards; nil: nothing
	begin, end func(ctx context.Context) error
}

// act makes the action of a fault on a node.
func (r *run) act(f Fault, node int) action {
	c := r.cluster
	p := r.victim(f.Kind, node)
	start := func(ctx context.Context) error { return p.start(ctx) }
	switch f.Kind {
	case Kill, GatewayDie:
		return action{begin: func(context.Context) error { p.kill(); return nil }, end: start}
	case Pause:
		return action{begin: signal(p, syscall.SIGSTOP), end: signal(p, syscall.SIGCONT)}
	case Restart:
		return action{begin: func(context.Context) error { r.stopCleanly(p); return nil }, end: start}
	case Isolate:
		return changes(c.net.isolate(node)...)
	case GatewayCut:
		return changes(c.net.isolateFromNodes(c.gatewayMember(), len(c.nodes))...)
	case Separate:
		return changes(c.net.isolateFromNodes(node, len(c.nodes))...)
	case Cut:
		return changes(c.net.cutBoth(node, c.another(node, f.Value))...)
	case CutOneWay:
		return changes(c.net.cut(node, c.another(node, f.Value)))
	case Lossy:
		return changes(c.net.lossy(node, f.Value)...)
	case Narrow:
		return changes(c.net.narrow(node, f.Value))
	case Slow, HalfOpen:
		return r.proxied(f, node)
	case FullDisk:
		d := c.disks[node-1]
		return action{begin: func(context.Context) error { return d.fill(int64(f.Value % fullLeaveMax)) }, end: func(context.Context) error { return d.empty() }}
	case LostDisk:
		return action{begin: func(context.Context) error { p.kill(); return c.disks[node-1].lose() }, end: start}
	case Damage, DamageLog:
		return r.damages(f, node, p)
	case Join:
		return r.joins(f)
	case Move:
		return r.moves(f)
	}
	return r.switched(f, node, p)
}

// stopCleanly stops a process; one that does not do so in time and without an error is a violation, and the run goes on.
func (r *run) stopCleanly(p *process) {
	if err := p.stop(stopMax); err != nil {
		r.say("     %v", err)
		r.report.violate("%v", err)
	}
}

// fullLeaveMax bounds what a full disk has left: a write may still fit, or half of it.
const fullLeaveMax = 64 << 10

// victim is the process that a fault of a kind comes upon, nil when it comes upon none alone.
func (r *run) victim(k Kind, node int) *process {
	switch k {
	case GatewayDie, GatewayCut:
		return r.cluster.gateway
	case Blackout, Join, Move:
		return nil
	}
	return r.cluster.nodes[node-1]
}

func signal(p *process, s syscall.Signal) func(context.Context) error {
	return func(context.Context) error { p.signal(s); return nil }
}

// changes is an action of the network. If it cannot be begun whole, what was begun is undone.
func changes(all ...change) action {
	var done []change
	undo := func(ctx context.Context) error {
		err := runAll(ctx, undoAll(done))
		done = nil
		return err
	}
	begin := func(ctx context.Context) error {
		for _, c := range all {
			if err := execute(ctx, c.do); err != nil {
				return errors.Join(err, undo(ctx))
			}
			done = append(done, c)
		}
		return nil
	}
	return action{begin: begin, end: undo}
}

// proxied leads all connections between a node and the others through proxies, which deliver late or stop delivering.
func (r *run) proxied(f Fault, node int) action {
	var stop context.CancelFunc
	var running sync.WaitGroup
	var holding *time.Timer
	net := changes()
	end := func(ctx context.Context) error {
		if holding != nil {
			holding.Stop()
		}
		err := net.end(ctx)
		stop()
		running.Wait()
		return err
	}
	begin := func(ctx context.Context) error {
		life, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stop = cancel
		var all []change
		var proxies []*proxy
		for _, pair := range r.cluster.pairs(node) {
			p, err := newProxy(hostPort(r.cluster.net.host(), 0), hostPort(r.cluster.net.address(pair.to), nodePort))
			if err != nil {
				return errors.Join(err, end(ctx))
			}
			p.shape(f)
			proxies = append(proxies, p)
			running.Go(func() { p.run(life) })
			all = append(all, r.cluster.net.divert(pair.from, pair.to, nodePort, p.port())...)
		}
		net = changes(all...)
		if err := net.begin(ctx); err != nil {
			return errors.Join(err, end(ctx))
		}
		if f.Kind == HalfOpen {
			holding = time.AfterFunc(f.For/halfOpenPart, func() { holdAll(proxies) })
		}
		return nil
	}
	return action{begin: begin, end: end}
}

// halfOpenPart of the fault's time the proxies forward, so that there are open connections to stop.
const halfOpenPart = 4

func holdAll(proxies []*proxy) {
	for _, p := range proxies {
		p.hold()
	}
}

// shape sets a slow proxy's delays; one direction may be slower than the other.
func (p *proxy) shape(f Fault) {
	if f.Kind == Slow {
		ms := time.Duration(f.Value) * time.Millisecond
		p.delay(ms, ms/time.Duration(1+f.Value%4))
	}
}

type pair struct{ from, to int }

// pairs are the directions in which a node and the others open connections.
func (c *cluster) pairs(node int) (out []pair) {
	for i := range c.nodes {
		if i+1 != node {
			out = append(out, pair{node, i + 1}, pair{i + 1, node})
		}
	}
	return out
}

// damages kills a node, changes one of its files, and starts it again.
func (r *run) damages(f Fault, node int, p *process) action {
	begin := func(context.Context) error {
		p.kill()
		h, err := damage(r.cluster.disks[node-1].data(), f)
		r.note(h.what)
		if f.Kind == Damage && h.file != "" {
			h.node = node
			r.damaged = append(r.damaged, h)
		}
		return err
	}
	return action{begin: begin, end: func(ctx context.Context) error { return p.start(ctx) }}
}

// switched is a fault that the program does to itself when its switchboard is told so.
func (r *run) switched(f Fault, node int, p *process) action {
	b := switchboard{r.cluster.switchboard(node)}
	heal := func(ctx context.Context) error { return b.files(ctx) }
	switch f.Kind {
	case SlowDisk:
		return action{begin: func(ctx context.Context) error {
			return b.files(ctx, fileRule{Op: "sync", Path: "**", Mode: "slow", DelayMs: f.Value})
		}, end: heal}
	case FailSync:
		return action{begin: func(ctx context.Context) error {
			return b.files(ctx, fileRule{Op: "sync", Path: "**", Mode: "fail", Count: 1 + f.Value%3})
		}, end: heal}
	case LyingSync, LyingLead:
		prepare := r.volatile(node, p)
		if f.Kind == LyingSync {
			prepare = r.follows(p)
		}
		return action{
			prepare: prepare,
			begin:   func(ctx context.Context) error { return b.files(ctx, fileRule{Op: "sync", Path: "**", Mode: "lie"}) },
			end:     func(ctx context.Context) error { p.kill(); return p.start(ctx) },
		}
	case PowerCut:
		return action{prepare: r.volatile(node, p), begin: func(context.Context) error { p.kill(); return nil }, end: func(ctx context.Context) error { return p.start(ctx) }}
	case Blackout:
		return r.blackout()
	case Clock:
		return action{
			begin: func(ctx context.Context) error { return b.clock(ctx, time.Duration(f.Value)*time.Second) },
			end:   func(ctx context.Context) error { return b.clock(ctx, 0) },
		}
	}
	panic(fmt.Sprintf("BUG: no action for %q", f.Kind))
}

// volatile restarts a node whose kill would be no power cut.
func (r *run) volatile(node int, p *process) func(context.Context) error {
	return func(ctx context.Context) error {
		if !r.cluster.firm(node, p.starts-1) {
			return nil
		}
		r.stopCleanly(p)
		return p.start(ctx)
	}
}

// follows restarts a node cleanly, into a life in which a kill is a power cut, so that it leads nothing for a while.
func (r *run) follows(p *process) func(context.Context) error {
	return func(ctx context.Context) error {
		r.stopCleanly(p)
		p.volatile = true
		return p.start(ctx)
	}
}

// blackout takes the power from all nodes at once.
func (r *run) blackout() action {
	begin := func(context.Context) error {
		for _, p := range r.cluster.nodes {
			p.signal(syscall.SIGKILL) // all at once; they are waited for below
		}
		for _, p := range r.cluster.nodes {
			p.kill()
		}
		return nil
	}
	end := func(ctx context.Context) error {
		var errs []error
		for _, p := range r.cluster.nodes {
			errs = append(errs, p.start(ctx))
		}
		return errors.Join(errs...)
	}
	return action{begin: begin, end: end}
}
