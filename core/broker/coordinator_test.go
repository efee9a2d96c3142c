package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"sluice/core/group"
	"sluice/core/meta"
)

// fill produces n numbered records.
func (c *testCluster) fill(topic string, n int) {
	c.t.Helper()
	cl := c.client(kgo.DefaultProduceTopic(topic))
	var records []*kgo.Record
	for i := range n {
		records = append(records, kgo.StringRecord(fmt.Sprint(i)))
	}
	if err := cl.ProduceSync(testContext(c.t), records...).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}

// groupClient returns a member of a group.
func (c *testCluster) groupClient(name, topic string, opts ...kgo.Opt) *kgo.Client {
	return c.client(append([]kgo.Opt{
		kgo.ConsumerGroup(name), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}, opts...)...)
}

// read polls until it has n records, and returns their values in order of value.
func read(t *testing.T, cl *kgo.Client, n int) []string {
	t.Helper()
	ctx := testContext(t)
	var values []string
	for len(values) < n {
		f := cl.PollFetches(ctx)
		if err := f.Err0(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(values), n, err)
		}
		f.EachError(func(topic string, p int32, err error) { t.Fatalf("%s-%d: %v", topic, p, err) })
		f.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	slices.Sort(values)
	return values
}

func TestGroupResumesWhereItCommitted(t *testing.T) {
	beside(t)
	c := startCluster(t, 1)
	c.create("readings", 3, nil)
	c.fill("readings", 300)
	first := c.groupClient("city", "readings")
	if got := read(t, first, 300); len(slices.Compact(got)) != 300 {
		t.Fatalf("read %d different records, want 300", len(got))
	}
	if err := first.CommitUncommittedOffsets(testContext(t)); err != nil {
		t.Fatal(err)
	}
	first.Close()
	c.fill("readings", 5)
	second := c.groupClient("city", "readings")
	if got := read(t, second, 5); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
		t.Errorf("the second member reads %v, want only what came after the commit", got)
	}
}

// TestGroupSharesPartitions has members come and go: at last every partition is read by one of those that stayed, and never by two at once.
func TestGroupSharesPartitions(t *testing.T) {
	beside(t)
	for _, b := range []kgo.GroupBalancer{kgo.CooperativeStickyBalancer(), kgo.RangeBalancer()} {
		t.Run(b.ProtocolName(), func(t *testing.T) {
			c := startCluster(t, 1)
			c.create("readings", 6, nil)
			o := newOwners(t)
			var members []*kgo.Client
			for i := range 3 {
				members = append(members, c.groupClient("city", "readings", append(o.member(i), kgo.Balancers(b))...))
				go poll(members[i])
				o.await(func(by []int) bool { return slices.Max(by) <= i && len(distinct(by)) == i+1 })
			}
			members[1].Close()
			o.await(func(by []int) bool { return !slices.Contains(by, 1) && len(distinct(by)) == 2 })
		})
	}
}

// poll lets a member do what it does in the background until it is closed.
func poll(cl *kgo.Client) {
	for !cl.PollFetches(context.Background()).IsClientClosed() {
	}
}

func distinct(by []int) []int {
	by = slices.Clone(by)
	slices.Sort(by)
	return slices.Compact(by)
}

// owners follows who has which partition, by the members' own word.
type owners struct {
	t       *testing.T
	mu      sync.Mutex
	by      map[int32]int
	changed chan struct{}
}

func newOwners(t *testing.T) *owners {
	return &owners{t: t, by: map[int32]int{}, changed: make(chan struct{}, 1)}
}

func (o *owners) member(i int) []kgo.Opt {
	lost := func(_ context.Context, _ *kgo.Client, m map[string][]int32) { o.note(m, i, false) }
	return []kgo.Opt{
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { o.note(m, i, true) }),
		kgo.OnPartitionsRevoked(lost), kgo.OnPartitionsLost(lost),
	}
}

