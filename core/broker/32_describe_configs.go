package broker

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// DescribeConfigs v0 to v4. All known names are listed with their defaults, also those that mean nothing here: clients check names against the list.
//
// v1: source and synonyms (KIP-226). v3: type and documentation (KIP-569). Resources: topics, brokers ("" for what is set for all), the node's
// logger, client metrics subscriptions (KIP-714) and groups (KIP-848).
func init() { register(32, 0, 4, (*Broker).handleDescribeConfigs) }

func (b *Broker) handleDescribeConfigs(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DescribeConfigsRequest)
	return func(context.Context) kafka.Response { return b.describeAllConfigs(req) }
}

func (b *Broker) describeAllConfigs(req *kmsg.DescribeConfigsRequest) *kmsg.DescribeConfigsResponse {
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	view := b.configView()
	for _, resource := range req.Resources {
		answer := kmsg.NewDescribeConfigsResponseResource()
		answer.ResourceType, answer.ResourceName = resource.ResourceType, resource.ResourceName
		entries, refused := b.describeConfigs(view, resource.ResourceType, resource.ResourceName)
		refused.put(&answer.ErrorCode, &answer.ErrorMessage)
		for _, e := range entries {
			if resource.ConfigNames == nil || slices.Contains(resource.ConfigNames, e.key.Name) {
				answer.Configs = append(answer.Configs, e.describe(req))
			}
		}
		resp.Resources = append(resp.Resources, answer)
	}
	return resp
}

func (b *Broker) describeConfigs(view configView, kind kmsg.ConfigResourceType, name string) ([]entry, *refusal) {
	own := view.image.Config(int8(kind), name)
	switch kind {
	case kmsg.ConfigResourceTypeTopic:
		if err := meta.ValidateTopicName(name); err != nil {
			return nil, refusalOf(err)
		}
		if view.image.Topic(name) == nil {
			return nil, refuse(codeUnknownTopicOrPartition, "This server does not host this topic-partition.")
		}
		return view.topic(own), nil
	case kmsg.ConfigResourceTypeBroker:
		if name == "" {
			return set(meta.BrokerConfigs, own, kmsg.ConfigSourceDynamicDefaultBrokerConfig), nil
		}
		return b.describeBroker(view, name)
	case kmsg.ConfigResourceTypeBrokerLogger:
		if refused := b.notThisBroker(name); refused != nil {
			return nil, refused
		}
		return b.loggerEntries(), nil
	case kmsg.ConfigResourceTypeClientMetrics:
		if name == "" {
			return nil, refuse(codeInvalidRequest, "Client metrics subscription name must not be empty")
		}
		return set(meta.ClientMetricsConfigs, own, kmsg.ConfigSourceClientMetricsConfig), nil
	case kmsg.ConfigResourceTypeGroupConfig:
		if name == "" {
			return nil, refuse(codeInvalidRequest, "Group name must not be empty")
		}
		return view.table(meta.GroupConfigs, own, kmsg.ConfigSourceGroupConfig), nil
	}
	return nil, refuse(codeInvalidRequest, "Unsupported resource type: %d", kind)
}

// describeBroker lists this node's configuration, with dynamic names that no table knows at the end.
func (b *Broker) describeBroker(view configView, name string) ([]entry, *refusal) {
	if refused := b.notThisBroker(name); refused != nil {
		return nil, refused
	}
	out := view.table(meta.BrokerConfigs, nil, kmsg.ConfigSourceDynamicBrokerConfig)
	for _, e := range set(meta.BrokerConfigs, view.perBroker, kmsg.ConfigSourceDynamicBrokerConfig) {
		if meta.BrokerConfigs.Key(e.key.Name) == nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// notThisBroker refuses what only another node can tell. Clients send such requests to the node itself.
func (b *Broker) notThisBroker(name string) *refusal {
	if name == nodeName(b.self()) {
		return nil
	}
	return refuse(codeInvalidRequest, "Unexpected broker id, expected %d or empty string, but received %s", b.self(), name)
}

func (e entry) describe(req *kmsg.DescribeConfigsRequest) kmsg.DescribeConfigsResponseResourceConfig {
	c := kmsg.NewDescribeConfigsResponseResourceConfig()
	c.Name, c.Value, c.Source, c.IsSensitive = e.key.Name, e.value, e.source, e.key.Sensitive
	c.ReadOnly = e.key.Update == meta.ReadOnly
	c.IsDefault = e.source == kmsg.ConfigSourceDefaultConfig
	c.ConfigType = kmsg.ConfigType(e.key.Type)
	if req.IncludeDocumentation {
		c.Documentation = &e.key.Doc
	}
	if !req.IncludeSynonyms {
		return c
	}
	for _, s := range e.chain {
		syn := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
		syn.Name, syn.Source = s.name, s.source
		if !e.key.Sensitive {
			syn.Value = kmsg.StringPtr(s.value)
		}
		c.ConfigSynonyms = append(c.ConfigSynonyms, syn)
	}
	return c
}
