package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
)

type topicMove struct {
	connection
	partitions []int32
	to         []int32
	factor     int
	cancel     bool
	throttle   int64
	wait       bool
}

// movedTopic is what `topic move -o json` prints.
type movedTopic struct {
	Topic      string           `json:"topic"`
	Partitions []movedPartition `json:"partitions"`
}

type movedPartition struct {
	Partition int32   `json:"partition"`
	Replicas  []int32 `json:"replicas,omitempty"` // those asked for
}

func topicMoveCommand() *cobra.Command {
	var o topicMove
	c := &cobra.Command{
		Use: "move TOPIC", Short: "Put the replicas of a topic's partitions on other nodes, change how many there are", Args: args(cobra.ExactArgs(1)),
		Example: "  sluice topic move readings --to 2,3,4 --wait\n  sluice topic move readings --replication-factor 3 --throttle 10000000 --wait\n  sluice topic move readings --cancel",
		RunE:    o.run,
	}
	o.flags(c)
	c.Flags().Int32SliceVarP(&o.partitions, "partitions", "p", nil, "which partitions; all of them when it is left out")
	c.Flags().Int32SliceVar(&o.to, "to", nil, "the nodes that shall have the replicas; the first one leads, of several partitions each in turn")
	c.Flags().IntVarP(&o.factor, "replication-factor", "r", 0, "how many replicas there shall be: others are added or the last ones removed")
	c.Flags().BoolVar(&o.cancel, "cancel", false, "leave the partitions where they are, if they are still on their way")
	c.Flags().Int64Var(&o.throttle, "throttle", 0, "bytes a second that each node sends and receives for moves at most; with --wait until they are done, else until the next one that says another rate")
	c.Flags().BoolVarP(&o.wait, "wait", "w", false, "show how far it is, and wait until it is done")
	return c
}

func (o *topicMove) run(c *cobra.Command, topics []string) error {
	given := 0
	for _, is := range []bool{len(o.to) > 0, o.factor != 0, o.cancel} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return usage(c, errors.New("give one of --to, --replication-factor and --cancel"))
	case o.factor < 0:
		return usage(c, fmt.Errorf("--replication-factor %d: must be 1 or more", o.factor))
	case o.throttle < 0:
		return usage(c, fmt.Errorf("--throttle %d: must be 1 or more", o.throttle))
	}
	topic := topics[0]
	return o.withAdmin(c, func(ctx context.Context, admin *kadm.Client) error {
		if err := o.move(ctx, c, admin, topic); err != nil {
			return fmt.Errorf("move topic %s: %w", topic, err)
		}
		return nil
	})
}

func (o *topicMove) move(ctx context.Context, c *cobra.Command, admin *kadm.Client, topic string) error {
	plan, err := o.plan(ctx, admin, topic)
	if err != nil {
		return err
	}
	if err := setMoveRate(ctx, admin, o.throttle); err != nil {
		return err
	}
	if err := reassign(ctx, admin, topic, plan); err != nil {
		return err
	}
	if o.wait {
		if err := o.await(c, admin, topic, plan); err != nil {
			return err
		}
	}
	if wantsJSON(c) {
		return printJSON(c, movedTopic{Topic: topic, Partitions: plan})
	}
	did := "moving"
	switch {
	case o.cancel:
		did = "left in place:"
	case o.wait:
		did = "moved"
	}
	fmt.Fprintf(c.OutOrStdout(), "%s %d partitions of %s\n", did, len(plan), topic)
	return nil
}

// plan says where each partition shall be.
func (o *topicMove) plan(ctx context.Context, admin *kadm.Client, topic string) ([]movedPartition, error) {
	m, err := admin.Metadata(ctx, topic)
	if err == nil {
		err = m.Topics[topic].Err
	}
	if err != nil {
		return nil, err
	}
	details := m.Topics[topic].Partitions
	wanted := o.partitions
	if len(wanted) == 0 {
		wanted = details.Numbers()
	}
	moving, err := o.moving(ctx, admin, topic, wanted)
	if err != nil {
		return nil, err
	}
	chooser := replicaChooser{brokers: m.Brokers, count: make(map[int32]int), chosen: make(map[string][]int32)}
	for _, p := range details {
		chooser.add(p.Replicas)
	}
	var plan []movedPartition
	for i, index := range wanted {
		p, ok := details[index]
		switch {
		case !ok:
			return nil, fmt.Errorf("there is no partition %d", index)
		case o.cancel && slices.Contains(moving, index):
			plan = append(plan, movedPartition{Partition: index})
		case o.cancel:
		case len(o.to) > 0:
			plan = append(plan, movedPartition{index, rotated(o.to, i)})
		case slices.Contains(moving, index):
			return nil, fmt.Errorf("partition %d is on its way: wait for it or --cancel that first", index)
		default:
			replicas, err := chooser.resize(p.Replicas, o.factor)
			if err != nil {
				return nil, err
			}
			plan = append(plan, movedPartition{index, replicas})
		}
	}
	return plan, nil
}

// moving lists the partitions that are on their way.
func (o *topicMove) moving(ctx context.Context, admin *kadm.Client, topic string, wanted []int32) ([]int32, error) {
	var set kadm.TopicsSet
	set.Add(topic, wanted...)
	list, err := admin.ListPartitionReassignments(ctx, set)
	if err != nil {
		return nil, fmt.Errorf("list what is on its way: %w", err)
	}
	var out []int32
	for index := range list[topic] {
		out = append(out, index)
	}
	return out, nil
}

