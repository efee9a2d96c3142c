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
		ID               int
		Adding, Removing []int
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

// spreadEvery is how often replicas are asked to be spread while a node waits for its share.
const spreadEvery = time.Second

// share waits until the node that joined has its part of the replicas and leaders, and asks for it as a person would: by itself it gets its part only
// when it is empty after its first five seconds, and topics are made meanwhile; asked sooner than that the cluster spreads without it.
func (r *run) share(ctx context.Context) (what string, err error) {
	c, node := r.cluster, r.cluster.spareMember()
	if err := c.await(ctx, readyMax, c.spare.name+" serves", func() error { return c.serves(ctx, node) }); err != nil {
		return "", err
	}
	var asked time.Time
	err = c.await(ctx, memberMax, c.spare.name+" has its share", func() error {
		m, err := c.membership(ctx)
		if err == nil {
			what, err = m.shares(node)
		}
		if err != nil && !m.Balancing && time.Since(asked) > spreadEvery {
			asked = time.Now()
			err = errors.Join(err, c.post(ctx, "/cluster/balance", struct{}{}))
		}
		return err
	})
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
	c.spare.mayEnd()
	if err := r.removed(ctx, false); err != nil {
		return err
	}
	if !c.spare.wait(stopMax) {
		return errors.Join(fmt.Errorf("%s was removed and goes on", c.spare.name), c.spare.stop(stopMax))
	}
	c.spare.forget()
	return nil
}

// removed asks until the node is no member any more: an earlier try may have been carried out, though its answer did not say so.
func (r *run) removed(ctx context.Context, force bool) error {
	c, node := r.cluster, r.cluster.spareMember()
	return c.await(ctx, memberMax, c.spare.name+" is removed", func() error {
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

// moves gives every partition of them another order of its replicas: they go to other shards, with other leaders. That is awaited.
func (r *run) moves(f Fault) action {
	var plan kadm.AlterPartitionAssignmentsReq
	begin := func(ctx context.Context) error {
		return r.asAdmin(func(adm *kadm.Client) error {
			return r.cluster.await(ctx, memberMax, "the partitions begin to move", func() error {
				list, err := adm.ListTopics(ctx, moved...)
				if err = errors.Join(err, list.Error()); err != nil {
					return err
				}
				plan = rotation(list, 1+f.Value%(replication-1))
				answers, err := adm.AlterPartitionAssignments(ctx, plan)
				return errors.Join(err, answers.Error())
			})
		})
	}
	end := func(ctx context.Context) error {
		return r.asAdmin(func(adm *kadm.Client) error {
			err := r.cluster.await(ctx, memberMax, "the partitions have moved", func() error { return r.arrived(ctx, adm, plan) })
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

// arrived says what is still on its way, and notes how many are in their place. A balancing of the shards may turn the order of the replicas once more,
// so not all need be.
func (r *run) arrived(ctx context.Context, adm *kadm.Client, plan kadm.AlterPartitionAssignmentsReq) error {
	var asked kadm.TopicsSet
	all := 0
	for topic, partitions := range plan {
		for p := range partitions {
			asked.Add(topic, p)
			all++
		}
	}
	moving, err := adm.ListPartitionReassignments(ctx, asked)
	if err != nil {
		return fmt.Errorf("list what moves: %w", err)
	}
	if left := moving.Sorted(); len(left) > 0 {
		return fmt.Errorf("%w: %d partitions are on their way, the first is %s-%d", errUnhealthy, len(left), left[0].Topic, left[0].Partition)
	}
	list, err := adm.ListTopics(ctx, moved...)
	if err = errors.Join(err, list.Error()); err != nil {
		return err
	}
	there := inPlace(list, plan)
	r.note(fmt.Sprintf("%d of %d partitions moved", there, all))
	if there == 0 {
		return fmt.Errorf("%w: no partition has moved", errUnhealthy)
	}
	return nil
}

// inPlace counts the partitions that have the replicas of the plan.
func inPlace(topics kadm.TopicDetails, plan kadm.AlterPartitionAssignmentsReq) (n int) {
	topics.EachPartition(func(p kadm.PartitionDetail) {
		if slices.Equal(p.Replicas, plan[p.Topic][p.Partition]) {
			n++
		}
	})
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
