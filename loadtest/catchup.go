package loadtest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// catchUpPoll is how often the cluster is asked who is in sync.
	catchUpPoll = 200 * time.Millisecond
	// catchUpWithin bounds the wait for the replica that was away.
	catchUpWithin = 30 * time.Minute
)

// CatchUp measures what it costs others when a replica that was away comes back: it kills a node, writes much, starts the node again, and produces at a
// fixed rate all the while.
type CatchUp struct {
	Nodes
	Bytes      int64 // written while the node is away
	Rate       float64
	Size       int           // bytes of a record of the live traffic
	Phase      time.Duration // how long each phase without a catch-up is measured
	Partitions int32         // of the topic that is written while the node is away
	Interrupt  bool          // kill the node again in the middle of its catch-up
	Retention  int64         // retention.bytes of the topic, so that what the node had is gone when it comes back; 0 = none
	Progress   io.Writer
}

// CatchUpResult is what a run prints.
type CatchUpResult struct {
	Load        string        `json:"load"`
	Phases      []PhaseResult `json:"phases"`
	WrittenMB   float64       `json:"written_mb"`
	WriteMBPerS float64       `json:"write_mb_per_s"`
	// CatchUpSeconds is from the start of the process to the moment at which it is in sync for every partition.
	CatchUpSeconds  float64  `json:"catch_up_seconds"`
	CatchUpMBPerS   float64  `json:"catch_up_mb_per_s"`
	FetchedMB       float64  `json:"fetched_mb"`        // as the node's own counter says, over all its lives; 0 when it has none
	FetchedBeforeMB float64  `json:"fetched_before_mb"` // of these before it was killed in the middle
	Failures        []string `json:"failures"`
}

// Run runs it. The nodes are stopped at the end when they are ours.
func (l CatchUp) Run(ctx context.Context) (CatchUpResult, error) {
	r := CatchUpResult{Load: "catchup", Failures: []string{}}
	defer l.Stop()
	if err := l.Start(ctx); err != nil {
		return r, err
	}
	suffix := fmt.Sprint(time.Now().UnixNano())
	probe := &Probe{Kafka: Kafka{Brokers: l.Brokers(), Topic: "catchup-live-" + suffix, Partitions: 6, ReplicationFactor: int16(len(l.list))}, Rate: l.Rate, Size: l.Size}
	if err := probe.open(ctx); err != nil {
		return r, err
	}
	defer probe.close()
	bulk := Kafka{Brokers: l.Brokers(), Topic: "catchup-bulk-" + suffix}
	if err := l.createBulk(ctx, probe.client, bulk.Topic); err != nil {
		return r, err
	}
	run := phases{probe: probe, nodes: &l.Nodes, progress: l.Progress}
	run.begin(ctx, "before")
	err := l.phases(ctx, &run, bulk, &r)
	run.finish()
	r.Phases = run.results()
	_, _ = kadm.NewClient(probe.client).DeleteTopics(ctx, probe.Topic, bulk.Topic) // a running cluster shall not keep them; ours goes away
	r.judge()
	return r, err
}

func (l CatchUp) createBulk(ctx context.Context, c *kgo.Client, topic string) error {
	configs := map[string]*string{}
	if l.Retention > 0 {
		bytes, segment := fmt.Sprint(l.Retention), fmt.Sprint(max(l.Retention/4, 1<<20))
		configs["retention.bytes"], configs["segment.bytes"] = &bytes, &segment
	}
	return created(ctx, c, l.Partitions, int16(len(l.list)), configs, topic)
}

// phases is the sequence of a measurement with its probe and samples.
type phases struct {
	probe    *Probe
	nodes    *Nodes
	progress io.Writer
	stop     context.CancelFunc
	all      sync.WaitGroup
	peaks    []map[string]Peak
	endPhase func()
	seen     []map[string]int64
}

// begin starts the probe with the first phase.
func (p *phases) begin(ctx context.Context, name string) {
	ctx, p.stop = context.WithCancel(ctx)
	p.next(ctx, name)
	p.all.Go(func() { _ = p.probe.Run(ctx) }) // its schedule has an end: no error is possible
}

// next ends a phase and begins another.
func (p *phases) next(ctx context.Context, name string) {
	p.end()
	p.probe.Phase(name)
	if p.progress != nil {
		fmt.Fprintf(p.progress, "%s  %s\n", time.Now().Format(time.TimeOnly), name)
	}
	sampling, stop := context.WithCancel(ctx)
	done := make(chan map[string]Peak, 1)
	go func() { done <- p.nodes.Sample(sampling) }()
	p.seen = append(p.seen, nil)
	p.endPhase = func() {
		stop()
		p.peaks = append(p.peaks, <-done)
	}
}