func (o *owners) note(m map[string][]int32, member int, owned bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, partitions := range m {
		for _, p := range partitions {
			other, taken := o.by[p]
			switch {
			case owned && taken && other != member:
				o.t.Errorf("partition %d goes to member %d while %d has it", p, member, other)
			case owned:
				o.by[p] = member
			case taken && other == member:
				delete(o.by, p)
			}
		}
	}
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// await waits until all six partitions have owners that please ok.
func (o *owners) await(ok func(by []int) bool) {
	o.t.Helper()
	late := time.After(testTimeout)
	for {
		o.mu.Lock()
		var by []int
		for _, m := range o.by {
			by = append(by, m)
		}
		o.mu.Unlock()
		if len(by) == 6 && ok(by) {
			return
		}
		select {
		case <-o.changed:
		case <-late:
			o.t.Fatalf("partitions are with %v", by)
		}
	}
}

// TestStaticMemberComesBack: it sends no LeaveGroup and gets its partitions back without a rebalance.
func TestStaticMemberComesBack(t *testing.T) {
	beside(t)
	c := startCluster(t, 1)
	c.create("readings", 2, nil)
	c.fill("readings", 10)
	first := c.groupClient("city", "readings", kgo.InstanceID("north"))
	read(t, first, 10)
	if err := first.CommitUncommittedOffsets(testContext(t)); err != nil {
		t.Fatal(err)
	}
	_, before := first.GroupMetadata()
	first.Close()
	c.fill("readings", 1)
	second := c.groupClient("city", "readings", kgo.InstanceID("north"))
	read(t, second, 1)
	if _, after := second.GroupMetadata(); after != before {
		t.Errorf("generation %d after the member came back, was %d", after, before)
	}
}

func TestGroupAdministration(t *testing.T) {
	beside(t)
	c := startCluster(t, 1)
	c.create("readings", 2, nil)
	adm, ctx := c.admin(), testContext(t)
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "readings", Partition: 0, At: 42, LeaderEpoch: 3, Metadata: "wie weit? ☂"})
	offsets.Add(kadm.Offset{Topic: "readings", Partition: 1, At: -1, LeaderEpoch: -1})
	c.eventually(func(ctx context.Context, adm *kadm.Client) error { return adm.CommitAllOffsets(ctx, "simple", offsets) })
	got, err := adm.FetchOffsets(ctx, "simple")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := got.Lookup("readings", 0); o.At != 42 || o.Metadata != "wie weit? ☂" || o.LeaderEpoch != 3 {
		t.Errorf("offset is %+v", o)
	}
	if o, ok := got.Lookup("readings", 1); !ok || o.At != -1 {
		t.Errorf("negative offset is %+v, %v", o, ok)
	}
	member := c.groupClient("busy", "readings")
	go poll(member)
	c.awaitState("busy", "Stable")
	listed := func(want []string, states ...string) {
		t.Helper()
		c.eventually(func(ctx context.Context, adm *kadm.Client) error {
			groups, err := adm.ListGroups(ctx, states...)
			if err == nil && !slices.Equal(groups.Groups(), want) {
				err = fmt.Errorf("groups in states %v are %v, want %v", states, groups.Groups(), want)
			}
			return err
		})
	}
	listed([]string{"busy", "simple"})
	listed([]string{"busy"}, "stable")
	c.awaitCoordinator("unknown")
	deleted, err := adm.DeleteGroups(ctx, "busy", "simple", "unknown")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"busy": kerr.NonEmptyGroup, "simple": nil, "unknown": kerr.GroupIDNotFound} {
		if !errors.Is(deleted[name].Err, want) {
			t.Errorf("delete %s: %v, want %v", name, deleted[name].Err, want)
		}
	}
	removed, err := adm.DeleteOffsets(ctx, "busy", kadm.TopicsSet{"readings": {0: {}}})
	if got, _ := removed.Lookup("readings", 0); err != nil || !errors.Is(got, kerr.GroupSubscribedToTopic) {
		t.Errorf("delete offset of a topic that is read: %v, %v", got, err)
	}
}

// awaitState waits until a group is in a state.
func (c *testCluster) awaitState(name, state string) (g kadm.DescribedGroup) {
	c.t.Helper()
	c.eventually(func(ctx context.Context, adm *kadm.Client) error {
		d, err := adm.DescribeGroups(ctx, name)
		if g = d[name]; err == nil && g.State != state {
			err = fmt.Errorf("group %s is %+v, want %s", name, g, state)
		}
		return err
	})
	return g
}

// eventually tries until it works, each time with a new client: the library's administrator goes on asking a coordinator that it cannot reach any more.
func (c *testCluster) eventually(try func(ctx context.Context, adm *kadm.Client) error) {
	c.t.Helper()
	for deadline := time.Now().Add(testTimeout); ; <-time.After(10 * time.Millisecond) {
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.bootstrap()...))
		if err != nil {
			c.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout/4)
		err = try(ctx, kadm.NewClient(cl))
		cancel()
		cl.Close()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal(err)
		}
	}
}

// TestGroupVersions speaks every version of every key of the coordinator.
func TestGroupVersions(t *testing.T) {
	c := startCluster(t, 1)
	c.create("readings", 1, nil)
	c.fill("readings", 1)
	id := c.nodes[0].ctl.Image().Topic("readings").ID
	for key, newest := range map[int16]int16{8: 10, 9: 10, 10: 6, 11: 9, 12: 4, 13: 5, 14: 5, 15: 6, 16: 5, 42: 2, 47: 0} {
		for v := int16(0); v <= newest; v++ {
			t.Run(fmt.Sprintf("%s v%d", kmsg.NameForKey(key), v), func(t *testing.T) {
				speak(t, c, key, v, id)
			})
		}
	}
}

