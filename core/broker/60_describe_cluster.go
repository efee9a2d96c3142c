package broker

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
	"sluice/core/meta"
)

// DescribeCluster v0 to v2 (KIP-700). The controller is the leader of the metadata group. v1: endpoint type (KIP-919); only brokers can be asked.
// v2: nodes that are registered and do not answer, on request (KIP-1073).
func init() { register(60, 0, 2, (*Broker).handleDescribeCluster) }

// Endpoint types of KIP-919.
const (
	endpointBroker     = 1
	endpointController = 2
)

func (b *Broker) handleDescribeCluster(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.DescribeClusterRequest)
	resp := req.ResponseKind().(*kmsg.DescribeClusterResponse)
	resp.EndpointType, resp.ControllerID = endpointBroker, int32(meta.NoNode)
	resp.ClusterAuthorizedOperations = operationsUnknown
	if refused := wrongEndpoint(req); refused != nil {
		refused.put(&resp.ErrorCode, &resp.ErrorMessage)
		resp.EndpointType = req.EndpointType
		return reply(resp)
	}
	image := b.ctl.Image()
	resp.ClusterID = image.ClusterID()
	resp.ControllerID = int32(b.controllerID())
	if req.IncludeClusterAuthorizedOperations {
		resp.ClusterAuthorizedOperations = clusterOperations
	}
	for _, n := range image.Nodes() {
		if n.Fenced && !req.IncludeFencedBrokers {
			continue
		}
		broker := kmsg.NewDescribeClusterResponseBroker()
		broker.NodeID, broker.Host, broker.Port, broker.Rack, broker.IsFenced = int32(n.ID), n.KafkaHost, n.KafkaPort, rack(n), n.Fenced
		resp.Brokers = append(resp.Brokers, broker)
	}
	return reply(resp)
}

func wrongEndpoint(req *kmsg.DescribeClusterRequest) *refusal {
	switch {
	case req.Version < 1 || req.EndpointType == endpointBroker:
		return nil
	case req.EndpointType == endpointController:
		return refuse(codeMismatchedEndpointType, "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER")
	}
	return refuse(codeUnsupportedEndpoint, "Unsupported endpoint type %d", req.EndpointType)
}