func (p *phases) end() {
	if p.endPhase != nil {
		p.endPhase()
		p.endPhase = nil
	}
}

// finish ends the last phase and waits for the probe's last answers.
func (p *phases) finish() {
	p.end()
	p.stop()
	p.all.Wait()
}

func (p *phases) results() []PhaseResult {
	list := p.probe.Results()
	for i := range list {
		list[i].Peak, list[i].Seen = p.peaks[i], p.seen[i]
	}
	return list
}

func (l CatchUp) phases(ctx context.Context, run *phases, bulk Kafka, r *CatchUpResult) error {
	if !pauseFor(ctx, l.Phase) {
		return ctx.Err()
	}
	victim := l.list[len(l.list)-1]
	run.next(ctx, "one node away, being written to")
	if err := victim.Kill(ctx); err != nil {
		return err
	}
	written, err := Produce{Kafka: bulk, Size: 16 << 10, Records: l.Bytes >> 14, Acks: "all", Idempotent: true, Compression: "none", Random: true, BatchBytes: 1000000}.Run(ctx)
	if err != nil {
		return err
	}
	r.WrittenMB, r.WriteMBPerS = float64(written.Bytes)/1e6, written.MBPerS
	if written.Errors > 0 {
		r.Failures = append(r.Failures, "write: "+written.FirstError)
	}
	run.next(ctx, "one node away")
	if !pauseFor(ctx, l.Phase) {
		return ctx.Err()
	}
	run.next(ctx, "catch-up")
	if err := l.catchUp(ctx, run, victim, r); err != nil {
		return err
	}
	run.next(ctx, "after")
	if !pauseFor(ctx, l.Phase) {
		return ctx.Err()
	}
	return nil
}

// catchUp starts the node and waits until it is in sync.
func (l CatchUp) catchUp(ctx context.Context, run *phases, victim *Node, r *CatchUpResult) error {
	began := time.Now()
	if err := victim.Start(); err != nil {
		return err
	}
	if l.Interrupt {
		if err := l.interrupt(ctx, victim, r); err != nil {
			return err
		}
	}
	if err := victim.Ready(ctx); err != nil {
		return err
	}
	adm := kadm.NewClient(run.probe.client)
	var fetched float64
	for time.Since(began) < catchUpWithin {
		if f, ok := metric(ctx, victim, fetchedCounter); ok {
			fetched = f
		}
		if inSync(ctx, adm, int32(len(l.list))) {
			r.CatchUpSeconds = time.Since(began).Seconds()
			r.FetchedMB = r.FetchedBeforeMB + fetched/1e6
			r.CatchUpMBPerS = r.WrittenMB / r.CatchUpSeconds
			return nil
		}
		if !pauseFor(ctx, catchUpPoll) {
			return ctx.Err()
		}
	}
	return fmt.Errorf("%s is not in sync after %v", victim.Name, catchUpWithin)
}

// interrupt kills the node when it has fetched about half, and starts it again.
func (l CatchUp) interrupt(ctx context.Context, victim *Node, r *CatchUpResult) error {
	for begin := time.Now(); time.Since(begin) < catchUpWithin; {
		f, ok := metric(ctx, victim, fetchedCounter)
		if ok && f >= float64(l.Bytes)/2 {
			r.FetchedBeforeMB = f / 1e6
			if err := victim.Kill(ctx); err != nil {
				return err
			}
			return victim.Start()
		}
		if !pauseFor(ctx, nodesPoll) {
			return ctx.Err()
		}
	}
	return fmt.Errorf("%s has not fetched half of it after %v", victim.Name, catchUpWithin)
}

// inSync says whether every partition of the cluster has so many replicas in sync.
func inSync(ctx context.Context, adm *kadm.Client, node int32) bool {
	topics, err := adm.ListTopicsWithInternal(ctx)
	if err != nil || topics.Error() != nil {
		return false
	}
	for _, t := range topics {
		for _, p := range t.Partitions {
			if slices.Contains(p.Replicas, node) && !slices.Contains(p.ISR, node) {
				return false
			}
		}
	}
	return true
}

func (r *CatchUpResult) judge() {
	for _, p := range r.Phases {
		if p.Errors > 0 {
			r.Failures = append(r.Failures, fmt.Sprintf("%s: %d errors of the live traffic: %s", p.Phase, p.Errors, p.FirstError))
		}
	}
}
