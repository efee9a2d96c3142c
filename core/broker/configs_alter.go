package broker

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/meta"
)

// alterBatch is the resources of one request with what is already refused.
type alterBatch struct {
	changes []meta.ConfigChange
	refused []*refusal
}

func (a *alterBatch) add(c meta.ConfigChange, r *refusal) {
	a.changes, a.refused = append(a.changes, c), append(a.refused, r)
}

// alterConfigs makes the changes that are not refused, all in one command, and returns an answer for each.
func (b *Broker) alterConfigs(ctx context.Context, batch *alterBatch, validateOnly bool) []*refusal {
	type resource struct {
		kind int8
		name string
	}
	count := make(map[resource]int)
	for _, c := range batch.changes {
		count[resource{c.Type, c.Name}]++
	}
	var send []meta.ConfigChange
	var at []int
	for i, c := range batch.changes {
		if count[resource{c.Type, c.Name}] > 1 {
			batch.refused[i] = refuse(codeInvalidRequest, "Each resource must appear at most once.")
		}
		if batch.refused[i] == nil {
			send, at = append(send, c), append(at, i)
		}
	}
	if len(send) == 0 || validateOnly {
		return batch.refused
	}
	ctx, cancel := adminContext(ctx, 0)
	defer cancel()
	for i, err := range b.ctl.AlterConfigs(ctx, send) {
		batch.refused[at[i]] = refusalOf(err)
	}
	return batch.refused
}

// checkChange says why a change cannot be made as far as this node's metadata tell.
func (b *Broker) checkChange(c meta.ConfigChange) *refusal {
	if refused := b.checkResource(c); refused != nil {
		return refused
	}
	for _, name := range slices.Sorted(maps.Keys(c.Set)) {
		if err := meta.ValidateConfig(c.Type, name, c.Set[name]); err != nil {
			return refuse(configCode(c.Type, name), "%s", err)
		}
	}
	return nil
}

// configCode: what a broker fixes at its start is not an invalid value but an invalid request.
func configCode(kind int8, name string) int16 {
	if k := meta.BrokerConfigs.Key(name); kind == meta.ResourceBroker && k != nil && k.Update == meta.ReadOnly {
		return codeInvalidRequest
	}
	return codeInvalidConfig
}

func (b *Broker) checkResource(c meta.ConfigChange) *refusal {
	kind := kmsg.ConfigResourceType(c.Type)
	switch kind {
	case kmsg.ConfigResourceTypeTopic:
		if err := meta.ValidateTopicName(c.Name); err != nil {
			return refusalOf(err)
		}
		if b.ctl.Image().Topic(c.Name) == nil {
			return refuse(codeUnknownTopicOrPartition, "The topic '%s' does not exist.", c.Name)
		}
	case kmsg.ConfigResourceTypeBroker:
		return b.checkBroker(c.Name)
	case kmsg.ConfigResourceTypeClientMetrics, kmsg.ConfigResourceTypeGroupConfig:
		if c.Name == "" {
			return refuse(codeInvalidRequest, "Default %s resources are not allowed.", kind)
		}
	case kmsg.ConfigResourceTypeBrokerLogger:
		return refuse(codeInvalidRequest, "The log level is set when the node starts (log.level).")
	default:
		return refuse(codeInvalidRequest, "Unsupported resource type: %d", c.Type)
	}
	return nil
}

// checkBroker accepts "" for all brokers and the ids of those there are.
func (b *Broker) checkBroker(name string) *refusal {
	if name == "" {
		return nil
	}
	id, err := strconv.ParseInt(name, 10, 32)
	if err != nil {
		return refuse(codeInvalidRequest, "Node id must be an integer, but it is: %s", name)
	}
	if _, ok := b.ctl.Image().Node(meta.NodeID(id)); !ok {
		return refuse(codeResourceNotFound, "No node with id %d is known.", id)
	}
	return nil
}
