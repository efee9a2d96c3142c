package broker

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/controller"
	"sluice/core/kafka"
	"sluice/core/meta"
)

// ElectLeaders v0 to v2 (KIP-183, KIP-460). Partitions of a shard have one leader, so the preferred election of one moves all of
// them. An unclean election never happens: a replica that a majority does not follow cannot lead.
func init() { register(43, 0, 2, (*Broker).handleElectLeaders) }

// Election types of KIP-460.
const (
	electionPreferred = 0
	electionUnclean   = 1
)

// electionsMax shards are handed over at the same time: each costs a round of its group.
const electionsMax = 16

func (b *Broker) handleElectLeaders(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.ElectLeadersRequest)
	return func(ctx context.Context) kafka.Response {
		ctx, cancel := adminContext(ctx, req.TimeoutMillis)
		defer cancel()
		resp := req.ResponseKind().(*kmsg.ElectLeadersResponse)
		if req.ElectionType != electionPreferred && req.ElectionType != electionUnclean {
			resp.ErrorCode = codeInvalidRequest
			return resp
		}
		e := &elections{b: b, image: b.ctl.Image(), unclean: req.ElectionType == electionUnclean}
		e.run(ctx, req.Topics)
		for _, t := range e.wanted(req.Topics) {
			if answer := e.topic(t, req.Topics == nil); len(answer.Partitions) > 0 || req.Topics != nil {
				resp.Topics = append(resp.Topics, answer)
			}
		}
		return resp
	}
}

// elections are those of one request.
type elections struct {
	b       *Broker
	image   *meta.Image
	unclean bool

	mu      sync.Mutex
	outcome map[meta.ShardID]error
}

// wanted returns the partitions that are asked for: nil means all.
func (e *elections) wanted(asked []kmsg.ElectLeadersRequestTopic) []kmsg.ElectLeadersRequestTopic {
	if asked != nil {
		return asked
	}
	var all []kmsg.ElectLeadersRequestTopic
	for t := range e.image.Topics() {
		w := kmsg.NewElectLeadersRequestTopic()
		w.Topic = t.Name
		for _, p := range t.Partitions {
			w.Partitions = append(w.Partitions, p.Index)
		}
		all = append(all, w)
	}
	return all
}

// run holds an election in each shard that has to do with the request.
func (e *elections) run(ctx context.Context, asked []kmsg.ElectLeadersRequestTopic) {
	e.outcome = make(map[meta.ShardID]error)
	var shards []meta.ShardID
	for _, t := range e.wanted(asked) {
		for _, index := range t.Partitions {
			if p := partitionAt(e.image.Topic(t.Topic), index); p != nil {
				shards = append(shards, p.Shard)
			}
		}
	}
	slices.Sort(shards)
	slots := make(chan struct{}, electionsMax)
	var wg sync.WaitGroup
	for _, id := range slices.Compact(shards) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := e.elect(ctx, id)
			e.mu.Lock()
			defer e.mu.Unlock()
			e.outcome[id] = err
		})
	}
	wg.Wait()
}

func (e *elections) elect(ctx context.Context, id meta.ShardID) error {
	if !e.unclean {
		return e.b.ctl.ElectPreferred(ctx, id)
	}
	if _, _, ok := e.b.ctl.LeaderOf(id); ok {
		return controller.ErrElectionNotNeeded
	}
	return controller.ErrNoLeader
}

func partitionAt(t *meta.Topic, index int32) *meta.Partition {
	if t == nil || index < 0 || int(index) >= len(t.Partitions) {
		return nil
	}
	return &t.Partitions[index]
}

// topic answers for one topic; when all were asked for, only what has changed or failed is told.
func (e *elections) topic(t kmsg.ElectLeadersRequestTopic, all bool) kmsg.ElectLeadersResponseTopic {
	out := kmsg.NewElectLeadersResponseTopic()
	out.Topic = t.Topic
	for _, index := range t.Partitions {
		answer := kmsg.NewElectLeadersResponseTopicPartition()
		answer.Partition = index
		e.refusal(t.Topic, index).put(&answer.ErrorCode, &answer.ErrorMessage)
		if !all || answer.ErrorCode != kerr.ElectionNotNeeded.Code {
			out.Partitions = append(out.Partitions, answer)
		}
	}
	return out
}

func (e *elections) refusal(topic string, index int32) *refusal {
	t := e.image.Topic(topic)
	p := partitionAt(t, index)
	switch {
	case t == nil:
		return refuse(codeUnknownTopicOrPartition, "No such topic as %s", topic)
	case p == nil:
		return refuse(codeUnknownTopicOrPartition, "No such partition as %s-%d", topic, index)
	}
	err := e.outcome[p.Shard]
	switch {
	case err == nil:
		return nil
	case errors.Is(err, controller.ErrElectionNotNeeded):
		return refuse(kerr.ElectionNotNeeded.Code, "Leader election not needed for topic partition.")
	case e.unclean:
		return refuse(kerr.EligibleLeadersNotAvailable.Code, "No majority of the replicas is alive, and another leader would lose records.")
	case errors.Is(err, controller.ErrPreferredNotAvailable), errors.Is(err, controller.ErrNoLeader):
		return refuse(kerr.PreferredLeaderNotAvailable.Code, "The preferred leader was not available: %s.", err)
	}
	return refusalOf(err)
}
