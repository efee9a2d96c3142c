package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
	"sluice/loadtest/workload"
)

const (
	steadyTopic     = "steady" // of the writer by which unavailability is measured
	topicPartitions = 6
	replication     = 3
	// segmentBytes is small, so that there are closed segments to damage, to fetch again and to compare.
	segmentBytes = 256 << 10
	steadyBytes  = 200
	// stockPrefix and stockBytes are of the clients with a stock library.
	stockPrefix = "stock"
	stockBytes  = 1000
	// staleMax is how much later than the truth an answer about topics may be: a node that is cut off answers from its memory, and faults last so long.
	staleMax = 30 * time.Second
	// finishMax bounds the end of the workloads on a whole cluster: the last acknowledgements, a reading of everything, the groups' backlog.
	finishMax = 5 * time.Minute
	// adminOverhead is how long an answer may take beyond what the cluster is given, to those who prepare and read back while nothing is broken.
	adminOverhead = 10 * time.Second
)

// adminOptions are those of the clients that prepare and read back.
func adminOptions(brokers []string) []kgo.Opt {
	return []kgo.Opt{kgo.SeedBrokers(brokers...), kgo.Dialer((&net.Dialer{Timeout: adminOverhead}).DialContext), kgo.RequestTimeoutOverhead(adminOverhead)}
}

// workloads are the clients that work during a run.
type workloads struct {
	r       *run
	history *history.History
	set     *workload.Set
	steady  *steady
	log     *os.File
	until   chan struct{}
	cancel  context.CancelFunc // ends what is still under way
	stop    context.CancelFunc // ends the stock clients' work
	steadyE chan struct{}      // closed when the steady writer has ended
	setE    chan error
	failed  atomic.Pointer[error]
}

