package controller

import (
	"maps"
	"slices"

	"sluice/core/meta"
)

const (
	// partitionsPerRequestMax is Kafka's bound for one CreateTopics or CreatePartitions.
	partitionsPerRequestMax = 10_000
	// offsetsSegmentBytes is Kafka's offsets.topic.segment.bytes: a coordinator reads the whole
	// partition when it takes over, so its segments are small and compacted early.
	offsetsSegmentBytes = "104857600"
)

// Defaults are the settings of new topics where the request leaves them open.
type Defaults struct {
	NumPartitions     int32 // 3
	ReplicationFactor int16 // 0 means min(3, registered nodes)
	OffsetsPartitions int32 // 10, of __consumer_offsets and __transaction_state
	ShardsPerNode     int   // 2: Raft groups that a node shall lead, for each replication factor
}

func (d Defaults) withDefaults() Defaults {
	if d.NumPartitions == 0 {
		d.NumPartitions = 3
	}
	if d.OffsetsPartitions == 0 {
		d.OffsetsPartitions = 10
	}
	if d.ShardsPerNode == 0 {
		d.ShardsPerNode = 2
	}
	return d
}

// replicationFactor returns the default: three replicas, or as many as there are nodes. Nodes that
// are down for the moment count, for a topic keeps its factor.
func (d Defaults) replicationFactor(image *meta.Image) int16 {
	if d.ReplicationFactor > 0 {
		return d.ReplicationFactor
	}
	return int16(max(1, min(3, len(image.Nodes()))))
}

// planner turns requests into commands. It runs on the metadata leader, one request at a time.
type planner struct {
	image    *meta.Image
	place    *placement
	defaults Defaults
}

func newPlanner(image *meta.Image, live func(meta.NodeID) bool, d Defaults) *planner {
	d = d.withDefaults()
	return &planner{image: image, place: newPlacement(image, live, d.ShardsPerNode), defaults: d}
}

// createTopics plans each topic for itself; those it refuses are in Refused.
func (p *planner) createTopics(topics []meta.NewTopic) *meta.CreateTopics {
	c := &meta.CreateTopics{}
	seen := make(map[string]int)
	for i := range topics {
		seen[topics[i].Name]++
	}
	normalized := make(map[string]string)
	budget := partitionsPerRequestMax
	for i := range topics {
		t := &topics[i]
		mark := len(p.place.created)
		spec, err := p.createTopic(t, normalized, &budget)
		if seen[t.Name] > 1 {
			err = meta.Errorf(meta.CodeInvalidRequest, "Duplicate topic name.")
		}
		if err != nil {
			p.place.undoTo(mark)
			c.Refused = append(c.Refused, meta.TopicResult{Name: t.Name, Partitions: t.Partitions, ReplicationFactor: t.ReplicationFactor, Err: err})
			continue
		}
		normalized[meta.NormalizedName(t.Name)] = t.Name
		c.Topics = append(c.Topics, *spec)
	}
	c.Shards = p.place.created
	return c
}

func (p *planner) createTopic(t *meta.NewTopic, normalized map[string]string, budget *int) (*meta.TopicSpec, *meta.Error) {
	if err := p.checkTopic(t, normalized); err != nil {
		return nil, err
	}
	spec := &meta.TopicSpec{ID: newTopicID(), Name: t.Name, Internal: meta.IsInternal(t.Name), Configs: withInternalConfigs(t)}
	var err *meta.Error
	if len(t.Assignments) > 0 {
		err = p.assignByHand(t, spec, budget)
	} else {
		err = p.assign(t, spec, budget)
	}
	return spec, err
}

func (p *planner) checkTopic(t *meta.NewTopic, normalized map[string]string) *meta.Error {
	if err := meta.ValidateTopicName(t.Name); err != nil {
		return asError(err)
	}
	if p.image.Topic(t.Name) != nil {
		return meta.Errorf(meta.CodeTopicAlreadyExists, "Topic '%s' already exists.", t.Name)
	}
	other := normalized[meta.NormalizedName(t.Name)]
	if c := p.image.Colliding(t.Name); c != nil {
		other = c.Name
	}
	if other != "" && other != t.Name {
		return meta.Errorf(meta.CodeInvalidTopic, "Topic '%s' collides with existing topic: %s", t.Name, other)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Configs)) {
		if err := meta.ValidateTopicConfig(name, t.Configs[name]); err != nil {
			return meta.Errorf(meta.CodeInvalidConfig, "%s", err.Error())
		}
	}
	return nil
}

