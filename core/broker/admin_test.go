package broker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// errorName is how clients see a code.
func errorName(code int16) string {
	if code == 0 {
		return "NONE"
	}
	return kerr.TypedErrorForCode(code).Message
}

func newCreate(version int16, topics ...kmsg.CreateTopicsRequestTopic) *kmsg.CreateTopicsRequest {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.Topics, req.TimeoutMillis = version, topics, 30_000
	return req
}

func createOne(name string, partitions int32, factor int16, configs ...string) kmsg.CreateTopicsRequestTopic {
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = name, partitions, factor
	for _, c := range configs {
		name, value, _ := strings.Cut(c, "=")
		t.Configs = append(t.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: name, Value: &value})
	}
	return t
}

func TestCreateTopicsErrors(t *testing.T) {
	c := startCluster(t, 1)
	c.create("there", 1, nil)
	c.create("a.b", 1, nil)
	raw := dialRaw(t, c.nodes[0].kafka)
	null := createOne("null", 1, 1)
	null.Configs = []kmsg.CreateTopicsRequestTopicConfig{{Name: "retention.ms"}}
	assigned := createOne("assigned", -1, -1)
	assigned.ReplicaAssignment = []kmsg.CreateTopicsRequestTopicReplicaAssignment{{Partition: 0, Replicas: []int32{9}}}
	twice := createOne("assigned-twice", -1, -1)
	twice.ReplicaAssignment = []kmsg.CreateTopicsRequestTopicReplicaAssignment{{Partition: 0, Replicas: []int32{1}}, {Partition: 0, Replicas: []int32{1}}}
	for _, w := range []struct {
		topic         kmsg.CreateTopicsRequestTopic
		code, message string
	}{
		{createOne("there", 1, 1), "TOPIC_ALREADY_EXISTS", "already exists"},
		{createOne("a_b", 1, 1), "INVALID_TOPIC_EXCEPTION", "a.b"},
		{createOne("bad name!", 1, 1), "INVALID_TOPIC_EXCEPTION", "ASCII alphanumerics"},
		{createOne("bad name!", 1, 1, "retention.ms=soon"), "INVALID_TOPIC_EXCEPTION", "ASCII alphanumerics"},
		{createOne("", 1, 1), "INVALID_TOPIC_EXCEPTION", ""},
		{createOne("none", 0, 1), "INVALID_PARTITIONS", ""},
		{createOne("none", 1, 0), "INVALID_REPLICATION_FACTOR", ""},
		{createOne("none", 1, 99), "INVALID_REPLICATION_FACTOR", ""},
		{assigned, "INVALID_REPLICA_ASSIGNMENT", ""},
		{twice, "INVALID_REPLICA_ASSIGNMENT", "assigned twice"},
		{createOne("none", 1, 1, "retention.ms=soon"), "INVALID_CONFIG", "Invalid value soon for configuration retention.ms: Not a number of type LONG"},
		{createOne("none", 1, 1, "no.such.config=1"), "INVALID_CONFIG", "Unknown topic config name: no.such.config"},
		{null, "INVALID_CONFIG", "Null value not supported for topic configs: retention.ms"},
	} {
		resp := ask[*kmsg.CreateTopicsResponse](raw, newCreate(7, w.topic))
		if len(resp.Topics) != 1 {
			t.Fatalf("%s answered %d topics", w.topic.Topic, len(resp.Topics))
		}
		got := resp.Topics[0]
		message := ""
		if got.ErrorMessage != nil {
			message = *got.ErrorMessage
		}
		if errorName(got.ErrorCode) != w.code || !strings.Contains(message, w.message) {
			t.Errorf("%q: got %s %q, want %s %q", w.topic.Topic, errorName(got.ErrorCode), message, w.code, w.message)
		}
		if got.NumPartitions != -1 || got.ReplicationFactor != -1 || len(got.Configs) != 0 {
			t.Errorf("%q: a topic that was not created has %+v", w.topic.Topic, got)
		}
	}
}

