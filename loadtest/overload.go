package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// Overload does to a cluster what bad clients do, one kind after another, while a well-behaved producer and consumer measure their own latency.
type Overload struct {
	Nodes
	Scenarios   []string
	Rate        float64       // of the well-behaved pair, records a second
	Size        int           // bytes of its records
	Phase       time.Duration // of each scenario
	Connections int           // of the scenario connections
	RSSMax      int64         // bytes that a node may take
	P99Max      time.Duration // that the well-behaved producer may see; 0 = not judged
	Progress    io.Writer
}

// OverloadResult is what a run prints.
type OverloadResult struct {
	Load     string        `json:"load"`
	Phases   []PhaseResult `json:"phases"`
	Failures []string      `json:"failures"`
}

// scenario is one kind of bad clients.
type scenario struct {
	name string
	fill int64 // bytes that are in the topic before it begins
	run  func(*attack, context.Context)
}

// scenarios by name, in the order in which they are run.
var scenarios = []scenario{
	{name: "connections", run: (*attack).connections},
	{name: "slow-consumers", fill: 200 << 20, run: (*attack).slowConsumers},
	{name: "giant", fill: 200 << 20, run: (*attack).giant},
	{name: "tiny", run: (*attack).tiny},
	{name: "fast-producer", run: (*attack).fastProducer},
}

const (
	// overloadSettle separates two scenarios: connections end, the collector runs.
	overloadSettle = 3 * time.Second
	// bulkPartitions are those of the topic that is attacked: each node leads some.
	bulkPartitions = 12
)

// OverloadScenarios are the names of all scenarios.
func OverloadScenarios() []string {
	var names []string
	for _, s := range slices.Concat(scenarios, gatewayScenarios) {
		names = append(names, s.name)
	}
	return names
}

// Run runs it. The nodes are stopped at the end when they are ours.
func (l Overload) Run(ctx context.Context) (OverloadResult, error) {
	r := OverloadResult{Load: "overload", Failures: []string{}}
	defer l.Stop()
	if err := l.Start(ctx); err != nil {
		return r, err
	}
	suffix := fmt.Sprint(time.Now().UnixNano())
	probe := &Probe{Kafka: Kafka{Brokers: l.Brokers(), Topic: "overload-probe-" + suffix, Partitions: 6, ReplicationFactor: int16(len(l.list))}, Rate: l.Rate, Size: l.Size}
	if err := probe.open(ctx); err != nil {
		return r, err
	}
	defer probe.close()
	run := phases{probe: probe, nodes: &l.Nodes, progress: l.Progress}
	run.begin(ctx, "alone")
	pauseFor(ctx, l.Phase)
	err := l.attacks(ctx, &run, suffix)
	run.finish()
	r.Phases = run.results()
	_, _ = kadm.NewClient(probe.client).DeleteTopics(ctx, probe.Topic) // a running cluster shall not keep it; ours goes away
	l.judge(&r)
	return r, err
}

func (l Overload) attacks(ctx context.Context, run *phases, suffix string) error {
	for _, s := range scenarios {
		if len(l.Scenarios) > 0 && !slices.Contains(l.Scenarios, s.name) {
			continue
		}
		topic, adm := "overload-"+s.name+"-"+suffix, kadm.NewClient(run.probe.client)
		if err := created(ctx, run.probe.client, bulkPartitions, int16(len(l.list)), nil, topic); err != nil {
			return err
		}
		if s.fill > 0 {
			run.next(ctx, "before "+s.name)
			if err := l.fill(ctx, topic, s.fill); err != nil {
				return err
			}
		}
		run.next(ctx, s.name)
		seen, err := l.attackers(ctx, Attack{Scenario: s.name, Topic: topic, Brokers: l.Brokers(), Connections: l.Connections, Duration: l.Phase})
		if err != nil {
			return err
		}
		run.seen[len(run.seen)-1] = seen
		run.next(ctx, "after "+s.name)
		_, _ = adm.DeleteTopics(ctx, topic) // its disk is needed by the next; a failure shows there
		if !pauseFor(ctx, overloadSettle) {
			return ctx.Err()
		}
	}
	return nil
}

func (l Overload) judge(r *OverloadResult) {
	for _, p := range r.Phases {
		if p.Errors > 0 {
			r.Failures = append(r.Failures, fmt.Sprintf("%s: %d errors of the well-behaved client: %s", p.Phase, p.Errors, p.FirstError))
		}
		if p99 := time.Duration(p.ProduceMs["p99"] * float64(time.Millisecond)); l.P99Max > 0 && p99 > l.P99Max {
			r.Failures = append(r.Failures, fmt.Sprintf("%s: p99 of produce is %v, more than %v", p.Phase, p99, l.P99Max))
		}
		for name, peak := range p.Peak {
			if peak.RSSMB*1e6 > float64(l.RSSMax) {
				r.Failures = append(r.Failures, fmt.Sprintf("%s: %s took %.0f MB, more than %.0f", p.Phase, name, peak.RSSMB, float64(l.RSSMax)/1e6))
			}
		}
	}
}