// withInternalConfigs adds what the cluster's own topics need: they are compacted, as Kafka's.
func withInternalConfigs(t *meta.NewTopic) map[string]string {
	if !meta.IsInternal(t.Name) {
		return t.Configs
	}
	c := map[string]string{"cleanup.policy": "compact", "segment.bytes": offsetsSegmentBytes, "compression.type": "producer"}
	maps.Copy(c, t.Configs)
	return c
}

func (p *planner) assign(t *meta.NewTopic, spec *meta.TopicSpec, budget *int) *meta.Error {
	partitions, rf := t.Partitions, t.ReplicationFactor
	if partitions == -1 {
		partitions = p.defaults.NumPartitions
		if spec.Internal {
			partitions = p.defaults.OffsetsPartitions
		}
	}
	if rf == -1 {
		rf = p.defaults.replicationFactor(p.image)
	}
	switch {
	case rf <= 0:
		return meta.Errorf(meta.CodeInvalidReplicationFactor, "Replication factor must be larger than 0, or -1 to use the default value.")
	case partitions <= 0:
		return meta.Errorf(meta.CodeInvalidPartitions, "Number of partitions was set to an invalid non-positive value.")
	}
	if err := takeBudget(budget, int(partitions)); err != nil {
		return err
	}
	if err := p.checkReplicationFactor(rf); err != nil {
		return err
	}
	spec.ReplicationFactor = rf
	if spec.Shards = p.place.spread(partitions, int(rf), nil); spec.Shards == nil {
		return noMajority(rf)
	}
	return nil
}

// takeBudget keeps one request from asking for more partitions than Kafka allows.
func takeBudget(budget *int, partitions int) *meta.Error {
	if partitions > *budget {
		return meta.Errorf(meta.CodePolicyViolation, "Excessively large number of partitions per request.")
	}
	*budget -= partitions
	return nil
}

func (p *planner) checkReplicationFactor(rf int16) *meta.Error {
	if n := len(p.image.Nodes()); int(rf) > n {
		return meta.Errorf(meta.CodeInvalidReplicationFactor,
			"Unable to replicate the partition %d time(s): The target replication factor of %d cannot be reached because only %d broker(s) are registered.", rf, rf, n)
	}
	return nil
}

func noMajority(rf int16) *meta.Error {
	return meta.Errorf(meta.CodeInvalidReplicationFactor,
		"Unable to replicate the partition %d time(s): too few brokers are alive for a majority of the replicas.", rf)
}

func (p *planner) assignByHand(t *meta.NewTopic, spec *meta.TopicSpec, budget *int) *meta.Error {
	switch {
	case t.ReplicationFactor != -1:
		return meta.Errorf(meta.CodeInvalidRequest, "A manual partition assignment was specified, but replication factor was not set to -1.")
	case t.Partitions != -1:
		return meta.Errorf(meta.CodeInvalidRequest, "A manual partition assignment was specified, but numPartitions was not set to -1.")
	}
	if err := takeBudget(budget, len(t.Assignments)); err != nil {
		return err
	}
	lists := make([][]meta.NodeID, len(t.Assignments))
	for i := range lists {
		list, ok := t.Assignments[int32(i)]
		if !ok {
			return meta.Errorf(meta.CodeInvalidReplicaAssignment, "partitions should be a consecutive 0-based integer sequence")
		}
		lists[i] = list
	}
	var err *meta.Error
	spec.ReplicationFactor = int16(len(lists[0]))
	spec.Shards, err = p.placeByHand(lists, len(lists[0]))
	return err
}