func TestCreateTopicsVersions(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	for version := int16(0); version <= 7; version++ {
		name := fmt.Sprint("v", version)
		same := createOne("same", 1, 1)
		resp := ask[*kmsg.CreateTopicsResponse](raw, newCreate(version, createOne(name, 2, 1, "retention.ms=5000"), same, same))
		if len(resp.Topics) != 2 {
			t.Fatalf("version %d answered %d topics, want one for each name", version, len(resp.Topics))
		}
		got := resp.Topics[0]
		if got.ErrorCode != 0 || got.Topic != name || errorName(resp.Topics[1].ErrorCode) != "INVALID_REQUEST" {
			t.Errorf("version %d answered %+v", version, resp.Topics)
		}
		if version >= 5 && (got.NumPartitions != 2 || got.ReplicationFactor != 1 || len(got.Configs) < 25) {
			t.Errorf("version %d answered %d partitions, factor %d, %d configs", version, got.NumPartitions, got.ReplicationFactor, len(got.Configs))
		}
		for _, config := range got.Configs {
			if own := config.Source == 1; own != (config.Name == "retention.ms") || own && *config.Value != "5000" {
				t.Errorf("version %d answered the config %s=%s of source %d", version, config.Name, *config.Value, config.Source)
			}
		}
		if id := raw.topicID(name); version >= 7 && got.TopicID != id {
			t.Errorf("the id is %x, metadata says %x", got.TopicID, id)
		}
	}
}

func TestCreateTopicsValidateOnly(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	req := newCreate(7, createOne("maybe", -1, -1))
	req.ValidateOnly = true
	if got := ask[*kmsg.CreateTopicsResponse](raw, req).Topics[0]; got.ErrorCode != 0 || got.NumPartitions != 3 || got.ReplicationFactor != 1 {
		t.Errorf("answered %+v", got)
	}
	if c.nodes[0].ctl.Image().Topic("maybe") != nil {
		t.Error("the topic was created")
	}
}

// A change is answered when every live node shows it. Where one was not waited for, as it had missed a ping, it may be late.
func TestReadAfterWriteOnEveryNode(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	writer := dialRaw(t, c.nodes[0].kafka)
	readers := []*rawConn{dialRaw(t, c.nodes[1].kafka), dialRaw(t, c.nodes[2].kafka)}
	for i := range 5 {
		name := fmt.Sprint("topic-", i)
		before := c.unsettled()
		shown := func(what string, wrong func() string) {
			t.Helper()
			if last := wrong(); last != "" {
				if c.unsettled() == before {
					t.Fatalf("%s is answered: %s", what, last)
				}
				c.without(what, wrong)
			}
		}
		if got := ask[*kmsg.CreateTopicsResponse](writer, newCreate(7, createOne(name, 3, 3))).Topics[0]; got.ErrorCode != 0 {
			t.Fatalf("create: %s", errorName(got.ErrorCode))
		}
		for _, r := range readers {
			shown("the creation", func() string {
				got := describePartitions(r, nil, 100, name).Topics[0]
				if got.ErrorCode != 0 || len(got.Partitions) != 3 {
					return fmt.Sprintf("a node shows %+v", got)
				}
				return ""
			})
			c.without("leaders", func() string { // who can always change
				for _, p := range describePartitions(r, nil, 100, name).Topics[0].Partitions {
					if p.LeaderID < 1 || len(p.Replicas) != 3 {
						return fmt.Sprintf("partition %d has leader %d and replicas %v", p.Partition, p.LeaderID, p.Replicas)
					}
				}
				return ""
			})
		}
		if code, message := alterOne(writer, 2, name, kmsg.IncrementalAlterConfigOpSet, "retention.ms", fmt.Sprint(i+1)); code != 0 {
			t.Fatalf("alter: %s %s", errorName(code), message)
		}
		for _, r := range readers {
			shown("the setting", func() string {
				if got := *describeTopicConfigs(t, r, name)["retention.ms"].Value; got != fmt.Sprint(i+1) {
					return fmt.Sprintf("a node shows retention.ms=%s after it was set to %d", got, i+1)
				}
				return ""
			})
		}
		if got := deleteTopic(writer, name); got.ErrorCode != 0 {
			t.Fatalf("delete: %s", errorName(got.ErrorCode))
		}
		for _, r := range readers {
			shown("the deletion", func() string {
				if got := describePartitions(r, nil, 100, name).Topics[0]; errorName(got.ErrorCode) != "UNKNOWN_TOPIC_OR_PARTITION" {
					return fmt.Sprintf("a node still shows %+v", got)
				}
				return ""
			})
		}
	}
}