// fill writes to the topic what can be fetched, slowly: it is no part of the attack.
func (l Overload) fill(ctx context.Context, topic string, bytes int64) error {
	p := Produce{Kafka: Kafka{Brokers: l.Brokers(), Topic: topic}, Size: 16 << 10, Records: bytes >> 14, Acks: "all", Rate: fillRate,
		Idempotent: true, Compression: "none", Random: true, BatchBytes: giantBatch}
	if _, err := p.Run(ctx); err != nil {
		return fmt.Errorf("fill %s: %w", topic, err)
	}
	return nil
}

// fillRate is the rate of filling, in records of 16 KiB a second.
const fillRate = 3000

// An Attack is the bad clients of one scenario. They run in a process of their own: within the one that measures, they would delay what it measures.
type Attack struct {
	Scenario    string        `json:"scenario"`
	Topic       string        `json:"topic"`
	Brokers     []string      `json:"brokers"`
	Connections int           `json:"connections"`
	Duration    time.Duration `json:"duration_ns"`
}

// AttackCommand is the command under which the program that links this package runs an Attack: its JSON on standard input, the counts on standard output.
const AttackCommand = "overload-clients"

// attackers runs an attack in a process of its own and returns what its clients saw.
func (l Overload) attackers(ctx context.Context, a Attack) (map[string]int64, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own program: %w", err)
	}
	in, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("encode attack: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, AttackCommand)
	own(cmd)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run the clients of %s: %w", a.Scenario, err)
	}
	seen := make(map[string]int64)
	if err := json.Unmarshal(out, &seen); err != nil {
		return nil, fmt.Errorf("read what the clients of %s saw: %w", a.Scenario, err)
	}
	return seen, nil
}

// Run makes the attack and returns what its clients saw.
func (a Attack) Run(ctx context.Context) (map[string]int64, error) {
	w := &attack{Attack: a}
	w.seen.counts = make(map[string]int64)
	ctx, cancel := context.WithTimeout(ctx, a.Duration)
	defer cancel()
	if a.Topic != "" {
		if err := w.findLeaders(ctx); err != nil {
			return nil, err
		}
	}
	for _, s := range slices.Concat(scenarios, gatewayScenarios) {
		if s.name == a.Scenario {
			s.run(w, ctx)
		}
	}
	<-ctx.Done()
	w.all.Wait()
	return w.seen.counts, nil
}

// attack is one scenario at work.
type attack struct {
	Attack
	leaders map[int32]string // partition to address
	seen    struct {
		sync.Mutex
		counts map[string]int64
	}
	all sync.WaitGroup
}

func (a *attack) findLeaders(ctx context.Context) error {
	c, err := Kafka{Brokers: a.Brokers}.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return patiently(ctx, "find leaders of "+a.Topic, func() error { return a.askLeaders(ctx, kadm.NewClient(c)) })
}

func (a *attack) askLeaders(ctx context.Context, adm *kadm.Client) error {
	m, err := adm.Metadata(ctx, a.Topic)
	if err == nil {
		err = m.Topics[a.Topic].Err
	}
	if err != nil {
		return err
	}
	address := make(map[int32]string)
	for _, b := range m.Brokers {
		address[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	a.leaders = make(map[int32]string)
	for _, p := range m.Topics[a.Topic].Partitions {
		if a.leaders[p.Partition] = address[p.Leader]; address[p.Leader] == "" {
			return fmt.Errorf("partition %d: %w", p.Partition, kerr.LeaderNotAvailable)
		}
	}
	return nil
}

func (a *attack) count(what string, n int64) {
	a.seen.Lock()
	defer a.seen.Unlock()
	a.seen.counts[what] += n
}

// clients runs n of them, each again and again on a new connection, until ctx ends. Why a connection ended is counted, unless it was our doing.
func (a *attack) clients(ctx context.Context, kind string, n int, addr func(i int) string, serve func(ctx context.Context, c *rawConn, i int) error) {
	for i := range n {
		a.all.Go(func() {
			for ctx.Err() == nil {
				err := a.client(ctx, addr(i), i, serve)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					a.count(kind+" "+ending(err), 1)
				}
				pauseFor(ctx, reconnectAfter+rand.N(reconnectAfter))
			}
		})
	}
}

// reconnectAfter keeps a client that is turned away from becoming a storm of connections of its own.
const reconnectAfter = 100 * time.Millisecond

func (a *attack) client(ctx context.Context, addr string, i int, serve func(ctx context.Context, c *rawConn, i int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := dialRaw(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return serve(ctx, c, i)
}

// node is the address of one of the nodes.
func (a *attack) node(i int) string { return a.Brokers[i%len(a.Brokers)] }

// leader is where a partition is led, by turns.
func (a *attack) leader(i int) (partition int32, addr string) {
	partition = int32(i % bulkPartitions)
	return partition, a.leaders[partition]
}

func (a *attack) leaderOf(i int) string { _, addr := a.leader(i); return addr }

// ledBy are the partitions of one address.
func (a *attack) ledBy(addr string) []int32 {
	var list []int32
	for p, at := range a.leaders {
		if at == addr {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return list
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
