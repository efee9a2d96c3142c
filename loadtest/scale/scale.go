package scale

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

const (
	// replication is the factor of every topic of a run.
	replication = 3
	// createWithin bounds one request that creates or deletes topics.
	createWithin = time.Minute
	// noNode is no node: their ids begin at 1.
	noNode = int32(0)
)

// Config says what to measure.
type Config struct {
	// Sluice is the program to run three nodes of; empty means that Brokers name a running cluster of nodes 1, 2, ...
	Sluice string
	Args   []string // further arguments of each node
	Data   string   // directory for the nodes' data; a run of each size has its own below it, and removes it
	Port   int      // the first of those that the nodes use: 10 a node
	Keep   bool     // leave the data where it is

	Brokers []string // of a running cluster, in the order of node ids
	PIDs    []int    // of its processes on this machine, in the same order
	HTTP    []string // of its nodes, for what only they know; may be empty

	Sizes           []int         // partitions, ascending
	TopicPartitions int           // partitions of a topic
	Settle, Idle    time.Duration // before looking at memory, and for how long processor time is counted
	Written         []int         // how many partitions are written to at once
	Load            time.Duration // how long each of these takes
	RecordBytes     int
	Failures        bool // kill and restart nodes (not those of a running cluster)

	Progress io.Writer
}

// Row is what was seen with one number of partitions.
type Row struct {
	Partitions int `json:"partitions"`
	// Create is the time until all topics' creations are answered, CreateLed until every node names all leaders, Used until a
	// record was written to and read from each.
	Create    float64 `json:"create_s"`
	CreateLed float64 `json:"create_led_s"`
	Used      float64 `json:"first_use_s"`

	Empty []Usage `json:"nodes_empty"` // before there were records
	Nodes []Usage `json:"nodes"`       // with one record in each partition
	// PerReplica are the bytes of a node's memory divided by its replicas, after those of the smallest row have been taken off.
	RSSPerReplica  float64 `json:"rss_per_replica"`
	HeapPerReplica float64 `json:"heap_per_replica"`

	IdleCPU float64 `json:"idle_cpu_percent"` // of one core, all nodes together

	// A topic more, created and deleted beside the others.
	TopicPartitions int     `json:"topic_partitions"`
	TopicCreate     float64 `json:"topic_create_s"`
	TopicDelete     float64 `json:"topic_delete_s"`
	TopicGone       float64 `json:"topic_gone_s"` // until no node names it

	Rates []Rate `json:"rates,omitempty"`

	// After kill -9 of the node that leads the metadata: until all partitions have a leader by the word of both others, and until
	// each has taken a record and given it back.
	FailoverLed  float64 `json:"failover_led_s,omitempty"`
	FailoverUsed float64 `json:"failover_used_s,omitempty"`
	Rejoin       float64 `json:"rejoin_s,omitempty"` // the node's start until it serves
	// All three stopped cleanly and started again; all three killed and started again.
	Stop         float64 `json:"stop_s,omitempty"`
	RestartLed   float64 `json:"restart_led_s,omitempty"`
	RestartUsed  float64 `json:"restart_used_s,omitempty"`
	CrashLed     float64 `json:"crash_restart_led_s,omitempty"`
	CrashUsed    float64 `json:"crash_restart_used_s,omitempty"`
	DataBytes    int64   `json:"data_bytes,omitempty"` // of a node on disk
	RSSRestarted int64   `json:"rss_restarted,omitempty"`
}

// Report is what a run prints.
type Report struct {
	Machine string   `json:"machine"`
	Begun   string   `json:"begun"`
	Args    []string `json:"node_args,omitempty"`
	Rows    []Row    `json:"rows"`
}

// run is the measurement of one size.
type run struct {
	Config
	nodes   []*node
	cluster *cluster
	topics  []string
	row     Row
}