func deleteTopic(c *rawConn, name string) kmsg.DeleteTopicsResponseTopic {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version, req.TimeoutMillis = 6, 30_000
	req.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: &name}}
	return ask[*kmsg.DeleteTopicsResponse](c, req).Topics[0]
}

func TestDeleteTopics(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	for version := int16(0); version <= 5; version++ {
		c.create("gone", 1, nil)
		req := kmsg.NewPtrDeleteTopicsRequest()
		req.Version, req.TopicNames, req.TimeoutMillis = version, []string{"gone", "never"}, 30_000
		resp := ask[*kmsg.DeleteTopicsResponse](raw, req)
		if resp.Topics[0].ErrorCode != 0 || errorName(resp.Topics[1].ErrorCode) != "UNKNOWN_TOPIC_OR_PARTITION" {
			t.Errorf("version %d answered %+v", version, resp.Topics)
		}
	}
	c.create("gone", 1, nil)
	id := raw.topicID("gone")
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version, req.TimeoutMillis = 6, 30_000
	req.Topics = []kmsg.DeleteTopicsRequestTopic{{TopicID: id}, {TopicID: id}, {TopicID: [16]byte{9}}, {}, {Topic: kmsg.StringPtr("x"), TopicID: id}}
	resp := ask[*kmsg.DeleteTopicsResponse](raw, req)
	var got []string
	for _, r := range resp.Topics {
		got = append(got, errorName(r.ErrorCode))
	}
	if diff := cmp.Diff([]string{"NONE", "INVALID_REQUEST", "UNKNOWN_TOPIC_ID", "INVALID_REQUEST", "INVALID_REQUEST"}, got); diff != "" {
		t.Error(diff)
	}
	if first := resp.Topics[0]; first.Topic == nil || *first.Topic != "gone" || first.TopicID != id {
		t.Errorf("a topic deleted by id is answered as %+v", first)
	}
}

func TestCreatePartitions(t *testing.T) {
	c := startCluster(t, 1)
	c.create("grows", 2, nil)
	raw := dialRaw(t, c.nodes[0].kafka)
	for _, w := range []struct {
		version  int16
		topic    string
		count    int32
		validate bool
		code     string
	}{
		{0, "grows", 3, false, "NONE"},
		{1, "grows", 3, false, "INVALID_PARTITIONS"},
		{2, "grows", 2, false, "INVALID_PARTITIONS"},
		{3, "grows", 9, true, "NONE"},
		{3, "grows", 5, false, "NONE"},
		{3, "missing", 5, false, "UNKNOWN_TOPIC_OR_PARTITION"},
	} {
		req := kmsg.NewPtrCreatePartitionsRequest()
		req.Version, req.ValidateOnly, req.TimeoutMillis = w.version, w.validate, 30_000
		req.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: w.topic, Count: w.count}}
		if got := ask[*kmsg.CreatePartitionsResponse](raw, req).Topics; len(got) != 1 || errorName(got[0].ErrorCode) != w.code {
			t.Errorf("%+v answered %+v", w, got)
		}
	}
	if got := describePartitions(raw, nil, 100, "grows").Topics[0]; len(got.Partitions) != 5 {
		t.Errorf("the topic has %d partitions", len(got.Partitions))
	}
	twice := kmsg.NewPtrCreatePartitionsRequest()
	twice.Version = 3
	twice.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: "grows", Count: 6}, {Topic: "grows", Count: 7}}
	if got := ask[*kmsg.CreatePartitionsResponse](raw, twice).Topics; len(got) != 1 || errorName(got[0].ErrorCode) != "INVALID_REQUEST" {
		t.Errorf("one topic twice answered %+v", got)
	}
}

func deleteRecords(c *rawConn, version int16, topic string, partition int32, offset int64) kmsg.DeleteRecordsResponseTopicPartition {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.Version, req.TimeoutMillis = version, 30_000
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: offset}}}}
	return ask[*kmsg.DeleteRecordsResponse](c, req).Topics[0].Partitions[0]
}

