package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/record"
)

func metadataRequest(version int16, topics ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.AllowAutoTopicCreation = version, false
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, name := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	return req
}

func TestMetadataVersions(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("seen", 6, nil)
	conn := dialRaw(t, c.nodes[1].kafka)
	for v := int16(0); v <= 13; v++ {
		c.without(fmt.Sprintf("metadata of v%d", v), func() string { // leaders may change, and nodes miss pings, for a moment
			for i := range int32(6) {
				c.steady("seen", i)
			}
			return wrongMetadata(v, ask[*kmsg.MetadataResponse](conn, metadataRequest(v, "seen")))
		})
	}
}

// wrongMetadata says what is wrong with an answer about a topic of six partitions on three nodes.
func wrongMetadata(v int16, resp *kmsg.MetadataResponse) string {
	if len(resp.Brokers) != 3 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 6 {
		return fmt.Sprintf("%+v", resp)
	}
	if v >= 1 && (resp.ControllerID < 1 || resp.ControllerID > 3 || *resp.Brokers[0].Rack != "rack1") {
		return fmt.Sprintf("controller %d, rack %v", resp.ControllerID, resp.Brokers[0].Rack)
	}
	if v >= 2 && len(*resp.ClusterID) != 22 {
		return fmt.Sprintf("cluster %s", *resp.ClusterID)
	}
	leaders := make(map[int32]int)
	for _, p := range resp.Topics[0].Partitions {
		leaders[p.Leader]++
		if p.ErrorCode != 0 || len(p.Replicas) != 3 || !slices.Contains(p.Replicas, p.Leader) || !slices.Contains(p.ISR, p.Leader) {
			return fmt.Sprintf("%+v", p)
		}
		if v >= 7 && p.LeaderEpoch <= 0 {
			return fmt.Sprintf("leader epoch %d", p.LeaderEpoch)
		}
	}
	if len(leaders) < 2 {
		return fmt.Sprintf("one node leads all: %v", leaders)
	}
	return ""
}

