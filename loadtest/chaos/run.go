package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// healMax bounds the wait for a cluster that heals after a fault.
	healMax = 2 * time.Minute
	// settle is the time without faults at the beginning, whose longest gap shows what the machine does by itself.
	settle = 5 * time.Second
	// servedMax is how long ago the last write to each partition may be acknowledged in a cluster that is whole.
	servedMax = time.Second
	// tidyMax bounds the wait for directories of partitions that have moved to be deleted.
	tidyMax = 30 * time.Second
	// endMax bounds clean-up after the run was told to end.
	endMax = 2 * time.Minute
)

// Options of a run.
type Options struct {
	Binary      string // sluice; one built with the fault switchboard can do more
	Dir         string // where the run's directory is made
	Seed        uint64
	Faults      int
	DurationMax time.Duration // no fault begins later than this after the first
	Again       int           // how many faults that cost too much may be done once more, to tell an outage from a busy machine
	Nodes       int
	Gateway     bool
	Only        []Kind  // when given, no other kinds
	Rate        float64 // records a second straight to the cluster
	DeviceRate  float64 // messages a second over the gateway
	Keep        bool    // keep the data also when all is well
	Progress    io.Writer
}

// ErrOptions is returned when the options cannot be meant.
var ErrOptions = errors.New("wrong options")

func (o Options) validate() error {
	switch {
	case o.Nodes < 3:
		return fmt.Errorf("%w: %d nodes: with less than 3 no node may be missing", ErrOptions, o.Nodes)
	case o.Faults < 1 || o.DurationMax <= 0 || o.Rate <= 0 || o.DeviceRate <= 0:
		return fmt.Errorf("%w: faults %d, duration %v, rates %v and %v: all have to be positive", ErrOptions, o.Faults, o.DurationMax, o.Rate, o.DeviceRate)
	}
	known := append(Conditions{Switchboard: true, Gateway: true}.kinds(), LyingLead)
	for _, k := range o.Only {
		if !slices.Contains(known, k) {
			return fmt.Errorf("%w: there is no fault %q, but %v", ErrOptions, k, known)
		}
	}
	return nil
}

// run is a run under way.
type run struct {
	o        Options
	owned    owned
	cluster  *cluster
	timeline *timeline // of the steady writer: what is judged
	clients  *workloads
	stalls   *stalls
	start    time.Time
	report   *Report
	noted    string // by the fault under way
	damaged  []harm // segments that have to be repaired
	again    int    // faults that were done once more
}

// Run breaks a cluster as the seed says and reports what became of it. The error is about the run itself, ErrUnfit for one that this machine
// cannot do; what is wrong with the cluster is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := fit(); err != nil {
		return nil, err
	}
	if err := sweep(ctx); err != nil {
		return nil, fmt.Errorf("remove what earlier runs left: %w", err)
	}
	r, err := newRun(o)
	if err != nil {
		return nil, err
	}
	// What the processes hang on outlives the caller's wish to stop: they are stopped in order.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	err = r.setUp(life)
	if err == nil {
		err = r.faultsAndVerdict(ctx)
	}
	if err != nil {
		r.report.Failed = err.Error()
	}
	r.report.judge()
	end, stop := context.WithTimeout(life, endMax)
	defer stop()
	return r.report, errors.Join(err, r.tearDown(end, err))
}

func newRun(o Options) (*run, error) {
	pid := os.Getpid()
	subnet, err := freeSubnet(pid)
	if err != nil {
		return nil, err
	}
	binary, err := filepath.Abs(o.Binary)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", o.Binary, err)
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("%w: %w: build it first", ErrOptions, err)
	}
	id := strconv.FormatUint(uint64(rand.Uint32N(36*36*36*36*36)), 36)
	dir, err := filepath.Abs(filepath.Join(o.Dir, fmt.Sprintf("%d-%s", o.Seed, id)))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", o.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the run's directory: %w", err)
	}
	r := &run{o: o, owned: owned{PID: pid, Started: started(pid), ID: id, Dir: dir, Members: members(o.Nodes)}}
	r.cluster = &cluster{net: network{id: id, subnet: subnet, members: members(o.Nodes)}, dir: dir, binary: binary, seed: o.Seed}
	r.report = &Report{Seed: o.Seed, Run: id, Dir: dir, Began: time.Now(), Planned: o.Faults, Faults: []Outcome{}, Violations: []string{}}
	return r, nil
}

