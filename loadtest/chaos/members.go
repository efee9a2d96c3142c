package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// memberMax bounds each step of a change of members or places: replicas of a few megabytes are copied one after the other, and a node counts as new
// only when it has been alive for five seconds.
const memberMax = time.Minute

// spareMember is the node that joins and leaves: its number in the cluster and its place in the network, behind the gateway's.
func (c *cluster) spareMember() int { return len(c.nodes) + 2 }

// membership is what the nodes tell of the cluster's members (GET /cluster).
type membership struct {
	Balancing bool
	Nodes     []struct {
		ID, Replicas, Leaders int
		Metadata              string
	}
	Shards []struct {
		ID, ReplicationFactor      int
		Replicas, Adding, Removing []int
		Lost                       bool
	}
}

// membership asks the first node, which answers for all.
func (c *cluster) membership(ctx context.Context) (m membership, err error) {
	body, err := get(ctx, "http://"+c.http(1)+"/cluster")
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		return m, fmt.Errorf("members of the cluster: %w", err)
	}
	return m, nil
}

// settled says what still moves.
func (m membership) settled() error {
	for _, s := range m.Shards {
		if len(s.Adding)+len(s.Removing) > 0 {
			return fmt.Errorf("%w: shard %d: nodes %v come, %v go", errUnhealthy, s.ID, s.Adding, s.Removing)
		}
	}
	if m.Balancing {
		return fmt.Errorf("%w: replicas are being spread", errUnhealthy)
	}
	return nil
}

// whole says what still moves, or is missing: a shard that has lost a member to a removal by force has all that it has in sync, and not all that it
// shall have.
func (m membership) whole() error {
	for _, s := range m.Shards {
		if s.Lost || len(s.Replicas) < s.ReplicationFactor {
			return fmt.Errorf("%w: shard %d: lost %v, replicas %v of %d", errUnhealthy, s.ID, s.Lost, s.Replicas, s.ReplicationFactor)
		}
	}
	return m.settled()
}

// shares tells what the node has, once replicas are spread over all nodes, it among them, and nothing moves. A node that has just joined leads shards
// that were made for it, before it gets its part of those that there are.
func (m membership) shares(node int) (share string, err error) {
	least, most := math.MaxInt, 0
	for _, n := range m.Nodes {
		least, most = min(least, n.Replicas), max(most, n.Replicas)
		if n.ID == node && n.Leaders > 0 {
			share = fmt.Sprintf("%d replicas, %d leaders", n.Replicas, n.Leaders)
		}
	}
	if share == "" || most-least > 1 {
		return "", fmt.Errorf("%w: node %d has no share yet: %+v", errUnhealthy, node, m.Nodes)
	}
	return share, m.settled()
}

// empty is nil when nothing is left on the node.
func (m membership) empty(node int) error {
	for _, n := range m.Nodes {
		if n.ID == node && (n.Replicas > 0 || n.Metadata != "follower") {
			return fmt.Errorf("%w: node %d has %d replicas, is %s of the metadata", errUnhealthy, node, n.Replicas, n.Metadata)
		}
	}
	return nil
}

func (m membership) has(node int) bool {
	for _, n := range m.Nodes {
		if n.ID == node {
			return true
		}
	}
	return false
}

