package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// AlterConfigs v0 to v2, the older way: what a resource's request does not name is reset to its default. Nothing of a resource is changed when one of
// its settings is refused.
func init() { register(33, 0, 2, (*Broker).handleAlterConfigs) }

func (b *Broker) handleAlterConfigs(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.AlterConfigsRequest)
	return func(ctx context.Context) kafka.Response {
		resp := req.ResponseKind().(*kmsg.AlterConfigsResponse)
		var batch alterBatch
		for _, resource := range req.Resources {
			change, refused := b.replaceConfigs(resource)
			batch.add(change, refused)
		}
		for i, refused := range b.alterConfigs(ctx, &batch, req.ValidateOnly) {
			answer := kmsg.NewAlterConfigsResponseResource()
			answer.ResourceType, answer.ResourceName = req.Resources[i].ResourceType, req.Resources[i].ResourceName
			refused.put(&answer.ErrorCode, &answer.ErrorMessage)
			resp.Resources = append(resp.Resources, answer)
		}
		return resp
	}
}

func (b *Broker) replaceConfigs(r kmsg.AlterConfigsRequestResource) (meta.ConfigChange, *refusal) {
	change := meta.ConfigChange{Type: int8(r.ResourceType), Name: r.ResourceName, Set: make(map[string]string), Replace: true}
	for _, c := range r.Configs {
		if _, twice := change.Set[c.Name]; twice {
			return change, refuse(codeInvalidRequest, "Error due to duplicate config keys: %s", c.Name)
		}
		if c.Value == nil {
			return change, refuse(codeInvalidRequest, "Null value not supported for: %s", c.Name)
		}
		change.Set[c.Name] = *c.Value
	}
	return change, b.checkChange(change)
}