func (p *planner) placeByHand(lists [][]meta.NodeID, rf int) ([]meta.ShardID, *meta.Error) {
	shards := make([]meta.ShardID, len(lists))
	for _, list := range lists {
		if err := p.checkAssignment(list, rf); err != nil {
			return nil, err
		}
	}
	for i, list := range lists {
		id, ok := p.place.exactly(list)
		if !ok {
			return nil, meta.Errorf(meta.CodePolicyViolation, "The cluster has %d different replica assignments already; use one of those.", shardsMax)
		}
		shards[i] = id
	}
	return shards, nil
}

func (p *planner) checkAssignment(list []meta.NodeID, rf int) *meta.Error {
	if len(list) == 0 {
		return meta.Errorf(meta.CodeInvalidReplicaAssignment, "The manual partition assignment includes an empty replica list.")
	}
	for i, id := range list {
		if _, ok := p.image.Node(id); !ok {
			return meta.Errorf(meta.CodeInvalidReplicaAssignment, "The manual partition assignment includes broker %d, but no such broker is registered.", id)
		}
		if slices.Contains(list[:i], id) {
			return meta.Errorf(meta.CodeInvalidReplicaAssignment, "The manual partition assignment includes the broker %d more than once.", id)
		}
	}
	if len(list) != rf {
		return meta.Errorf(meta.CodeInvalidReplicaAssignment,
			"The manual partition assignment includes a partition with %d replica(s), but this is not consistent with previous partitions, which have %d replica(s).", len(list), rf)
	}
	return nil
}

func (p *planner) createPartitions(r *createPartitionsRequest) (*meta.CreatePartitions, *meta.Error) {
	t := p.image.Topic(r.Name)
	if t == nil {
		return nil, meta.Errorf(meta.CodeUnknownTopicOrPartition, "This server does not host this topic-partition.")
	}
	have := int32(len(t.Partitions))
	switch {
	case r.Count == have:
		return nil, meta.Errorf(meta.CodeInvalidPartitions, "Topic already has %d partition(s).", have)
	case r.Count < have:
		return nil, meta.Errorf(meta.CodeInvalidPartitions, "The topic %s currently has %d partition(s); %d would not be an increase.", r.Name, have, r.Count)
	case r.Count-have > partitionsPerRequestMax:
		return nil, meta.Errorf(meta.CodePolicyViolation, "Excessively large number of partitions per request.")
	}
	shards, err := p.placeFurther(t, r)
	if err != nil {
		return nil, err
	}
	return &meta.CreatePartitions{Topic: t.ID, From: have, Shards: shards, New: p.place.created}, nil
}

func (p *planner) placeFurther(t *meta.Topic, r *createPartitionsRequest) ([]meta.ShardID, *meta.Error) {
	more := r.Count - int32(len(t.Partitions))
	if r.Assignments != nil {
		if int(more) != len(r.Assignments) {
			return nil, meta.Errorf(meta.CodeInvalidReplicaAssignment,
				"Attempted to add %d additional partition(s), but only %d assignment(s) were specified.", more, len(r.Assignments))
		}
		return p.placeByHand(r.Assignments, int(t.ReplicationFactor))
	}
	have := make([]meta.ShardID, len(t.Partitions))
	for i, part := range t.Partitions {
		have[i] = part.Shard
	}
	shards := p.place.spread(more, int(t.ReplicationFactor), have)
	if shards == nil {
		return nil, noMajority(t.ReplicationFactor)
	}
	return shards, nil
}

// alterConfigs marks the changes that are not valid.
func (p *planner) alterConfigs(changes []meta.ConfigChange) *meta.AlterConfigs {
	c := &meta.AlterConfigs{Changes: changes, Refused: make([]*meta.Error, len(changes))}
	for i := range changes {
		c.Refused[i] = p.checkChange(&changes[i])
	}
	return c
}

func (p *planner) checkChange(c *meta.ConfigChange) *meta.Error {
	if c.Type == meta.ResourceTopic && p.image.Topic(c.Name) == nil {
		return meta.Errorf(meta.CodeUnknownTopicOrPartition, "The topic '%s' does not exist.", c.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Set)) {
		if err := meta.ValidateConfig(c.Type, name, c.Set[name]); err != nil {
			return meta.Errorf(meta.CodeInvalidConfig, "%s", err.Error())
		}
	}
	return nil
}
