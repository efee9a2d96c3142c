package broker

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// ListConfigResources v0 and v1 (KIP-1142). v0 was ListClientMetricsResources and lists those only; v1 asks for types, none meaning all.
func init() { register(74, 0, 1, (*Broker).handleListConfigResources) }

// listableResources are the types that v1 knows, in the order of the answer.
var listableResources = []int8{
	meta.ResourceTopic, meta.ResourceBroker, meta.ResourceBrokerLogger, meta.ResourceClientMetrics, meta.ResourceGroup,
}

func (b *Broker) handleListConfigResources(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.ListConfigResourcesRequest)
	return func(context.Context) kafka.Response { return b.listConfigResources(req) }
}

func (b *Broker) listConfigResources(req *kmsg.ListConfigResourcesRequest) *kmsg.ListConfigResourcesResponse {
	resp := req.ResponseKind().(*kmsg.ListConfigResourcesResponse)
	types := req.ResourceTypes
	switch {
	case req.Version == 0:
		types = []int8{meta.ResourceClientMetrics}
	case len(types) == 0:
		types = listableResources
	}
	for i, kind := range types {
		if !slices.Contains(listableResources, kind) {
			resp.ErrorCode, resp.ConfigResources = codeUnsupportedVersion, nil
			break
		}
		if slices.Contains(types[:i], kind) {
			continue
		}
		for _, name := range b.configResources(kind) {
			resource := kmsg.NewListConfigResourcesResponseConfigResource()
			resource.Type, resource.Name = kind, name
			resp.ConfigResources = append(resp.ConfigResources, resource)
		}
	}
	return resp
}

func (b *Broker) configResources(kind int8) []string {
	image := b.ctl.Image()
	var out []string
	switch kind {
	case meta.ResourceTopic:
		for t := range image.Topics() {
			out = append(out, t.Name)
		}
	case meta.ResourceBroker, meta.ResourceBrokerLogger:
		for _, n := range image.Nodes() {
			out = append(out, nodeName(n.ID))
		}
	default:
		out = image.ConfigNames(kind)
	}
	return out
}
