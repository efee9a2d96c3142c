package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/loadtest/history"
)

const (
	// sessionTimeout is how long a member may be silent before its partitions go to others: the least that brokers allow by default.
	sessionTimeout = 6 * time.Second
	heartbeatEvery = 500 * time.Millisecond
	// commitEvery is the pause between two commits of a member.
	commitEvery = 300 * time.Millisecond
	// memberTimeMin and memberTimeMax bound how long a member lives before it leaves, in one of several ways.
	memberTimeMin, memberTimeMax = 8 * time.Second, 25 * time.Second
	// commitsEvery is the pause between two questions for the group's committed offsets.
	commitsEvery = 500 * time.Millisecond
)

// group is a consumer group whose members come and go, and somebody who asks what it has committed.
type group struct {
	s       *Set
	history *history.Group
}

func (s *Set) newGroup() *group {
	return &group{s: s, history: s.c.History.Group(s.c.Prefix+"-group", s.topic)}
}

func (g *group) Name() string { return "group " + g.id() }

func (g *group) id() string { return g.s.c.Prefix + "-group" }

func (g *group) Run(ctx context.Context) error {
	var jobs []func(context.Context) error
	for i := range g.s.c.Members {
		jobs = append(jobs, func(ctx context.Context) error { return g.places(ctx, i) })
	}
	jobs = append(jobs, g.watchCommits)
	return all(ctx, jobs, func(ctx context.Context, job func(context.Context) error) error { return job(ctx) })
}

// places keeps one place of the group filled with one member after the other.
func (g *group) places(ctx context.Context, i int) error {
	for life := 0; ctx.Err() == nil; life++ {
		d := memberTimeMin + rand.N(memberTimeMax-memberTimeMin)
		if err := g.member(ctx, fmt.Sprintf("m%d.%d", i, life), way(life%3), d, func() bool { return false }); err != nil {
			return err
		}
	}
	return nil
}

// way of leaving.
type way int

const (
	committed way = iota // commits what it has, and says that it leaves
	hasty                // says that it leaves, without a last commit
	silent               // is gone without a word: others wait for its session to end
)

// member is one client from joining to leaving. It belongs to its goroutine, and callbacks come only while that polls.
type member struct {
	g         *group
	client    *kgo.Client
	mu        sync.Mutex // of what follows: a client that is closed calls back from elsewhere
	history   *history.Member
	position  map[int32]kgo.EpochOffset // not committed yet
	committed time.Time
}

func (g *group) member(ctx context.Context, name string, leave way, d time.Duration, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	m := &member{g: g, history: g.history.Member(name), position: map[int32]kgo.EpochOffset{}, committed: time.Now()}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(g.id()), kgo.ConsumeTopics(g.s.topic.Name()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.SessionTimeout(sessionTimeout), kgo.HeartbeatInterval(heartbeatEvery), kgo.RebalanceTimeout(sessionTimeout), kgo.FetchMaxWait(fetchWait),
		kgo.OnPartitionsAssigned(m.assigned), kgo.OnPartitionsRevoked(m.revoked), kgo.OnPartitionsLost(m.lost),
	}
	if leave == silent { // a member with an instance id does not say that it leaves
		opts = append(opts, kgo.InstanceID(fmt.Sprintf("%s-%s-%d", g.id(), name, rand.Uint32())))
	}
	var err error
	if m.client, err = g.s.c.client(opts...); err != nil {
		return err
	}
	for ctx.Err() == nil && !done() {
		m.poll(ctx)
	}
	if leave == committed {
		m.commit(context.WithoutCancel(ctx))
	}
	m.client.CloseAllowingRebalance()
	return nil
}