// setUp makes disks and network and starts the cluster.
func (r *run) setUp(ctx context.Context) error {
	c := r.cluster
	if err := r.owned.write(); err != nil {
		return err
	}
	if err := runAll(ctx, c.net.up()); err != nil {
		return fmt.Errorf("%w: make the network: %w", ErrUnfit, err)
	}
	if err := c.net.probe(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	if err := c.writeConfig(); err != nil {
		return err
	}
	l := newLauncher(ctx)
	for i := range r.o.Nodes {
		d, err := c.newDisk(ctx, i+1)
		if err != nil {
			return err
		}
		c.disks = append(c.disks, d)
		c.nodes = append(c.nodes, c.node(l, i+1, d))
	}
	var err error
	if c.spareDisk, err = c.newDisk(ctx, c.spareMember()); err != nil {
		return err
	}
	c.spare = c.node(l, c.spareMember(), c.spareDisk)
	if r.o.Gateway {
		if c.gateway, err = c.edge(l); err != nil {
			return err
		}
	}
	if err := c.start(ctx); err != nil {
		return err
	}
	c.boards = switchboard{c.switchboard(1)}.answers(ctx)
	return c.await(ctx, readyMax, "the cluster is whole", func() error { return c.healthy(ctx) })
}

// faultsAndVerdict lets the workloads work, does the faults, and judges.
func (r *run) faultsAndVerdict(ctx context.Context) error {
	r.start = time.Now()
	r.timeline, r.stalls = newTimeline(r.start), &stalls{start: r.start}
	looking, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	looked := make(chan error, 1)
	ours := slices.Clone(r.cluster.all())
	go func() { looked <- r.stalls.run(looking, r.cluster.dir, ours) }()
	defer func() { stop(); <-looked }()
	r.report.Conditions = Conditions{Switchboard: r.cluster.boards, Gateway: r.o.Gateway, Only: r.o.Only}
	for _, k := range (Conditions{Switchboard: true, Gateway: true, Only: r.o.Only}).kinds() {
		if !slices.Contains(r.report.Conditions.kinds(), k) {
			r.report.NotPossible = append(r.report.NotPossible, k)
		}
	}
	var err error
	if r.clients, err = r.startWorkloads(ctx); err != nil {
		return err
	}
	if err := r.faults(ctx); err != nil {
		r.clients.abandon()
		return err
	}
	return r.verdict(ctx)
}

// verdict brings the workloads to their end, stops the nodes, and compares what their disks hold.
func (r *run) verdict(ctx context.Context) error {
	r.say("the workloads come to their end")
	var err error
	if r.report.Workloads, err = r.clients.finish(ctx); err != nil {
		return err
	}
	r.report.Acked, r.report.Did = r.timeline.count(), r.clients.did()
	if err := r.rest(ctx); err != nil {
		return err
	}
	r.report.Replicas, err = compareReplicas(r.cluster.data())
	r.report.Took = time.Since(r.start)
	r.report.Lost = r.stalls.lost(gap{Long: r.report.Took})
	return err
}

// rest stops all nodes, starts them once more, as nodes that keep what they write, and stops them when all is in sync: the end of a life in which a
// kill takes what was not synced leaves such tails on the disk, which the next start cuts off.
func (r *run) rest(ctx context.Context) error {
	c := r.cluster
	if err := c.stop(); err != nil {
		r.report.violate("%v", err)
	}
	c.calm = true
	for _, n := range c.nodes {
		if err := n.start(ctx); err != nil {
			return err
		}
	}
	c.gateway = nil // it has ended; nothing is to come over it
	if err := c.await(ctx, readyMax, "the cluster is whole after its last start", func() error { return c.healthy(ctx) }); err != nil {
		r.report.violate("%v", err)
	}
	if err := c.await(ctx, tidyMax, "what has moved is deleted where it was", func() error { return single(c.data()) }); err != nil && !errors.Is(err, errWaited) {
		r.report.violate("%v", err) // what is left for good is seen when the disks are compared
	}
	if err := c.stop(); err != nil {
		r.report.violate("%v", err)
	}
	return nil
}

// faults does what the schedule says until it or the time is over. A cluster that does not heal ends it.
func (r *run) faults(ctx context.Context) error {
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	r.report.QuietGap = first(r.timeline.gaps(settle/4, settle))
	for _, f := range Schedule(r.o.Seed, r.o.Faults, r.report.Conditions) {
		if time.Since(r.start) > r.o.DurationMax {
			r.say("the time is over: %d faults of %d", len(r.report.Faults), r.o.Faults)
			return nil
		}
		if err := sleep(ctx, f.Wait); err != nil {
			return err
		}
		healed, err := r.once(ctx, f)
		if err = errors.Join(err, r.clients.gave()); err != nil || !healed {
			return err
		}
	}
	return nil
}

func first(gaps []gap) gap {
	if len(gaps) == 0 {
		return gap{}
	}
	return gaps[0]
}

// once does a fault; one that cost more than it may, but not so much that it can only be an outage, it does once more if that is allowed: what the
// cluster does wrong comes again.
func (r *run) once(ctx context.Context, f Fault) (bool, error) {
	healed, err := r.fault(ctx, f)
	n := len(r.report.Faults)
	if err != nil || !healed || r.again >= r.o.Again || !r.report.Faults[n-1].doubtful() {
		return healed, err
	}
	r.again++
	r.say("     too long: it is done once more")
	if err := sleep(ctx, f.Wait); err != nil {
		return false, err
	}
	healed, err = r.fault(ctx, f)
	if len(r.report.Faults) > n {
		second := r.report.Faults[n]
		r.report.Faults[n-1].Second = &second.Worst
		r.report.Faults[n-1].Passed = healed && !second.over()
	}
	return healed, err
}

// fault does one fault from its beginning until the cluster has healed, and measures what it cost.
func (r *run) fault(ctx context.Context, f Fault) (bool, error) {
	node := 0
	var err error
	if f.Role != "" {
		if node, err = r.cluster.pick(ctx, f.Role); err != nil {
			return false, err
		}
	}
	o := Outcome{Fault: f, Text: f.String(), On: r.on(f, node), Judged: f.judged()}
	r.say("%3d  %s: %s", f.Number, o.Text, o.On)
	if err := r.hurt(ctx, f, node, &o); err != nil {
		return false, fmt.Errorf("fault %d (%s, on %s): %w", f.Number, o.Text, o.On, err)
	}
	healed, until := r.heal(ctx, &o, node)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	// A write that is under way now belongs to the fault too; what it cost to help the cluster does not.
	if err := sleep(ctx, unavailableMax/4); err != nil {
		return false, err
	}
	o.Gaps = r.timeline.gaps(o.Began, until)
	o.Worst, o.Stock = first(o.Gaps), r.clients.stock(o.Began, until)
	o.Stalled = r.stalls.within(o.Worst)
	r.report.Faults = append(r.report.Faults, o)
	r.say("     %s", o.told())
	return healed, nil
}

// heal waits until the cluster has healed. If it does not, that is a violation; a restart of the node, and then its replacement by an empty one,
// show what would help, and let the run go on. until is when the cluster had healed, or was given up the first time.
func (r *run) heal(ctx context.Context, o *Outcome, node int) (healed bool, until time.Duration) {
	wait := func() error {
		return r.cluster.await(ctx, healMax, "the cluster heals", func() error {
			err := errors.Join(r.cluster.healthy(ctx), r.repaired(), r.served())
			if err != nil {
				o.Last = err.Error()
			}
			return err
		})
	}
	err := wait()
	until = time.Since(r.start)
	for _, help := range []struct {
		what string
		do   func(context.Context, int) error
	}{{"restarted", r.restart}, {"replaced by an empty one", r.replace}} {
		if err == nil || ctx.Err() != nil || node == 0 {
			break
		}
		o.Wrong, o.Helped = err.Error(), help.what
		r.evidence(ctx, o.Number)
		r.say("     NOT HEALED: %v; the node is %s", err, help.what)
		if err = help.do(ctx, node); err == nil {
			err = wait()
		}
	}
	if err != nil {
		o.Wrong, o.Helped = err.Error(), "nothing"
		return false, until
	}
	o.Healed = time.Since(r.start)
	return true, until
}

// served tells whether every partition takes writes: what the nodes say of themselves is not enough.
func (r *run) served() error {
	if who, silent := r.timeline.silent(time.Now(), servedMax); silent {
		return fmt.Errorf("%w: %s has had no acknowledged write for %v", errUnhealthy, who, servedMax)
	}
	return nil
}

// evidence keeps what the nodes say of themselves at a moment when something is wrong.
func (r *run) evidence(ctx context.Context, number int) {
	for i := range r.cluster.nodes {
		for _, what := range []string{"status", "debug/pprof/goroutine?debug=2"} {
			body, err := get(ctx, "http://"+r.cluster.http(i+1)+"/"+what)
			if err != nil {
				body = []byte(err.Error())
			}
			name := fmt.Sprintf("fault-%d-core-%d-%s.txt", number, i+1, strings.NewReplacer("/", "-", "?", "-", "=", "").Replace(what))
			if err := os.WriteFile(filepath.Join(r.cluster.dir, name), body, 0o644); err != nil {
				r.say("     %v", err)
			}
		}
	}
}

// restart stops a node, one that has ended by itself too, and starts it again.
func (r *run) restart(ctx context.Context, node int) error {
	p := r.cluster.nodes[node-1]
	if err := p.stop(stopMax); err != nil {
		r.say("     %v", err)
	}
	return p.start(ctx)
}

// replace starts a node with an empty disk, as one would replace a machine that is gone.
func (r *run) replace(ctx context.Context, node int) error {
	r.cluster.nodes[node-1].kill()
	if err := r.cluster.disks[node-1].lose(); err != nil {
		return err
	}
	return r.cluster.nodes[node-1].start(ctx)
}

// told is an outcome in a line.
func (o Outcome) told() string {
	text := fmt.Sprintf("longest gap %v (%s; stock clients %v), ", round(o.Worst.Long), o.Worst.Who, round(o.Stock.Long))
	if o.Stalled > 0 {
		text += fmt.Sprintf("the machine stood still or was taken by others for %v of it, ", round(o.Stalled))
	}
	if o.Did != "" {
		text = o.Did + ", " + text
	}
	if o.Wrong != "" {
		return text + fmt.Sprintf("NOT HEALED by itself, what helped: %s; %s", o.Helped, o.Wrong)
	}
	text += fmt.Sprintf("healed %v after its end", round(max(0, o.Healed-o.Ended)))
	if o.Healed-o.Ended > unavailableMax {
		text += ", the last was: " + o.Last
	}
	return text
}

// hurt begins a fault, waits for its time, and ends it. What has begun is ended also when the run is told to stop.
func (r *run) hurt(ctx context.Context, f Fault, node int, o *Outcome) error {
	acts := []action{r.act(f, node)}
	if f.Also != nil {
		acts = append([]action{r.act(*f.Also, node)}, acts...)
	}
	life := context.WithoutCancel(ctx)
	r.noted = ""
	if err := r.prepare(ctx, acts); err != nil {
		return err
	}
	o.Began = time.Since(r.start)
	var begun []action
	var err error
	for _, a := range acts {
		if err = a.begin(life); err != nil {
			break
		}
		begun = append(begun, a)
	}
	if err == nil {
		_ = sleep(ctx, f.For) // what comes next sees that the run is told to stop
	}
	errs := []error{err}
	for _, a := range slices.Backward(begun) {
		errs = append(errs, a.end(life))
	}
	o.Ended, o.Did = time.Since(r.start), r.noted
	return errors.Join(errs...)
}

// prepare does what has to be done before a fault, and waits for a whole cluster.
func (r *run) prepare(ctx context.Context, acts []action) error {
	for _, a := range acts {
		if a.prepare == nil {
			continue
		}
		if err := a.prepare(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
		if err := r.cluster.await(ctx, healMax, "the cluster is whole before the fault", func() error { return r.cluster.healthy(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// on names whom a fault comes upon.
func (r *run) on(f Fault, node int) string {
	switch f.Kind {
	case GatewayCut, GatewayDie:
		return "edge"
	case Blackout:
		return "all nodes"
	case Join:
		return r.cluster.spare.name
	case Move:
		return strings.Join(moved, " and ")
	case Cut:
		return fmt.Sprintf("core-%d and core-%d", node, r.cluster.another(node, f.Value))
	case CutOneWay:
		return fmt.Sprintf("core-%d to core-%d", node, r.cluster.another(node, f.Value))
	}
	return fmt.Sprintf("core-%d", node)
}

func (r *run) note(text string) { r.noted = text }

func (r *run) say(format string, args ...any) {
	if r.o.Progress == nil {
		return
	}
	fmt.Fprintf(r.o.Progress, "%s %7.1f s  %s\n", time.Now().Format("15:04:05.0"), time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

// tearDown removes everything; the data stay when something is wrong.
func (r *run) tearDown(ctx context.Context, failed error) error {
	r.cluster.end()
	keep := r.o.Keep || failed != nil || !r.report.OK()
	var errs []error
	if keep {
		errs = append(errs, r.keepData(ctx))
	}
	errs = append(errs, remove(ctx, r.owned))
	if !keep {
		errs = append(errs, os.RemoveAll(r.owned.Dir))
	}
	return errors.Join(errs...)
}

// keepData copies what is on the nodes' disks out of them, and removes these.
func (r *run) keepData(ctx context.Context) error {
	var errs []error
	disks := slices.Clone(r.cluster.disks)
	if r.cluster.spareDisk.dir != "" {
		disks = append(disks, r.cluster.spareDisk)
	}
	for _, d := range disks {
		if _, err := os.Stat(d.data()); err == nil {
			errs = append(errs, execute(ctx, command{"cp", "-a", "--sparse=always", d.data(), d.dir + "-data"}))
		}
		errs = append(errs, os.Remove(d.file)) // it goes when it is unmounted
	}
	return errors.Join(errs...)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