// post asks the first node for a change.
func (c *cluster) post(ctx context.Context, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		panic("BUG: encode a change: " + err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.http(1)+path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("ask for %s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax)) // without it the message is only shorter
		return fmt.Errorf("%s answers %s: %s", path, resp.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

// joins starts one more node from an empty directory; when it has its share, and the fault's time is over, it is drained and removed.
func (r *run) joins(f Fault) action {
	began := time.Now()
	begin := func(ctx context.Context) error {
		began = time.Now()
		if err := r.cluster.spareDisk.lose(); err != nil {
			return err
		}
		r.clients.steady.joined(int32(r.cluster.spareMember()), r.cluster.kafka(r.cluster.spareMember()))
		return r.cluster.spare.start(ctx)
	}
	end := func(ctx context.Context) error {
		share, err := r.share(ctx)
		if err == nil {
			r.note(fmt.Sprintf("had %s after %v", share, round(time.Since(began))))
			_ = sleep(ctx, f.For) // ctx is that of the run's own work, and does not end
			err = r.leave(ctx)
		}
		if err != nil {
			r.evidence(ctx, f.Number)
			r.report.violate("fault %d (%s): %v", f.Number, f, err)
			err = r.expel(ctx)
		}
		r.clients.steady.left()
		return err
	}
	return action{begin: begin, end: end}
}

// spreadPatience is how long a node waits for its share before somebody asks for it, and then before that is done again: it counts as new for five seconds,
// and then a few replicas are copied.
const spreadPatience = 15 * time.Second

// share waits until the node that joined has its part of the replicas and leaders. It shall get it by itself; when it does not, it is asked for, as a person
// would, and that is told.
func (r *run) share(ctx context.Context) (what string, err error) {
	c, node := r.cluster, r.cluster.spareMember()
	if err := c.await(ctx, readyMax, c.spare.name+" serves", func() error { return c.serves(ctx, node) }); err != nil {
		return "", err
	}
	var times int
	last := time.Now()
	err = c.await(ctx, memberMax, c.spare.name+" has its share", func() error {
		m, err := c.membership(ctx)
		if err == nil {
			what, err = m.shares(node)
		}
		if err != nil && !m.Balancing && time.Since(last) > spreadPatience {
			last = time.Now()
			times++
			err = errors.Join(err, c.post(ctx, "/cluster/balance", struct{}{}))
		}
		return err
	})
	if times > 0 {
		what += fmt.Sprintf(", ASKED FOR %d times,", times)
	}
	return what, err
}

// leave drains the node and removes it, upon which it ends by itself.
func (r *run) leave(ctx context.Context) error {
	c, node := r.cluster, r.cluster.spareMember()
	if err := c.await(ctx, memberMax, c.spare.name+" is to be drained", func() error { return c.post(ctx, "/cluster/drain", map[string]any{"node": node}) }); err != nil {
		return err
	}
	err := c.await(ctx, memberMax, c.spare.name+" is empty", func() error {
		m, err := c.membership(ctx)
		if err != nil {
			return err
		}
		return m.empty(node)
	})
	if err != nil {
		return err
	}
	if err := r.removed(ctx, false); err != nil {
		return err
	}
	if !c.spare.wait(stopMax) {
		return errors.Join(fmt.Errorf("%s was removed and goes on", c.spare.name), c.spare.stop(stopMax))
	}
	if err := c.spare.wasRemoved(); err != nil {
		return err
	}
	c.spare.forget()
	return nil
}

// A node that is removed says so last, and ends like any command that has failed. A panic ends with another code, and a kill with none.
const (
	removedCode  = 1
	removedWord  = "this node was removed from the cluster"
	lastWordsMax = 512
)

// wasRemoved is nil when the process, which has ended, did so as a node that was removed does.
func (p *process) wasRemoved() error {
	how, failed := p.outcome(), (*exec.ExitError)(nil)
	words, err := lastWords(p.logFile)
	if err == nil && errors.As(how, &failed) && failed.ExitCode() == removedCode && strings.Contains(words, removedWord) {
		return nil
	}
	return errors.Join(fmt.Errorf("%s was removed and did not end like it: %v; its last words: %q", p.name, how, words), err)
}

// lastWords are the end of a log.
func lastWords(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the log of a node that has ended: %w", err)
	}
	return string(data[max(0, len(data)-lastWordsMax):]), nil
}

// removed asks until the node is no member any more: an earlier try may have been carried out, though its answer did not say so.
func (r *run) removed(ctx context.Context, force bool) error {
	c, node := r.cluster, r.cluster.spareMember()
	return c.await(ctx, memberMax, c.spare.name+" is removed", func() error {
		if err := c.spare.mayEnd(); err != nil {
			return stopWaiting{err}
		}
		asked := c.post(ctx, "/cluster/remove", map[string]any{"node": node, "force": force})
		m, err := c.membership(ctx)
		if err == nil && m.has(node) {
			err = errors.Join(asked, fmt.Errorf("%w: node %d is still a member", errUnhealthy, node))
		}
		return err
	})
}

// expel gets rid of a node that did not join or leave as it should, so that the run goes on.
func (r *run) expel(ctx context.Context) error {
	r.cluster.spare.kill()
	r.cluster.spare.forget()
	return r.removed(ctx, true)
}

// moved are the topics whose partitions move: those that are written to all the time.
var moved = []string{steadyTopic, stockPrefix + "-numbered"}

// movedTopics is how the partitions that move were found, and where they shall go.
type movedTopics struct {
	before kadm.TopicDetails
	plan   kadm.AlterPartitionAssignmentsReq
}

// moves gives every partition of them another order of its replicas: they go to other shards, with other leaders. That is awaited. It is planned once:
// what is asked for again may have been carried out, though its answer did not say so.
func (r *run) moves(f Fault) action {
	var m movedTopics
	begin := func(ctx context.Context) error {
		return r.asAdmin(func(adm *kadm.Client) error {
			return r.cluster.await(ctx, memberMax, "the partitions begin to move", func() error {
				if m.plan == nil {
					list, err := placed(ctx, adm)
					if err != nil {
						return err
					}
					m = movedTopics{list, rotation(list, 1+f.Value%(replication-1))}
				}
				answers, err := adm.AlterPartitionAssignments(ctx, m.plan)
				return errors.Join(err, answers.Error())
			})
		})
	}
	end := func(ctx context.Context) error {
		return r.asAdmin(func(adm *kadm.Client) error {
			err := r.cluster.await(ctx, memberMax, "the partitions have moved", func() error { return r.arrived(ctx, adm, m) })
			if err != nil {
				r.evidence(ctx, f.Number)
				r.report.violate("fault %d (%s): %v", f.Number, f, err)
			}
			return nil
		})
	}
	return action{begin: begin, end: end}
}

// rotation plans every replica list turned by so many places.
func rotation(topics kadm.TopicDetails, by int) (plan kadm.AlterPartitionAssignmentsReq) {
	topics.EachPartition(func(p kadm.PartitionDetail) {
		var to []int32
		for i := range p.Replicas {
			to = append(to, p.Replicas[(i+by)%len(p.Replicas)])
		}
		plan.Assign(p.Topic, p.Partition, to)
	})
	return plan
}

// placed lists the topics, once all that there is to know of each partition is known.
func placed(ctx context.Context, adm *kadm.Client) (kadm.TopicDetails, error) {
	list, err := adm.ListTopics(ctx, moved...)
	if err = errors.Join(err, list.Error()); err != nil {
		return nil, err
	}
	n := 0
	list.EachPartition(func(p kadm.PartitionDetail) {
		n++
		if len(p.Replicas) < replication || p.LeaderEpoch < 0 {
			err = fmt.Errorf("%w: %s-%d has replicas %v, epoch %d", errUnhealthy, p.Topic, p.Partition, p.Replicas, p.LeaderEpoch)
		}
	})
	if want := len(moved) * topicPartitions; err == nil && n < want {
		err = fmt.Errorf("%w: %d partitions of %d are known", errUnhealthy, n, want)
	}
	return list, err
}

// arrived says what is still on its way, or was left behind.
func (r *run) arrived(ctx context.Context, adm *kadm.Client, m movedTopics) error {
	var asked kadm.TopicsSet
	for topic, partitions := range m.plan {
		for p := range partitions {
			asked.Add(topic, p)
		}
	}
	moving, err := adm.ListPartitionReassignments(ctx, asked)
	if err != nil {
		return fmt.Errorf("list what moves: %w", err)
	}
	if left := moving.Sorted(); len(left) > 0 {
		return fmt.Errorf("%w: %d partitions are on their way, the first is %s-%d", errUnhealthy, len(left), left[0].Topic, left[0].Partition)
	}
	now, err := placed(ctx, adm)
	if err != nil {
		return err
	}
	behind, there := m.stayed(now), 0
	now.EachPartition(func(p kadm.PartitionDetail) { there += m.inPlace(p) })
	r.note(fmt.Sprintf("%d partitions moved, %d have the replicas of the plan", m.all()-len(behind), there))
	if len(behind) > 0 {
		return fmt.Errorf("%w: not moved: %v", errUnhealthy, behind)
	}
	return nil
}

// moveEpochs is by how much a partition's leader epoch rises at least when it goes to another shard. Elections raise it by one each.
const moveEpochs = 100

// stayed are the partitions that are neither in another shard than before nor have the replicas of the plan. Where they are is not enough: a balancing
// of the shards may turn the order of the replicas once more, or have turned it before the move was asked for.
func (m movedTopics) stayed(now kadm.TopicDetails) (out []string) {
	now.EachPartition(func(p kadm.PartitionDetail) {
		was := m.before[p.Topic].Partitions[p.Partition]
		if p.LeaderEpoch < was.LeaderEpoch+moveEpochs && m.inPlace(p) == 0 {
			out = append(out, fmt.Sprintf("%s-%d %v", p.Topic, p.Partition, p.Replicas))
		}
	})
	slices.Sort(out)
	return out
}

// inPlace is 1 for a partition that has the replicas of the plan.
func (m movedTopics) inPlace(p kadm.PartitionDetail) int {
	if slices.Equal(p.Replicas, m.plan[p.Topic][p.Partition]) {
		return 1
	}
	return 0
}

func (m movedTopics) all() (n int) {
	for _, partitions := range m.plan {
		n += len(partitions)
	}
	return n
}

// asAdmin lends a client that asks for changes.
func (r *run) asAdmin(do func(*kadm.Client) error) error {
	c, err := kgo.NewClient(adminOptions(r.cluster.kafkas())...)
	if err != nil {
		return fmt.Errorf("configure client: %w", err)
	}
	defer c.Close()
	return do(kadm.NewClient(c))
}