// speak sends one request of a version and checks the answer's code.
func speak(t *testing.T, c *testCluster, key, version int16, id meta.TopicID) {
	limit := kversion.Tip()
	limit.SetMaxKeyVersion(key, version)
	cl := c.client(kgo.MaxVersions(limit))
	name := fmt.Sprintf("g-%d-%d", key, version)
	c.awaitCoordinator(name)
	resp, err := cl.Request(testContext(t), versionRequest(key, version, name, id))
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetVersion() != version {
		t.Fatalf("the client spoke version %d", resp.GetVersion())
	}
	if code := versionCode(resp); code != versionWant(key, version) {
		t.Errorf("code %v, want %v", code, versionWant(key, version))
	}
}

// awaitCoordinator waits until a group's coordinator has read its log. Before that some requests are sent back, and a heartbeat is content, as in Kafka.
func (c *testCluster) awaitCoordinator(name string) {
	c.t.Helper()
	c.eventually(func(ctx context.Context, adm *kadm.Client) error {
		d, err := adm.DescribeGroups(ctx, name)
		if err != nil {
			return err
		}
		if err := d[name].Err; err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return err
		}
		return nil
	})
}

func versionRequest(key, version int16, name string, id meta.TopicID) kmsg.Request {
	switch key {
	case 8:
		r := kmsg.NewPtrOffsetCommitRequest()
		r.Group = name
		r.Topics = []kmsg.OffsetCommitRequestTopic{{Topic: "readings", TopicID: id, Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Offset: 1, LeaderEpoch: -1}}}}
		return r
	case 9:
		r := kmsg.NewPtrOffsetFetchRequest()
		r.Group = name
		r.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: "readings", Partitions: []int32{0}}}
		r.Groups = []kmsg.OffsetFetchRequestGroup{{Group: name, MemberEpoch: -1, Topics: []kmsg.OffsetFetchRequestGroupTopic{{Topic: "readings", TopicID: id, Partitions: []int32{0}}}}}
		return r
	case 10:
		r := kmsg.NewPtrFindCoordinatorRequest()
		r.CoordinatorKey, r.CoordinatorKeys = name, []string{name}
		return r
	case 11:
		r := kmsg.NewPtrJoinGroupRequest()
		r.Group, r.SessionTimeoutMillis, r.RebalanceTimeoutMillis, r.ProtocolType = name, 10000, 10000, "opaque"
		r.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "p", Metadata: []byte("m")}}
		return r
	case 12:
		r := kmsg.NewPtrHeartbeatRequest()
		r.Group, r.MemberID = name, "nobody"
		return r
	case 13:
		r := kmsg.NewPtrLeaveGroupRequest()
		r.Group, r.MemberID, r.Members = name, "nobody", []kmsg.LeaveGroupRequestMember{{MemberID: "nobody"}}
		return r
	case 14:
		r := kmsg.NewPtrSyncGroupRequest()
		r.Group, r.MemberID = name, "nobody"
		return r
	case 15:
		r := kmsg.NewPtrDescribeGroupsRequest()
		r.Groups, r.IncludeAuthorizedOperations = []string{name}, true
		return r
	case 16:
		return kmsg.NewPtrListGroupsRequest()
	case 42:
		r := kmsg.NewPtrDeleteGroupsRequest()
		r.Groups = []string{name}
		return r
	default:
		r := kmsg.NewPtrOffsetDeleteRequest()
		r.Group = name
		return r
	}
}

func versionCode(resp kmsg.Response) group.Code {
	switch r := resp.(type) {
	case *kmsg.OffsetCommitResponse:
		return group.Code(r.Topics[0].Partitions[0].ErrorCode)
	case *kmsg.OffsetFetchResponse:
		if r.Version >= 8 {
			return group.Code(r.Groups[0].Topics[0].Partitions[0].ErrorCode)
		}
		return group.Code(r.Topics[0].Partitions[0].ErrorCode)
	case *kmsg.FindCoordinatorResponse:
		if r.Version >= 4 {
			return group.Code(r.Coordinators[0].ErrorCode)
		}
		return group.Code(r.ErrorCode)
	case *kmsg.JoinGroupResponse:
		return group.Code(r.ErrorCode)
	case *kmsg.HeartbeatResponse:
		return group.Code(r.ErrorCode)
	case *kmsg.LeaveGroupResponse:
		if r.Version >= 3 {
			return group.Code(r.Members[0].ErrorCode)
		}
		return group.Code(r.ErrorCode)
	case *kmsg.SyncGroupResponse:
		return group.Code(r.ErrorCode)
	case *kmsg.DescribeGroupsResponse:
		return group.Code(r.Groups[0].ErrorCode)
	case *kmsg.ListGroupsResponse:
		return group.Code(r.ErrorCode)
	case *kmsg.DeleteGroupsResponse:
		return group.Code(r.Groups[0].ErrorCode)
	case *kmsg.OffsetDeleteResponse:
		return group.Code(r.ErrorCode)
	}
	return group.UnknownServerError
}