// poll takes what there is, tells the history, and commits now and then.
func (m *member) poll(ctx context.Context) {
	wait, cancel := context.WithTimeout(ctx, fetchWait)
	fetches := m.client.PollRecords(wait, 2000)
	cancel()
	fetches.EachError(func(_ string, _ int32, err error) {
		if wait.Err() == nil {
			m.g.s.stats.Errors.Add(1)
			m.g.s.c.Logger.Debug("group fetch", "error", err)
		}
	})
	m.mu.Lock()
	fetches.EachRecord(func(r *kgo.Record) {
		m.history.Delivered(r.Partition, m.g.s.record(r))
		m.position[r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
		m.g.s.stats.Delivered.Add(1)
	})
	m.mu.Unlock()
	if time.Since(m.committed) > commitEvery {
		m.commit(ctx)
	}
	m.client.AllowRebalance()
}

// commitPatience is how long a commit is tried.
const commitPatience = 5 * time.Second

// commit commits what was delivered since the last one. One that took longer than the first repetition may have been sent twice.
func (m *member) commit(ctx context.Context) {
	m.mu.Lock()
	position := m.position
	m.position = map[int32]kgo.EpochOffset{}
	m.committed = time.Now()
	m.mu.Unlock()
	if len(position) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, commitPatience)
	defer cancel()
	calls := map[int32]history.Commit{}
	for p, o := range position {
		calls[p] = m.g.history.Commit(p, o.Offset)
	}
	began := time.Now()
	resp := kmsgOffsetCommit{}
	m.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{m.g.s.topic.Name(): position}, resp.keep)
	late := time.Since(began) >= RetryBackoff
	for p, c := range calls {
		if resp.ok(p) {
			c.Done(late)
			m.g.s.stats.Commits.Add(1)
		} else {
			c.Failed()
			m.g.s.stats.Errors.Add(1)
		}
	}
}

func (m *member) assigned(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.g.s.stats.Rebalances.Add(1)
	for _, p := range parts[m.g.s.topic.Name()] {
		m.history.Assigned(p)
	}
}

// revoked commits before the partitions go, as a careful application does.
func (m *member) revoked(ctx context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.commit(ctx)
	m.lost(ctx, nil, parts)
}

func (m *member) lost(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range parts[m.g.s.topic.Name()] {
		m.history.Revoked(p)
		delete(m.position, p)
	}
}

// watchCommits asks for the committed offsets again and again.
func (g *group) watchCommits(ctx context.Context) error {
	for sleep(ctx, commitsEvery) == nil {
		client, err := g.s.c.client(kgo.RetryTimeout(3 * time.Second)) // a new one each time: it knows no coordinator from before
		if err != nil {
			return err
		}
		if err := g.askCommits(ctx, client); err != nil {
			g.s.stats.Errors.Add(1)
		}
		client.Close()
	}
	return nil
}

// askCommits asks for every partition by name, so that the answer says of each that nothing is committed, and does not leave it out.
func (g *group) askCommits(ctx context.Context, client *kgo.Client) error {
	req, of, topic := kmsg.NewPtrOffsetFetchRequest(), kmsg.NewOffsetFetchRequestGroup(), kmsg.NewOffsetFetchRequestGroupTopic()
	of.Group, topic.Topic = g.id(), g.s.topic.Name()
	asks := map[int32]history.CommitFetch{}
	for p := range g.s.topic.Partitions() {
		asks[p] = g.history.BeginFetch("watcher", p)
		topic.Partitions = append(topic.Partitions, p)
	}
	of.Topics = append(of.Topics, topic)
	req.Groups = append(req.Groups, of)
	resp, err := req.RequestWith(ctx, client)
	switch {
	case err != nil:
		return err
	case len(resp.Groups) != 1 || len(resp.Groups[0].Topics) != 1:
		return errors.New("an answer for one topic of one group was expected")
	case resp.Groups[0].ErrorCode != 0:
		return kerr.ErrorForCode(resp.Groups[0].ErrorCode)
	}
	g.s.stats.Asked.Add(1)
	for _, p := range resp.Groups[0].Topics[0].Partitions {
		if ask, asked := asks[p.Partition]; asked && p.ErrorCode == 0 {
			ask.End(p.Offset)
		}
	}
	return nil
}

// Finish lets one more member work off what is left.
func (g *group) Finish(ctx context.Context) error {
	for life := 0; g.history.Left() > 0; life++ {
		looked := time.Now()
		done := func() bool {
			if time.Since(looked) < time.Second { // looking goes over all records
				return false
			}
			looked = time.Now()
			return g.history.Left() == 0
		}
		if err := g.member(ctx, fmt.Sprintf("last.%d", life), committed, memberTimeMax, done); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil // the history says what is undelivered
		}
	}
	return nil
}