// startWorkloads makes the topics and starts the clients.
func (r *run) startWorkloads(ctx context.Context) (*workloads, error) {
	w := &workloads{r: r, history: history.New(nil), until: make(chan struct{}), steadyE: make(chan struct{}), setE: make(chan error, 1)}
	var err error
	if w.log, err = os.Create(filepath.Join(r.cluster.dir, "clients.log")); err != nil {
		return nil, fmt.Errorf("make the clients' log: %w", err)
	}
	if err := r.createTopics(ctx); err != nil {
		return nil, errors.Join(err, w.log.Close())
	}
	c := workload.Config{
		Brokers: r.cluster.kafkas(), History: w.history, Logger: slog.New(slog.NewTextHandler(w.log, nil)), Prefix: stockPrefix,
		Partitions: topicPartitions, Rate: r.o.Rate, Size: stockBytes, DeviceRate: r.o.DeviceRate, Lag: staleMax,
	}
	if r.o.Gateway {
		c.Gateways = []string{r.cluster.mqtt()}
	}
	if w.set, err = workload.New(c); err == nil {
		err = w.set.Setup(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare workloads: %w", err), w.log.Close())
	}
	w.run(context.WithoutCancel(ctx))
	return w, nil
}

// run starts all clients; they work until finish, whatever becomes of the run's context.
func (w *workloads) run(ctx context.Context) {
	ctx, w.cancel = context.WithCancel(ctx)
	w.steady = &steady{topic: steadyTopic, partitions: topicPartitions, brokers: map[int32]string{}, timeline: w.r.timeline, size: steadyBytes}
	for i, address := range w.r.cluster.kafkas() {
		w.steady.brokers[int32(i+1)] = address
	}
	go func() {
		defer close(w.steadyE)
		w.steady.run(ctx, w.until)
	}()
	working, stop := context.WithCancel(ctx)
	w.stop = stop
	go func() {
		err := w.set.Run(working)
		if err != nil {
			w.failed.Store(&err)
		}
		w.setE <- err
	}()
}

// gave tells whether a workload has given up, which none of them does because of a cluster that does not answer.
func (w *workloads) gave() error {
	if err := w.failed.Load(); err != nil {
		return fmt.Errorf("workloads: %w", *err)
	}
	return nil
}

// stock is the longest time without an acknowledged write of the stock clients to a partition.
func (w *workloads) stock(from, to time.Duration) gap {
	start := w.r.start
	for _, p := range w.history.Gaps(start.Add(from), start.Add(to)) {
		if p.Topic == w.set.Topic() {
			return gap{Who: fmt.Sprintf("%s-%d", p.Topic, p.Partition), At: p.From.Sub(start), Long: p.Length()}
		}
	}
	return gap{}
}

func (r *run) createTopics(ctx context.Context) error {
	c, err := kgo.NewClient(adminOptions(r.cluster.kafkas())...)
	if err != nil {
		return fmt.Errorf("configure client: %w", err)
	}
	defer c.Close()
	// A node whose clock is set back by a day takes every record for one of the future, and refuses it as Kafka does.
	anyTime := fmt.Sprint(int64(math.MaxInt64))
	err = r.cluster.await(ctx, readyMax, "records of any time are allowed", func() error {
		answers, err := kadm.NewClient(c).AlterBrokerConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "log.message.timestamp.after.max.ms", Value: &anyTime}})
		for _, a := range answers {
			err = errors.Join(err, a.Err)
		}
		return err
	})
	if err != nil {
		return err
	}
	size := fmt.Sprint(segmentBytes)
	for _, name := range []string{steadyTopic, stockPrefix + "-numbered"} {
		err := r.cluster.await(ctx, readyMax, "topic "+name+" is created", func() error {
			_, err := kadm.NewClient(c).CreateTopic(ctx, topicPartitions, replication, map[string]*string{"internal.segment.bytes": &size}, name)
			if errors.Is(err, kerr.TopicAlreadyExists) {
				return nil // an earlier try was carried out, though its answer did not say so
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// did is what the clients did, so that a run that did nothing is not taken for a good one.
func (w *workloads) did() map[string]int64 {
	s := w.set.Stats()
	return map[string]int64{
		"sent": s.Sent.Load(), "acked": s.Acked.Load(), "read": s.Read.Load(), "asked": s.Asked.Load(), "delivered": s.Delivered.Load(), "commits": s.Commits.Load(),
		"rebalances": s.Rebalances.Load(), "device_sent": s.DeviceSent.Load(), "device_acked": s.DeviceAcked.Load(), "topic_operations": s.MetadataOperations.Load(),
		"topic_operations_unknown": s.MetadataUnknown.Load(), "errors": s.Errors.Load(),
	}
}

// abandon ends everything without a verdict.
func (w *workloads) abandon() {
	w.cancel()
	<-w.steadyE
	<-w.setE
	_ = w.log.Close()
}

// finish ends the writing, waits for what is under way, reads everything, and judges.
func (w *workloads) finish(whole context.Context) (map[string]*history.Verdict, error) {
	ctx, cancel := context.WithTimeout(whole, finishMax)
	defer cancel()
	defer w.log.Close()
	defer w.cancel()
	close(w.until)
	w.stop()
	late := context.AfterFunc(ctx, w.cancel)
	defer late()
	<-w.steadyE
	if err := <-w.setE; err != nil {
		return nil, fmt.Errorf("workloads: %w", err)
	}
	finished := w.set.Finish(ctx)
	out := map[string]*history.Verdict{"clients": w.history.Check()}
	if finished != nil {
		out["clients"].Counts[Unfinished]++
		out["clients"].Violations = append(out["clients"].Violations, history.Violation{Kind: Unfinished, Detail: finished.Error()})
	}
	reads, err := readBack(whole, w.r.cluster.kafkas(), steadyTopic) // also when a workload has used up its time
	if err != nil {
		return out, err
	}
	out["steady"] = w.steady.judge(reads)
	return out, nil
}

// Kinds of violations beside those of the history.
const (
	Unfinished history.Kind = "unfinished" // a workload could not be brought to its end on a whole cluster
	Refused    history.Kind = "refused"    // an answer that a producer who sends everything in order must not get
)

// judge checks what the steady writer knows against what a reader found.
func (s *steady) judge(reads []history.Read) *history.Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	verdict := history.Check(s.mu.writes, reads, history.Options{Contiguous: true})
	for _, text := range s.mu.refused {
		verdict.Counts[Refused]++
		verdict.Violations = append(verdict.Violations, history.Violation{Kind: Refused, Where: s.topic, Detail: text})
	}
	return verdict
}

// Replicas is the outcome of a comparison of what the nodes' disks hold.
type Replicas struct {
	Partitions int      `json:"partitions"`
	Batches    int64    `json:"batches"` // compared byte for byte on at least two replicas
	Shorter    int      `json:"shorter"` // partitions of which a replica ends earlier: its node stopped before it heard of the last commit
	Few        []string `json:"few"`     // partitions of the workloads on fewer nodes than they have to be on
	Twice      []string `json:"twice"`   // partitions of the workloads with several directories on one node
	Divergent  []string `json:"divergent"`
}

// compareReplicas looks at the disks of nodes that have stopped. Internal topics are compacted: their replicas clean up by themselves.
func compareReplicas(nodes []string) (Replicas, error) {
	out := Replicas{Few: []string{}, Twice: []string{}, Divergent: []string{}}
	all, err := history.FindReplicas(nodes...)
	if err != nil {
		return out, err
	}
	for _, one := range all {
		if strings.HasPrefix(one.Name, "__") {
			continue
		}
		report, err := history.CompareReplicas(one)
		if err != nil {
			return out, err
		}
		out.add(report)
		out.place(one, nodes)
	}
	return out, nil
}

func (r *Replicas) add(report history.ReplicaReport) {
	r.Partitions++
	r.Batches += report.Batches
	ends := map[int64]bool{}
	for _, e := range report.Ends {
		ends[e] = true
	}
	if len(ends) > 1 {
		r.Shorter++
	}
	for _, v := range report.Violations {
		r.Divergent = append(r.Divergent, v.String())
	}
}

// place looks on which nodes a partition is: two directories on one node are one replica, and one too many.
func (r *Replicas) place(one history.Replicas, nodes []string) {
	if !strings.HasPrefix(one.Name, steadyTopic+"-") && !strings.HasPrefix(one.Name, stockPrefix+"-numbered-") {
		return
	}
	on := 0
	for _, node := range nodes {
		n := 0
		for _, dir := range one.Dirs {
			if inside, err := filepath.Rel(node, dir); err == nil && filepath.IsLocal(inside) {
				n++
			}
		}
		if n > 1 {
			r.Twice = append(r.Twice, fmt.Sprintf("%s: %d in %s", one.Name, n, node))
		}
		on += min(n, 1)
	}
	if on < replication {
		r.Few = append(r.Few, fmt.Sprintf("%s: %d", one.Name, on))
	}
}

// single says which partitions have several directories on one node. What a partition has left behind is deleted by and by; the nodes may run.
func single(nodes []string) error {
	all, err := history.FindReplicas(nodes...)
	if err != nil {
		return err
	}
	var found Replicas
	for _, one := range all {
		found.place(one, nodes)
	}
	if len(found.Twice) > 0 {
		return fmt.Errorf("%w: two directories on one node: %s", errUnhealthy, strings.Join(found.Twice, ", "))
	}
	return nil
}