// Run measures all sizes, one after the other. What was measured before an error is in the report.
func (c Config) Run(ctx context.Context) (Report, error) {
	rep := Report{Machine: machine(), Begun: time.Now().UTC().Format(time.RFC3339), Args: c.Args}
	if len(c.Sizes) == 0 || slices.Min(c.Sizes) < 1 || c.TopicPartitions < 1 {
		return rep, errors.New("say how many partitions, and how many a topic has: numbers above 0")
	}
	for _, size := range c.Sizes {
		row, err := c.one(ctx, size)
		if row.Partitions > 0 {
			rep.Rows = append(rep.Rows, row)
			rep.perReplica()
		}
		if err != nil {
			return rep, fmt.Errorf("with %d partitions: %w", size, err)
		}
	}
	return rep, nil
}

// perReplica fills in what a replica takes, by the difference to the smallest row: what a node needs without any is not theirs.
func (r *Report) perReplica() {
	first := &r.Rows[0]
	for i := range r.Rows[1:] {
		row := &r.Rows[i+1]
		more := float64(row.Partitions - first.Partitions) // on each of three nodes
		rss, heap := mean(row.Nodes)
		rss0, heap0 := mean(first.Nodes)
		row.RSSPerReplica, row.HeapPerReplica = (rss-rss0)/more, (heap-heap0)/more
	}
}

func mean(nodes []Usage) (rss, heap float64) {
	for _, u := range nodes {
		rss += float64(u.RSSBytes) / float64(len(nodes))
		heap += float64(u.HeapBytes) / float64(len(nodes))
	}
	return rss, heap
}

func machine() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	cores, model := 0, ""
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			cores++
			model = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%d x %s", cores, model)
}