// rotated gives each of several partitions another leader of the same nodes.
func rotated(nodes []int32, by int) []int32 {
	at := by % len(nodes)
	return slices.Concat(nodes[at:], nodes[:at])
}

// replicaChooser changes the number of replicas. Partitions with the same replicas get the same ones.
type replicaChooser struct {
	brokers kadm.BrokerDetails
	count   map[int32]int // replicas of the topic on each node
	chosen  map[string][]int32
}

func (r *replicaChooser) add(replicas []int32) {
	for _, id := range replicas {
		r.count[id]++
	}
}

func (r *replicaChooser) resize(replicas []int32, factor int) ([]int32, error) {
	if factor > len(r.brokers) {
		return nil, fmt.Errorf("%d replicas need as many nodes, %d are up", factor, len(r.brokers))
	}
	if len(replicas) > factor {
		return replicas[:factor], nil
	}
	key := fmt.Sprint(replicas)
	if list, ok := r.chosen[key]; ok {
		return list, nil
	}
	list := slices.Clone(replicas)
	for len(list) < factor {
		list = append(list, r.next(list))
	}
	r.chosen[key] = list
	r.add(list[len(replicas):])
	return list, nil
}

// next chooses a node for one more replica: a rack that has none yet, then the fewest replicas.
func (r *replicaChooser) next(list []int32) int32 {
	racks := make(map[string]bool)
	for _, b := range r.brokers {
		if slices.Contains(list, b.NodeID) && b.Rack != nil {
			racks[*b.Rack] = true
		}
	}
	best, bestRank := int32(-1), [3]int{}
	for _, b := range r.brokers {
		if slices.Contains(list, b.NodeID) {
			continue
		}
		rank := [3]int{0, r.count[b.NodeID], int(b.NodeID)}
		if b.Rack != nil && racks[*b.Rack] {
			rank[0] = 1
		}
		if best < 0 || slices.Compare(rank[:], bestRank[:]) < 0 {
			best, bestRank = b.NodeID, rank
		}
	}
	return best
}

func reassign(ctx context.Context, admin *kadm.Client, topic string, plan []movedPartition) error {
	var req kadm.AlterPartitionAssignmentsReq
	for _, p := range plan {
		req.Assign(topic, p.Partition, p.Replicas)
	}
	responses, err := admin.AlterPartitionAssignments(ctx, req)
	if err != nil {
		return err
	}
	var errs []error
	responses.Each(func(r kadm.AlterPartitionAssignmentsResponse) {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("partition %d: %w", r.Partition, explain(r.Err, r.ErrMessage)))
		}
	})
	return errors.Join(errs...)
}

// moveRates are the settings of brokers that bound what moves take, the same as with Kafka's tool.
var moveRates = []string{"leader.replication.throttled.rate", "follower.replication.throttled.rate"}

// setMoveRate sets them for all nodes; 0 leaves them alone.
func setMoveRate(ctx context.Context, admin *kadm.Client, rate int64) error {
	if rate == 0 {
		return nil
	}
	value := strconv.FormatInt(rate, 10)
	return alterMoveRates(ctx, admin, func(name string) kadm.AlterConfig {
		return kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value}
	})
}

func alterMoveRates(ctx context.Context, admin *kadm.Client, change func(name string) kadm.AlterConfig) error {
	var changes []kadm.AlterConfig
	for _, name := range moveRates {
		changes = append(changes, change(name))
	}
	responses, err := admin.AlterBrokerConfigs(ctx, changes)
	if err != nil {
		return fmt.Errorf("set the throttle: %w", err)
	}
	for _, r := range responses {
		if r.Err != nil {
			return fmt.Errorf("set the throttle: %w", explain(r.Err, r.ErrMessage))
		}
	}
	return nil
}

// await shows how far the moves are until all are done. Interrupting it does not stop them.
func (o *topicMove) await(c *cobra.Command, admin *kadm.Client, topic string, plan []movedPartition) error {
	ctx := c.Context()
	wanted := make([]int32, len(plan))
	for i, p := range plan {
		wanted[i] = p.Partition
	}
	last := ""
	for {
		left, err := o.moving(ctx, admin, topic, wanted)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			break
		}
		if line := progressOf(ctx, admin, topic, left, len(plan)); line != last {
			fmt.Fprintln(c.ErrOrStderr(), line)
			last = line
		}
		select {
		case <-time.After(clusterPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if o.throttle == 0 {
		return nil
	}
	return alterMoveRates(ctx, admin, func(name string) kadm.AlterConfig { return kadm.AlterConfig{Op: kadm.DeleteConfig, Name: name} })
}

// progressOf tells how many partitions have arrived, and of the others how much has been copied: the largest replica of each is taken
// for the whole.
func progressOf(ctx context.Context, admin *kadm.Client, topic string, left []int32, all int) string {
	line := fmt.Sprintf("%d of %d partitions moved", all-len(left), all)
	var set kadm.TopicsSet
	set.Add(topic, left...)
	dirs, err := admin.DescribeAllLogDirs(ctx, set)
	if err != nil {
		return line
	}
	whole, copied := make(map[int32]int64), make(map[int32]int64)
	dirs.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
			if least, ok := copied[p.Partition]; !ok || p.Size < least {
				copied[p.Partition] = p.Size
			}
			whole[p.Partition] = max(whole[p.Partition], p.Size)
		})
	})
	var have, of int64
	for index := range whole {
		have, of = have+copied[index], of+whole[index]
	}
	return fmt.Sprintf("%s, %d of %d bytes of the others copied", line, have, of)
}