func TestMetadataAllNoneAndById(t *testing.T) {
	c := startCluster(t, 1)
	c.create("one", 1, nil)
	c.create("two", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	for name, step := range map[string]struct {
		req  *kmsg.MetadataRequest
		want int
	}{
		"all of v0":  {metadataRequest(0), 2},
		"none of v1": {metadataRequest(1), 0},
		"all of v12": {func() *kmsg.MetadataRequest { r := metadataRequest(12); r.Topics = nil; return r }(), 2},
	} {
		if resp := ask[*kmsg.MetadataResponse](conn, step.req); len(resp.Topics) != step.want {
			t.Errorf("%s: %d topics", name, len(resp.Topics))
		}
	}
	byID := metadataRequest(12)
	known, unknown := kmsg.NewMetadataRequestTopic(), kmsg.NewMetadataRequestTopic()
	known.TopicID, unknown.TopicID = conn.topicID("two"), [16]byte{9}
	byID.Topics = append(byID.Topics, known, unknown)
	resp := ask[*kmsg.MetadataResponse](conn, byID)
	if *resp.Topics[0].Topic != "two" || resp.Topics[1].ErrorCode != codeUnknownTopicID || resp.Topics[1].Topic != nil {
		t.Errorf("by id: %+v", resp.Topics)
	}
}

func TestMetadataCreatesTopics(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	conn := dialRaw(t, c.nodes[2].kafka)
	long := strings.Repeat("x", 250)
	for _, step := range []struct {
		topic  string
		create bool
		code   int16
	}{
		{"first", false, codeUnknownTopicOrPartition}, {"first", true, codeNone}, {"first", false, codeNone},
		{"bad name", true, codeInvalidTopic}, {"", true, codeInvalidTopic}, {"..", true, codeInvalidTopic}, {long, true, codeInvalidTopic},
	} {
		req := metadataRequest(9, step.topic)
		req.AllowAutoTopicCreation = step.create
		var resp *kmsg.MetadataResponse
		c.without(fmt.Sprintf("the answer to %q, create %v", step.topic, step.create), func() string { // a client asks again while there is no leader
			resp = ask[*kmsg.MetadataResponse](conn, req)
			if len(resp.Topics) == 1 && resp.Topics[0].ErrorCode == step.code {
				return ""
			}
			if len(resp.Topics) != 1 || step.code != codeNone || !kerr.IsRetriable(kerr.ErrorForCode(resp.Topics[0].ErrorCode)) {
				t.Fatalf("%q, create %v: %+v", step.topic, step.create, resp.Topics)
			}
			return fmt.Sprintf("%+v", resp.Topics)
		})
		if step.code != codeNone {
			continue
		}
		// What is answered can be used, wherever it is led.
		for i := range resp.Topics[0].Partitions {
			c.without("a record to be taken", func() string {
				p := ask[*kmsg.MetadataResponse](conn, req).Topics[0].Partitions[i]
				if p.Leader < 1 {
					return fmt.Sprintf("%s/%d has no leader: %d", step.topic, p.Partition, p.ErrorCode)
				}
				leader := dialRaw(t, c.node(p.Leader).kafka)
				if got := leader.produce(produceRequest(9, step.topic, [16]byte{}, p.Partition, batch(record.None, "a"))); got.ErrorCode != codeNone {
					return fmt.Sprintf("%s/%d on %d: %+v", step.topic, p.Partition, p.Leader, got)
				}
				return ""
			})
		}
	}
	// Before v4 a request could not say no.
	c.without("a topic that nobody said not to create", func() string {
		if resp := ask[*kmsg.MetadataResponse](conn, metadataRequest(3, "second")); resp.Topics[0].ErrorCode != codeNone {
			return fmt.Sprintf("v3: %+v", resp.Topics)
		}
		return ""
	})
}

func TestMetadataAuthorizedOperations(t *testing.T) {
	c := startCluster(t, 1)
	c.create("ops", 1, nil)
	conn := dialRaw(t, c.nodes[0].kafka)
	req := metadataRequest(9, "ops")
	resp := ask[*kmsg.MetadataResponse](conn, req)
	if resp.AuthorizedOperations != operationsUnknown || resp.Topics[0].AuthorizedOperations != operationsUnknown {
		t.Errorf("not asked: %d %d", resp.AuthorizedOperations, resp.Topics[0].AuthorizedOperations)
	}
	req.IncludeClusterAuthorizedOperations, req.IncludeTopicAuthorizedOperations = true, true
	resp = ask[*kmsg.MetadataResponse](conn, req)
	if resp.AuthorizedOperations != clusterOperations || resp.Topics[0].AuthorizedOperations != topicOperations {
		t.Errorf("asked: %d %d", resp.AuthorizedOperations, resp.Topics[0].AuthorizedOperations)
	}
}

func TestApiVersions(t *testing.T) {
	c := startCluster(t, 1)
	conn := dialRaw(t, c.nodes[0].kafka)
	req := kmsg.NewPtrApiVersionsRequest()
	for v := range int16(5) {
		req.Version, req.ClientSoftwareName, req.ClientSoftwareVersion = v, "test-client", "1.0"
		resp := ask[*kmsg.ApiVersionsResponse](conn, req)
		keys := make(map[int16]kmsg.ApiVersionsResponseApiKey)
		for _, k := range resp.ApiKeys {
			keys[k.ApiKey] = k
		}
		if p, ok := keys[0]; resp.ErrorCode != 0 || !ok || p.MinVersion != 0 || p.MaxVersion != 13 {
			t.Errorf("v%d: Produce is advertised as %+v", v, p)
		}
		for _, key := range []int16{24, 25, 26, 27, 28, 68, 78} {
			if _, ok := keys[key]; ok {
				t.Errorf("v%d: %s is advertised", v, kmsg.NameForKey(key))
			}
		}
		for _, f := range resp.FinalizedFeatures {
			if f.Name != "metadata.version" {
				t.Errorf("v%d: feature %s is finalized", v, f.Name)
			}
		}
		if v >= 3 && (len(resp.FinalizedFeatures) != 1 || resp.FinalizedFeaturesEpoch < 0) {
			t.Errorf("v%d: features %+v", v, resp.FinalizedFeatures)
		}
	}
	req.ClientSoftwareName = "no name!"
	if resp := ask[*kmsg.ApiVersionsResponse](conn, req); resp.ErrorCode != codeInvalidRequest {
		t.Errorf("a client's name with a blank: %+v", resp.ErrorCode)
	}
}