func versionWant(key, version int16) group.Code {
	switch {
	case key == 11 && version >= 4:
		return group.MemberIDRequired
	case key >= 12 && key <= 14:
		return group.UnknownMemberID
	case key == 15 && version >= 6, key == 42, key == 47:
		return group.GroupIDNotFound
	}
	return group.None
}

// TestCoordinatorOfOtherThings: transactions and share groups are refused in words.
func TestCoordinatorOfOtherThings(t *testing.T) {
	c := startCluster(t, 1)
	for _, kind := range []int8{1, 2} {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorType, req.CoordinatorKeys = kind, []string{"x"}
		resp, err := req.RequestWith(testContext(t), c.client())
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Coordinators[0]; got.ErrorCode == 0 || got.ErrorMessage == nil || *got.ErrorMessage == "" {
			t.Errorf("type %d: %+v", kind, got)
		}
	}
}

// TestOffsetsOfARecreatedTopic: a topic of the same name begins without offsets.
func TestOffsetsOfARecreatedTopic(t *testing.T) {
	beside(t)
	c := startCluster(t, 1)
	adm, ctx := c.admin(), testContext(t)
	c.create("readings", 1, nil)
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "readings", At: 42, LeaderEpoch: -1})
	c.eventually(func(ctx context.Context, adm *kadm.Client) error { return adm.CommitAllOffsets(ctx, "g", offsets) })
	if _, err := adm.DeleteTopic(ctx, "readings"); err != nil {
		t.Fatal(err)
	}
	c.create("readings", 1, nil)
	got, err := adm.FetchOffsets(ctx, "g")
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := got.Lookup("readings", 0); ok {
		t.Errorf("the new topic has offset %+v", o)
	}
}

// TestCoordinatorFailover stops the coordinator's node again and again while a client commits rising offsets: what was acknowledged never goes back, and
// after every failover the group works on.
func TestCoordinatorFailover(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("readings", 1, nil)
	var acked int64
	for round := range 3 {
		for range 20 {
			acked++
			c.commit("g", acked)
		}
		victim := c.node(c.coordinator("g"))
		if err := victim.stop(); err != nil {
			t.Fatal(err)
		}
		if got := c.committed("g"); got < acked {
			t.Fatalf("round %d: offset %d after %d was acknowledged", round, got, acked)
		}
		acked++
		c.commit("g", acked)
		victim.start()
	}
	if got := c.committed("g"); got != acked {
		t.Errorf("offset %d at last, want %d", got, acked)
	}
}

// commit commits as clients do: again when the coordinator has gone.
func (c *testCluster) commit(name string, at int64) {
	c.t.Helper()
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "readings", Partition: 0, At: at, LeaderEpoch: -1})
	c.eventually(func(ctx context.Context, adm *kadm.Client) error { return adm.CommitAllOffsets(ctx, name, offsets) })
}

func (c *testCluster) committed(name string) (at int64) {
	c.t.Helper()
	c.eventually(func(ctx context.Context, adm *kadm.Client) error {
		got, err := adm.FetchOffsets(ctx, name)
		o, _ := got.Lookup("readings", 0)
		at = o.At
		return err
	})
	return at
}

func (c *testCluster) coordinator(name string) (node int32) {
	c.t.Helper()
	c.eventually(func(ctx context.Context, adm *kadm.Client) error {
		r := adm.FindGroupCoordinators(ctx, name)[name]
		node = r.NodeID
		return r.Err
	})
	return node
}

// TestGroupGoesOnAfterFailover: members keep their ids and partitions when another node takes their group over.
func TestGroupGoesOnAfterFailover(t *testing.T) {
	beside(t)
	c := startCluster(t, 3)
	c.create("readings", 6, nil)
	o := newOwners(t)
	for i := range 2 {
		go poll(c.groupClient("city", "readings", o.member(i)...))
	}
	o.await(func(by []int) bool { return len(distinct(by)) == 2 })
	before := c.awaitState("city", "Stable")
	victim := c.node(c.coordinator("city"))
	if err := victim.stop(); err != nil {
		t.Fatal(err)
	}
	after := c.awaitState("city", "Stable")
	if a, b := memberIDs(after), memberIDs(before); !slices.Equal(a, b) {
		t.Errorf("members %v after the failover, were %v", a, b)
	}
	if after.Coordinator.NodeID == int32(victim.id) {
		t.Error("the coordinator is where it was")
	}
	victim.start()
}

func memberIDs(g kadm.DescribedGroup) []string {
	var ids []string
	for _, m := range g.Members {
		ids = append(ids, m.MemberID)
	}
	slices.Sort(ids)
	return ids
}
