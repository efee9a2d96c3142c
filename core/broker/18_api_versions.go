package broker

import (
	"context"
	"regexp"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
)

// ApiVersions (18), versions 0 to 4: the profile of Kafka 4.2.
//
// A version that is not served is answered by core/kafka in version 0 with the table, so that the client asks again (KIP-511). From 3 on the client names itself,
// and the features are told (KIP-584). Only what works now is among them, as clients switch protocols on by it: there is no transaction.version (clients
// would send transactions of KIP-890), group.version (KIP-848) or share.version (KIP-932).
func init() { register(18, 0, 4, (*Broker).handleApiVersions) }

const (
	// metadataVersionMin and metadataVersionMax are the levels of metadata.version that Kafka 4.2 supports, 3.3-IV3 and 4.2-IV1.
	metadataVersionMin, metadataVersionMax = 7, 29
	// featuresEpoch says that the finalized features are known; clients take them only from 0 on.
	featuresEpoch = 1
)

// clientSoftware is what Kafka takes as name and version of a client's software (KIP-511).
var clientSoftware = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?$`)

// softwareKey is the key of a connection's value that holds its softwareInfo.
type softwareKey struct{}

// softwareInfo is what a client says it is.
type softwareInfo struct{ Name, Version string }

func (b *Broker) handleApiVersions(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.ApiVersionsRequest)
	resp := kmsg.NewPtrApiVersionsResponse()
	if r.Version >= 3 {
		if !clientSoftware.MatchString(req.ClientSoftwareName) || !clientSoftware.MatchString(req.ClientSoftwareVersion) {
			resp.ErrorCode = codeInvalidRequest
			return reply(resp)
		}
		r.Conn.SetValue(softwareKey{}, softwareInfo{req.ClientSoftwareName, req.ClientSoftwareVersion})
		addFeatures(resp)
	}
	resp.ApiKeys = b.table.ApiKeys()
	return reply(resp)
}

func addFeatures(resp *kmsg.ApiVersionsResponse) {
	s := kmsg.NewApiVersionsResponseSupportedFeature()
	s.Name, s.MinVersion, s.MaxVersion = "metadata.version", metadataVersionMin, metadataVersionMax
	resp.SupportedFeatures = append(resp.SupportedFeatures, s)
	f := kmsg.NewApiVersionsResponseFinalizedFeature()
	f.Name, f.MinVersionLevel, f.MaxVersionLevel = s.Name, metadataVersionMax, metadataVersionMax
	resp.FinalizedFeatures = append(resp.FinalizedFeatures, f)
	resp.FinalizedFeaturesEpoch = featuresEpoch
}
