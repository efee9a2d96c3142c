package broker

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// IncrementalAlterConfigs v0 and v1 (KIP-339): SET, DELETE, and for lists APPEND and SUBTRACT. Nothing of a resource is changed when one of its
// operations is refused.
func init() { register(44, 0, 1, (*Broker).handleIncrementalAlterConfigs) }

func (b *Broker) handleIncrementalAlterConfigs(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.IncrementalAlterConfigsRequest)
	return func(ctx context.Context) kafka.Response {
		resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
		var batch alterBatch
		for _, resource := range req.Resources {
			change, refused := b.changeConfigs(resource)
			batch.add(change, refused)
		}
		for i, refused := range b.alterConfigs(ctx, &batch, req.ValidateOnly) {
			answer := kmsg.NewIncrementalAlterConfigsResponseResource()
			answer.ResourceType, answer.ResourceName = req.Resources[i].ResourceType, req.Resources[i].ResourceName
			refused.put(&answer.ErrorCode, &answer.ErrorMessage)
			resp.Resources = append(resp.Resources, answer)
		}
		return resp
	}
}

func (b *Broker) changeConfigs(r kmsg.IncrementalAlterConfigsRequestResource) (meta.ConfigChange, *refusal) {
	change := meta.ConfigChange{Type: int8(r.ResourceType), Name: r.ResourceName, Set: make(map[string]string)}
	for name := range duplicates(r.Configs, func(c kmsg.IncrementalAlterConfigsRequestResourceConfig) string { return c.Name }) {
		return change, refuse(codeInvalidRequest, "Error due to duplicate config keys: %s", name)
	}
	now := b.ctl.Image().Config(change.Type, change.Name)
	for _, c := range r.Configs {
		if c.Op == kmsg.IncrementalAlterConfigOpDelete {
			change.Delete = append(change.Delete, c.Name)
			continue
		}
		value, refused := operate(change.Type, now, c)
		if refused != nil {
			return change, refused
		}
		change.Set[c.Name] = value
	}
	return change, b.checkChange(change)
}

// operate returns what the setting will be.
func operate(kind int8, now map[string]string, c kmsg.IncrementalAlterConfigsRequestResourceConfig) (string, *refusal) {
	if c.Value == nil {
		return "", refuse(codeInvalidRequest, "Null value not supported for: %s", c.Name)
	}
	switch c.Op {
	case kmsg.IncrementalAlterConfigOpSet:
		return *c.Value, nil
	case kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract:
	default:
		return "", refuse(codeInvalidRequest, "Unknown operation %d for config %s", c.Op, c.Name)
	}
	table := meta.ConfigTableOf(kind)
	if table == nil || table.Key(c.Name) == nil || table.Key(c.Name).Type != meta.TypeList {
		return "", refuse(codeInvalidConfig, "Can't APPEND to or SUBTRACT from key %s because its type is not LIST.", c.Name)
	}
	list, ok := now[c.Name]
	if !ok {
		list = table.Key(c.Name).Default
	}
	return operateList(meta.SplitList(list), c.Op, meta.SplitList(*c.Value)), nil
}

func operateList(list []string, op kmsg.IncrementalAlterConfigOp, operand []string) string {
	for _, e := range operand {
		switch {
		case op == kmsg.IncrementalAlterConfigOpSubtract:
			list = slices.DeleteFunc(list, func(have string) bool { return have == e })
		case !slices.Contains(list, e):
			list = append(list, e)
		}
	}
	return strings.Join(list, ",")
}