func TestDeleteRecords(t *testing.T) {
	c := startCluster(t, 1)
	c.create("log", 1, nil)
	c.create("compacted", 1, map[string]string{"cleanup.policy": "compact"})
	c.fill("log", 50)
	raw := dialRaw(t, c.nodes[0].kafka)
	for _, w := range []struct {
		version int16
		topic   string
		part    int32
		offset  int64
		code    string
		low     int64
	}{
		{0, "log", 0, 30, "NONE", 30},
		{1, "log", 0, 10, "NONE", 30},
		{2, "log", 0, 51, "OFFSET_OUT_OF_RANGE", -1},
		{2, "log", 0, -2, "OFFSET_OUT_OF_RANGE", -1},
		{2, "log", 7, 1, "UNKNOWN_TOPIC_OR_PARTITION", -1},
		{2, "missing", 0, 1, "UNKNOWN_TOPIC_OR_PARTITION", -1},
		{2, "", 0, 1, "UNKNOWN_TOPIC_OR_PARTITION", -1},
		{2, "compacted", 0, 0, "POLICY_VIOLATION", -1},
		{2, "log", 0, -1, "NONE", 50},
	} {
		if got := deleteRecords(raw, w.version, w.topic, w.part, w.offset); errorName(got.ErrorCode) != w.code || got.LowWatermark != w.low {
			t.Errorf("%+v answered %s, %d", w, errorName(got.ErrorCode), got.LowWatermark)
		}
	}
	if got := listOffset(raw, 7, "log", -2, 0); got.Offset != 50 {
		t.Errorf("the log starts at %d", got.Offset)
	}
}

func describePartitions(c *rawConn, cursor *kmsg.DescribeTopicPartitionsRequestCursor, limit int32, topics ...string) *kmsg.DescribeTopicPartitionsResponse {
	req := kmsg.NewPtrDescribeTopicPartitionsRequest()
	req.ResponsePartitionLimit, req.Cursor = limit, cursor
	for _, topic := range topics {
		req.Topics = append(req.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: topic})
	}
	return ask[*kmsg.DescribeTopicPartitionsResponse](c, req)
}