func (c Config) one(ctx context.Context, size int) (Row, error) {
	r := &run{Config: c, row: Row{Partitions: size}}
	defer r.end()
	if err := r.begin(ctx); err != nil {
		return Row{}, err
	}
	steps := []struct {
		what string
		do   func(context.Context, int) error
	}{
		{"create", r.create}, {"memory", r.memory}, {"idle processor", r.idle}, {"one more topic", r.oneMore}, {"rates", r.rates},
		{"failover", r.failover}, {"restart", r.restart}, {"restart after a crash", r.crash}, {"delete", r.remove},
	}
	for _, s := range steps {
		r.say("%d partitions: %s", size, s.what)
		if err := s.do(ctx, size); err != nil {
			return r.row, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return r.row, nil
}

func (r *run) say(format string, args ...any) {
	if r.Progress != nil {
		fmt.Fprintf(r.Progress, format+"\n", args...)
	}
}

// begin starts three nodes, or takes those that run.
func (r *run) begin(ctx context.Context) error {
	if r.Sluice == "" {
		for i, addr := range r.Brokers {
			n := &node{id: i + 1, kafka: addr}
			if i < len(r.PIDs) {
				n.pid = r.PIDs[i]
			}
			if i < len(r.HTTP) {
				n.http = r.HTTP[i]
			}
			r.nodes = append(r.nodes, n)
		}
	} else if err := r.start(ctx); err != nil {
		return err
	}
	var err error
	r.cluster, err = newCluster(r.brokers())
	return err
}

func (r *run) start(ctx context.Context) error {
	dir := filepath.Join(r.Data, fmt.Sprint(r.row.Partitions))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clear data directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	r.nodes = newNodes(r.Sluice, dir, r.Port, replication, r.Args)
	for _, n := range r.nodes { // one after the other: the first founds the cluster
		if err := n.start(); err != nil {
			return err
		}
		if err := n.healthy(ctx); err != nil {
			return err
		}
	}
	return nil
}

// end leaves nothing behind.
func (r *run) end() {
	if r.cluster != nil {
		r.cluster.close()
	}
	if r.Sluice == "" {
		return
	}
	for _, n := range r.nodes {
		n.kill()
	}
	if !r.Keep {
		_ = os.RemoveAll(filepath.Join(r.Data, fmt.Sprint(r.row.Partitions))) // the next run clears it too
	}
}

func (r *run) brokers() []string {
	var out []string
	for _, n := range r.nodes {
		out = append(out, n.kafka)
	}
	return out
}

// cpu is the processor time that all nodes have used so far.
func (r *run) cpu() (sum time.Duration, err error) {
	for _, n := range r.nodes {
		if n.pid == 0 {
			continue
		}
		used, err := cpuTime(n.pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

func (r *run) usage(ctx context.Context) ([]Usage, error) {
	var out []Usage
	for _, n := range r.nodes {
		if n.pid == 0 {
			continue
		}
		u, err := usage(ctx, n.pid, n.http)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

// topicSizes cuts a number of partitions into topics.
func topicSizes(partitions, each int) (sizes []int) {
	for ; partitions > each; partitions -= each {
		sizes = append(sizes, each)
	}
	return append(sizes, partitions)
}

func seconds(since time.Time) float64 { return time.Since(since).Seconds() }

// createTopic creates one and returns when that is answered.
func (r *run) createTopic(ctx context.Context, name string, partitions int) error {
	adm := kadm.NewClient(r.cluster.client)
	adm.SetTimeoutMillis(int32(createWithin / time.Millisecond))
	resp, err := adm.CreateTopics(ctx, int32(partitions), replication, nil, name)
	if err == nil {
		err = resp[name].Err
	}
	if err != nil {
		return fmt.Errorf("create topic %s of %d partitions: %w", name, partitions, err)
	}
	return nil
}

func (r *run) create(ctx context.Context, size int) error {
	began := time.Now()
	for i, n := range topicSizes(size, r.TopicPartitions) {
		name := fmt.Sprintf("scale-%d-%03d", size, i)
		if err := r.createTopic(ctx, name, n); err != nil {
			return err
		}
		r.topics = append(r.topics, name)
	}
	r.row.Create = seconds(began)
	if err := r.cluster.awaitLed(ctx, r.nodes, r.topics, size, noNode); err != nil {
		return err
	}
	r.row.CreateLed = seconds(began)
	if !pause(ctx, r.Settle) {
		return ctx.Err()
	}
	var err error
	r.row.Empty, err = r.usage(ctx)
	return err
}

// memory writes a record to each partition, waits, and looks.
func (r *run) memory(ctx context.Context, size int) (err error) {
	began := time.Now()
	if err := r.cluster.use(ctx, r.nodes, r.topics, size, noNode); err != nil {
		return err
	}
	r.row.Used = seconds(began)
	if !pause(ctx, r.Settle) {
		return ctx.Err()
	}
	r.row.Nodes, err = r.usage(ctx)
	return err
}

func (r *run) idle(ctx context.Context, _ int) error {
	before, err := r.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if !pause(ctx, r.Idle) {
		return ctx.Err()
	}
	after, err := r.cpu()
	r.row.IdleCPU = 100 * (after - before).Seconds() / seconds(began)
	return err
}

// oneMore creates a topic beside the others and deletes it.
func (r *run) oneMore(ctx context.Context, size int) error {
	name, parts := fmt.Sprintf("scale-%d-more", size), r.TopicPartitions
	r.row.TopicPartitions = parts
	began := time.Now()
	if err := r.createTopic(ctx, name, parts); err != nil {
		return err
	}
	r.row.TopicCreate = seconds(began)
	if err := r.cluster.use(ctx, r.nodes, []string{name}, parts, noNode); err != nil {
		return err
	}
	began = time.Now()
	if err := r.deleteTopics(ctx, name); err != nil {
		return err
	}
	r.row.TopicDelete = seconds(began)
	if err := r.gone(ctx, name); err != nil {
		return err
	}
	r.row.TopicGone = seconds(began)
	return nil
}

func (r *run) deleteTopics(ctx context.Context, names ...string) error {
	adm := kadm.NewClient(r.cluster.client)
	adm.SetTimeoutMillis(int32(createWithin / time.Millisecond))
	resp, err := adm.DeleteTopics(ctx, names...)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("delete %d topics: %w", len(names), err)
	}
	return nil
}

// gone waits until no node names the topic.
func (r *run) gone(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, createWithin)
	defer cancel()
	for _, n := range r.nodes {
		for {
			v, err := r.cluster.metadata(ctx, r.cluster.broker(n), []string{name}, noNode)
			if err == nil && len(v.parts) == 0 {
				break
			}
			if !pause(ctx, pollEvery) {
				return fmt.Errorf("node %d still names the deleted topic: %w", n.id, ctx.Err())
			}
		}
	}
	return nil
}

func (r *run) rates(ctx context.Context, size int) error {
	for _, parts := range r.Written {
		if parts < 1 || parts > size {
			continue
		}
		spreads := []string{"each", "runs"}
		if parts == 1 {
			spreads = spreads[:1]
		}
		for _, spread := range spreads {
			got, err := r.rate(ctx, r.topics, min(size, r.TopicPartitions), parts, spread)
			if err != nil {
				return err
			}
			r.say("  %d written (%s): %.0f/s, p99 %.0f ms", parts, spread, got.PerSecond, got.P99Ms)
			r.row.Rates = append(r.row.Rates, got)
		}
	}
	return nil
}

// failover kills the node that leads the metadata, which has the most to hand over.
func (r *run) failover(ctx context.Context, size int) error {
	if !r.Failures || r.Sluice == "" {
		return nil
	}
	v, err := r.cluster.metadata(ctx, r.cluster.broker(r.nodes[0]), r.topics, noNode)
	if err != nil {
		return err
	}
	victim := r.nodes[max(0, slices.IndexFunc(r.nodes, func(n *node) bool { return int32(n.id) == v.controller }))]
	dead := int32(victim.id)
	began := time.Now()
	victim.kill()
	led := make(chan error, 1)
	go func() {
		err := r.cluster.awaitLed(ctx, r.nodes, r.topics, size, dead)
		r.row.FailoverLed = seconds(began)
		led <- err
	}()
	err = r.cluster.use(ctx, r.nodes, r.topics, size, dead)
	r.row.FailoverUsed = seconds(began)
	if err := errors.Join(err, <-led); err != nil {
		return err
	}
	began = time.Now()
	if err := victim.start(); err != nil {
		return err
	}
	if err := victim.healthy(ctx); err != nil {
		return err
	}
	r.row.Rejoin = seconds(began)
	if !pause(ctx, r.Settle) { // it gets its leaderships back
		return ctx.Err()
	}
	return nil
}

// restart stops all nodes cleanly and starts them again.
func (r *run) restart(ctx context.Context, size int) (err error) {
	if !r.Failures || r.Sluice == "" {
		return nil
	}
	began := time.Now()
	if err := all(r.nodes, (*node).stop); err != nil {
		return err
	}
	r.row.Stop = seconds(began)
	r.row.DataBytes = treeBytes(filepath.Join(r.Data, fmt.Sprint(size), "core-1"))
	if r.row.RestartLed, r.row.RestartUsed, err = r.up(ctx, size); err != nil {
		return err
	}
	if !pause(ctx, r.Settle) {
		return ctx.Err()
	}
	now, err := r.usage(ctx)
	rss, _ := mean(now)
	r.row.RSSRestarted = int64(rss)
	return err
}

// crash kills all nodes and starts them again.
func (r *run) crash(ctx context.Context, size int) (err error) {
	if !r.Failures || r.Sluice == "" {
		return nil
	}
	_ = all(r.nodes, func(n *node) error { n.kill(); return nil }) // kill does not fail
	r.row.CrashLed, r.row.CrashUsed, err = r.up(ctx, size)
	return err
}

// up starts all nodes and waits until everything is led, and used.
func (r *run) up(ctx context.Context, size int) (led, used float64, err error) {
	r.cluster.close() // or it would wait out its back-off after failed connections
	began := time.Now()
	if err := all(r.nodes, (*node).start); err != nil {
		return 0, 0, err
	}
	if err := all(r.nodes, func(n *node) error { return n.healthy(ctx) }); err != nil {
		return 0, 0, err
	}
	if r.cluster, err = newCluster(r.brokers()); err != nil {
		return 0, 0, err
	}
	if err := r.cluster.awaitLed(ctx, r.nodes, r.topics, size, noNode); err != nil {
		return 0, 0, err
	}
	led = seconds(began)
	err = r.cluster.use(ctx, r.nodes, r.topics, size, noNode)
	return led, seconds(began), err
}

// remove deletes the topics of the run from a cluster that stays.
func (r *run) remove(ctx context.Context, _ int) error {
	if r.Sluice != "" {
		return nil
	}
	return r.deleteTopics(ctx, r.topics...)
}

// treeBytes is the size of the files below a directory, as far as they can be seen.
func treeBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}