// Whatever the limit, following the cursor shows every partition once and in order.
func TestDescribeTopicPartitionsPages(t *testing.T) {
	c := startCluster(t, 1)
	var want []string
	for i, name := range []string{"a", "b", "c"} {
		c.create(name, int32(2*i+1), nil)
		for p := range 2*i + 1 {
			want = append(want, fmt.Sprint(name, "-", p))
		}
	}
	raw := dialRaw(t, c.nodes[0].kafka)
	for _, topics := range [][]string{nil, {"c", "a", "b", "a"}} {
		for limit := int32(1); limit <= 10; limit++ {
			var got []string
			var cursor *kmsg.DescribeTopicPartitionsRequestCursor
			for pages := 0; pages == 0 || cursor != nil; pages++ {
				resp := describePartitions(raw, cursor, limit, topics...)
				n := 0
				for _, topic := range resp.Topics {
					for _, p := range topic.Partitions {
						got = append(got, fmt.Sprint(*topic.Topic, "-", p.Partition))
						n++
					}
				}
				if n > int(limit) || pages > len(want) {
					t.Fatalf("limit %d: page %d has %d partitions", limit, pages, n)
				}
				cursor = nil
				if resp.NextCursor != nil {
					cursor = &kmsg.DescribeTopicPartitionsRequestCursor{Topic: resp.NextCursor.Topic, Partition: resp.NextCursor.Partition}
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("limit %d: %s", limit, diff)
			}
		}
	}
	resp := describePartitions(raw, nil, 100, "missing", "bad name")
	if got := []string{errorName(resp.Topics[0].ErrorCode), errorName(resp.Topics[1].ErrorCode)}; !cmp.Equal(got, []string{"INVALID_TOPIC_EXCEPTION", "UNKNOWN_TOPIC_OR_PARTITION"}) {
		t.Errorf("topics that are not there answered %v", got)
	}
}

func TestDescribeLogDirs(t *testing.T) {
	c := startCluster(t, 1)
	c.create("sized", 2, nil)
	c.create("other", 1, nil)
	c.fill("sized", 100)
	raw := dialRaw(t, c.nodes[0].kafka)
	for version := int16(0); version <= 4; version++ {
		req := kmsg.NewPtrDescribeLogDirsRequest()
		req.Version = version
		all := ask[*kmsg.DescribeLogDirsResponse](raw, req).Dirs
		req.Topics = []kmsg.DescribeLogDirsRequestTopic{{Topic: "sized", Partitions: []int32{0, 1, 7}}, {Topic: "missing", Partitions: []int32{0}}}
		some := ask[*kmsg.DescribeLogDirsResponse](raw, req).Dirs
		if len(all) != 1 || len(all[0].Topics) != 2 || len(some) != 1 || len(some[0].Topics) != 1 || len(some[0].Topics[0].Partitions) != 2 {
			t.Fatalf("version %d answered %+v and %+v", version, all, some)
		}
		var size int64
		for _, p := range some[0].Topics[0].Partitions {
			size += p.Size
		}
		if size < 500 || some[0].Dir != c.nodes[0].dir {
			t.Errorf("version %d: %d bytes in %s", version, size, some[0].Dir)
		}
		if version == 4 && (some[0].TotalBytes <= 0 || some[0].UsableBytes <= 0 || some[0].UsableBytes > some[0].TotalBytes) {
			t.Errorf("the disk has %d bytes, %d of them free", some[0].TotalBytes, some[0].UsableBytes)
		}
	}
}

// What was acknowledged is in the sizes of every replica, also of one that had only heard of the records.
func TestDescribeLogDirsOfFollowers(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	const tries = 5 // an answer waits for a second at most: on a busy machine that may not be enough for once
	for try := range tries {
		topic := fmt.Sprint("sized", try)
		c.create(topic, 1, nil)
		c.fill(topic, 100)
		var sizes []int64
		for _, n := range c.nodes {
			sizes = append(sizes, dirSize(dialRaw(t, n.kafka), topic))
		}
		if sizes[0] >= 500 && sizes[1] == sizes[0] && sizes[2] == sizes[0] {
			return
		}
		t.Logf("the replicas have %v bytes", sizes)
	}
	t.Errorf("the replicas' sizes differed %d times", tries)
}

// dirSize is what a node says that partition 0 of a topic takes there, 0 when it has none.
func dirSize(c *rawConn, topic string) (size int64) {
	c.t.Helper()
	req := kmsg.NewPtrDescribeLogDirsRequest()
	req.Version = 4
	req.Topics = []kmsg.DescribeLogDirsRequestTopic{{Topic: topic, Partitions: []int32{0}}}
	for _, dir := range ask[*kmsg.DescribeLogDirsResponse](c, req).Dirs {
		for _, t := range dir.Topics {
			for _, p := range t.Partitions {
				size += p.Size
			}
		}
	}
	return size
}

func TestDescribeCluster(t *testing.T) {
	c := startCluster(t, 1)
	raw := dialRaw(t, c.nodes[0].kafka)
	for version := int16(0); version <= 2; version++ {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.Version, req.IncludeClusterAuthorizedOperations, req.EndpointType = version, true, 1
		got := ask[*kmsg.DescribeClusterResponse](raw, req)
		if got.ErrorCode != 0 || got.ClusterID != c.nodes[0].ctl.ClusterID() || got.ControllerID != 1 || len(got.Brokers) != 1 || got.ClusterAuthorizedOperations != clusterOperations {
			t.Errorf("version %d answered %+v", version, got)
		}
		if b := got.Brokers[0]; b.NodeID != 1 || b.Rack == nil || *b.Rack != "rack1" || fmt.Sprintf("%s:%d", b.Host, b.Port) != c.nodes[0].kafka {
			t.Errorf("version %d answered the broker %+v", version, b)
		}
	}
	for endpoint, want := range map[int8]string{2: "MISMATCHED_ENDPOINT_TYPE", 7: "UNSUPPORTED_ENDPOINT_TYPE"} {
		req := kmsg.NewPtrDescribeClusterRequest()
		req.Version, req.EndpointType = 2, endpoint
		if got := ask[*kmsg.DescribeClusterResponse](raw, req); errorName(got.ErrorCode) != want || len(got.Brokers) != 0 {
			t.Errorf("endpoint type %d answered %+v", endpoint, got)
		}
	}
}
