package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/core/meta"
	"sluice/core/shard"
)

const (
	// pingTimeout is how long it waits for one: a node that takes longer is not waited for when a
	// change is answered, until it answers a ping again.
	pingTimeout = time.Second
	// fenceAfter without an answer a node counts as gone: clients are no longer told of it, and
	// another data directory may take its id. Kafka's session timeout is 9 s.
	fenceAfter = 3 * time.Second
	// settleTimeout bounds the wait for live nodes after a commit. The change is made in any case.
	settleTimeout = 10 * time.Second
	// awaitSlice is how long a node may hold a wait back before it says "not yet".
	awaitSlice = 300 * time.Millisecond
	// settlePause separates questions to a node that is done while others are not.
	settlePause = 5 * time.Millisecond
)

// lead is what this node does while it leads the metadata group.
type lead struct {
	c *Controller

	// plan serialises planning with the commit of what was planned, so that a plan never meets
	// metadata it did not see.
	plan sync.Mutex

	mu struct {
		sync.Mutex
		term uint64
		seen map[meta.Server]time.Time // last answer to a ping
		down map[meta.Server]bool      // does not answer, is not waited for
		// alive is since when a server answers without a break, and levels what it can apply (meta.Level).
		alive  map[meta.Server]time.Time
		levels map[meta.Server]uint8
	}
}

func newLead(c *Controller) *lead {
	l := &lead{c: c}
	l.mu.seen, l.mu.down = make(map[meta.Server]time.Time), make(map[meta.Server]bool)
	l.mu.alive, l.mu.levels = make(map[meta.Server]time.Time), make(map[meta.Server]uint8)
	return l
}

func (l *lead) serving() error {
	if g := l.c.group(); g != nil {
		if _, ok := g.Serving(); ok {
			return nil
		}
	}
	return errNotLeader
}

// readIndex returns an index up to which everything is committed and applied here, after a
// majority has confirmed the leadership.
func (l *lead) readIndex(ctx context.Context) (uint64, error) {
	if err := l.serving(); err != nil {
		return 0, err
	}
	index := l.c.Image().Index()
	if err := l.c.group().Verify(ctx); err != nil {
		return 0, errNotLeader
	}
	return index, nil
}

// execute plans, commits and settles a command. errNotLeader means: try again with the same id,
// here or elsewhere.
func (l *lead) execute(ctx context.Context, r *commandRequest) (meta.Result, error) {
	res, shards, err := l.commit(ctx, r)
	if err != nil {
		return meta.Result{}, err
	}
	if shards != nil && !l.settle(ctx, l.c.Image().Index(), shards) {
		l.c.metrics.unsettled.Inc()
	}
	return res, nil
}

// commit returns the answer, and for commands that clients wait for the shards concerned (empty,
// not nil, when it is none).
func (l *lead) commit(ctx context.Context, r *commandRequest) (meta.Result, []meta.ShardID, error) {
	if err := l.serving(); err != nil {
		return meta.Result{}, nil, err
	}
	switch r.Command {
	case cmdReport:
		return l.direct(ctx, r.Report != nil, r.Report)
	case cmdConfirmRemovals:
		return l.direct(ctx, r.Confirm != nil, r.Confirm)
	case cmdFence:
		return l.direct(ctx, r.Fence != nil, r.Fence)
	case cmdAllocateProducerIDs:
		return l.direct(ctx, r.Producers != nil, r.Producers)
	}
	l.plan.Lock()
	defer l.plan.Unlock()
	if res, ok := l.c.Image().Answer(r.ID); ok {
		return res, l.concerned(r, l.c.Image()), nil
	}
	if res, known, err := l.membership(ctx, r); known {
		return res, waitedFor(r), err
	}
	if r.Command >= cmdReassign && r.Command <= cmdFinishMove {
		return l.movePartitions(ctx, r)
	}
	return l.commitPlanned(ctx, r)
}

// direct commits a command that needs no plan. Committed twice it does no harm, so its answer is
// not remembered.
func (l *lead) direct(ctx context.Context, ok bool, cmd meta.Command) (meta.Result, []meta.ShardID, error) {
	if !ok {
		return meta.Result{}, nil, fmt.Errorf("%w: command without a body", errRemote)
	}
	res, err := l.propose(ctx, meta.RequestID{}, cmd)
	return res, nil, err
}

func (l *lead) commitPlanned(ctx context.Context, r *commandRequest) (meta.Result, []meta.ShardID, error) {
	image := l.c.Image()
	p := newPlanner(image, l.live, l.c.o.Defaults)
	switch {
	case r.Command == cmdCreateTopics && r.Create != nil:
		return l.createTopics(ctx, r, p)
	case r.Command == cmdCreatePartitions && r.Partitions != nil:
		return l.createPartitions(ctx, r, p)
	case r.Command == cmdDeleteTopics && r.Delete != nil:
		shards := l.concerned(r, image)
		res, err := l.propose(ctx, r.ID, r.Delete)
		return res, shards, err
	case r.Command == cmdAlterConfigs:
		res, err := l.propose(ctx, r.ID, p.alterConfigs(r.Configs))
		return res, l.concerned(r, l.c.Image()), err
	case r.Command == cmdRegister && r.Register != nil:
		res, err := l.propose(ctx, r.ID, r.Register)
		if err == nil && res.Err == nil {
			l.setDown(r.Register.Node.Server(), false)
			l.c.balanceNow()
		}
		l.c.members.poke()
		return res, []meta.ShardID{}, err
	}
	return meta.Result{}, nil, fmt.Errorf("%w: unknown command %d", errRemote, r.Command)
}

func (l *lead) createTopics(ctx context.Context, r *commandRequest, p *planner) (meta.Result, []meta.ShardID, error) {
	cmd := p.createTopics(r.Create.Topics)
	if slices.ContainsFunc(cmd.Refused, func(t meta.TopicResult) bool { return t.Err.Code == meta.CodeInvalidReplicationFactor }) {
		cmd = l.trusting().createTopics(r.Create.Topics)
	}
	if len(cmd.Topics) == 0 || r.Create.ValidateOnly {
		return meta.Result{Topics: append(cmd.Refused, wouldCreate(cmd)...)}, nil, nil
	}
	res, err := l.propose(ctx, r.ID, cmd)
	return res, l.concerned(r, l.c.Image()), err
}

// trusting plans with every node that is not fenced. A ping that was missed keeps a node from getting replicas, where others can take
// them; but "too few brokers" is final for clients, and a leader that has itself stood still for a second has heard from nobody.
func (l *lead) trusting() *planner {
	image := l.c.Image()
	live := func(id meta.NodeID) bool {
		n, ok := image.Node(id)
		return id == l.c.Self() || ok && !n.Fenced
	}
	return newPlanner(image, live, l.c.o.Defaults)
}

func wouldCreate(cmd *meta.CreateTopics) []meta.TopicResult {
	out := make([]meta.TopicResult, len(cmd.Topics))
	for i, t := range cmd.Topics {
		out[i] = meta.TopicResult{Name: t.Name, Partitions: int32(len(t.Shards)), ReplicationFactor: t.ReplicationFactor}
	}
	return out
}

func (l *lead) createPartitions(ctx context.Context, r *commandRequest, p *planner) (meta.Result, []meta.ShardID, error) {
	cmd, refused := p.createPartitions(r.Partitions)
	if refused != nil && refused.Code == meta.CodeInvalidReplicationFactor {
		cmd, refused = l.trusting().createPartitions(r.Partitions)
	}
	if refused != nil || r.Partitions.ValidateOnly {
		return meta.Result{Err: refused}, nil, nil
	}
	res, err := l.propose(ctx, r.ID, cmd)
	return res, l.concerned(r, l.c.Image()), err
}

// concerned returns the shards that a request has to do with, as of an image.
func (l *lead) concerned(r *commandRequest, image *meta.Image) []meta.ShardID {
	shards := []meta.ShardID{}
	add := func(t *meta.Topic) {
		if t == nil {
			return
		}
		for _, p := range t.Partitions {
			shards = append(shards, p.Shard)
		}
	}
	if r.Create != nil {
		for i := range r.Create.Topics {
			add(image.Topic(r.Create.Topics[i].Name))
		}
	}
	if r.Delete != nil {
		for _, id := range r.Delete.IDs {
			add(image.TopicByID(id))
		}
	}
	if r.Partitions != nil {
		add(image.Topic(r.Partitions.Name))
	}
	for i := range r.Configs {
		if r.Configs[i].Type == meta.ResourceTopic {
			add(image.Topic(r.Configs[i].Name))
		}
	}
	return compactShards(shards)
}

func (l *lead) propose(ctx context.Context, id meta.RequestID, cmd meta.Command) (meta.Result, error) {
	out, err := l.c.group().Propose(meta.Encode(id, cmd)).Wait(ctx)
	switch {
	case errors.Is(err, shard.ErrNotLeader), errors.Is(err, shard.ErrUnknown), errors.Is(err, shard.ErrClosed):
		return meta.Result{}, errNotLeader
	case err != nil:
		return meta.Result{}, fmt.Errorf("commit metadata command: %w", err)
	}
	switch res := out.(type) {
	case meta.Result:
		return res, nil
	case error:
		return meta.Result{}, fmt.Errorf("apply metadata command: %w", res)
	}
	panic("BUG: metadata machine answered with an unknown type")
}

// live tells whether a node is worth waiting for.
func (l *lead) live(id meta.NodeID) bool {
	if id == l.c.Self() {
		return true
	}
	n, ok := l.c.Image().Node(id)
	if !ok || n.Fenced {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.mu.down[n.Server()]
}

func (l *lead) setDown(s meta.Server, down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.down[s] = down
	if down {
		delete(l.mu.alive, s)
		return
	}
	l.mu.seen[s] = time.Now()
	if _, ok := l.mu.alive[s]; !ok {
		l.mu.alive[s] = time.Now()
	}
}

// settling is the wait for one change.
type settling struct {
	index uint64

	mu     sync.Mutex
	shards []servedShard // Term is 0 until its leader has said that it serves the change
}

// known returns what is known so far, and whether that is all.
func (s *settling) known() (shards []servedShard, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = !slices.ContainsFunc(s.shards, func(x servedShard) bool { return x.Term == 0 })
	return slices.Clone(s.shards), all
}

// learn notes the shards that a node serves.
func (s *settling) learn(served []servedShard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range served {
		for i := range s.shards {
			if s.shards[i].ID == x.ID {
				s.shards[i].Term = max(s.shards[i].Term, x.Term)
			}
		}
	}
}

// settle waits until every live node has applied index, until for each of the shards a node has
// said that it leads and has done what the metadata asks, and until every live node knows of that
// leader or of a later one. It tells whether that is so of every node and shard.
func (l *lead) settle(ctx context.Context, index uint64, shards []meta.ShardID) bool {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	s, image := &settling{index: index}, l.c.Image()
	for _, id := range shards {
		if shard := image.Shard(id); shard != nil && l.canLead(shard) {
			s.shards = append(s.shards, servedShard{ID: id})
		}
	}
	settled := atomic.Int64{}
	var wg sync.WaitGroup
	for _, n := range image.Nodes() {
		if l.live(n.ID) {
			wg.Go(func() { settled.Add(int64(boolToInt(l.settleNode(ctx, n, s)))) })
		}
	}
	wg.Wait()
	return int(settled.Load()) == len(image.Nodes()) && len(s.shards) == len(shards)
}

// canLead tells whether enough of a shard's voters are alive to elect a leader.
func (l *lead) canLead(s *meta.Shard) bool {
	up := 0
	for _, v := range s.Voters {
		if l.live(v.Node) {
			up++
		}
	}
	return !l.c.Image().HasLost(s) && up > len(s.Voters)/2
}

// settleNode waits for one node and tells whether it has come so far.
func (l *lead) settleNode(ctx context.Context, n meta.Node, s *settling) bool {
	for ctx.Err() == nil {
		shards, all := s.known()
		answer, err := l.awaitOn(ctx, n.ID, &awaitRequest{Index: s.index, Shards: shards})
		if err != nil && ctx.Err() == nil {
			l.setDown(n.Server(), true)
			return false
		}
		s.learn(answer.Serving)
		if answer.Done && all {
			return true
		}
		if answer.Done {
			pause(ctx, settlePause)
		}
	}
	return false
}

func (l *lead) awaitOn(ctx context.Context, node meta.NodeID, r *awaitRequest) (awaitAnswer, error) {
	if node == l.c.Self() {
		return l.c.await(ctx, r), nil
	}
	call, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var answer awaitAnswer
	err := l.c.pool.call(call, node, opAwait, r, &answer)
	return answer, err
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// run looks after the other nodes while this one leads.
func (l *lead) run(ctx context.Context) {
	for {
		beat, changed := l.c.beat.wait(), l.c.group().Changed()
		if l.serving() == nil {
			l.round(ctx)
		}
		select {
		case <-beat:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (l *lead) round(ctx context.Context) {
	image := l.c.Image()
	if image.ClusterID() == "" {
		_, _ = l.propose(ctx, meta.RequestID{}, &meta.Init{ClusterID: l.c.id.clusterID()})
	}
	l.begin(image)
	var wg sync.WaitGroup
	for _, n := range image.Nodes() {
		if n.ID != l.c.Self() {
			wg.Go(func() { l.ping(ctx, n) })
		}
	}
	wg.Wait()
}

// begin forgets what was seen in an earlier term: nobody is blamed for the time without a leader.
func (l *lead) begin(image *meta.Image) {
	term, _ := l.c.group().Serving()
	l.mu.Lock()
	defer l.mu.Unlock()
	if term != l.mu.term {
		l.mu.term = term
		clear(l.mu.seen)
		clear(l.mu.down)
		clear(l.mu.alive)
		clear(l.mu.levels)
		l.trustLocked(image)
	}
	for _, n := range image.Nodes() {
		if _, ok := l.mu.seen[n.Server()]; !ok {
			l.mu.seen[n.Server()] = time.Now()
		}
	}
}

// ping asks a node for a sign of life and commits what follows from the answer.
func (l *lead) ping(ctx context.Context, n meta.Node) {
	began := time.Now()
	alive, leaving := l.hear(ctx, n)
	gone := !alive && (leaving || l.silent(n.Server()) > fenceAfter)
	switch {
	case ctx.Err() != nil:
	case alive && n.Fenced:
		l.setFenced(ctx, n, false)
	case gone && !n.Fenced:
		l.fence(ctx, n, began)
	}
}

// fence says that a node is gone, unless it was heard of since a time, and tells whether it said so. A registration holds plan as this does:
// without, one that was committed while a ping was on its way would be undone, and a node that has just become ready be gone until the next
// ping. Clients would be told for good that there are too few brokers.
func (l *lead) fence(ctx context.Context, n meta.Node, since time.Time) bool {
	l.plan.Lock()
	defer l.plan.Unlock()
	if l.heardSince(n.Server(), since) {
		return false
	}
	l.setFenced(ctx, n, true)
	return true
}

func (l *lead) setFenced(ctx context.Context, n meta.Node, fenced bool) {
	l.c.log.Info("node changed", "node", n.ID, "fenced", fenced)
	_, _ = l.propose(ctx, meta.RequestID{}, &meta.FenceNode{Server: n.Server(), Fenced: fenced})
}

// hear asks a node for a sign of life and notes what it says. leaving is true when it says that it is stopping.
func (l *lead) hear(ctx context.Context, n meta.Node) (alive, leaving bool) {
	call, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var pong pingAnswer
	err := l.c.pool.call(call, n.ID, opPing, nil, &pong)
	itself := err == nil && pong.Server == n.Server()
	alive, leaving = itself && !pong.Leaving, itself && pong.Leaving
	l.setDown(n.Server(), !alive)
	if alive {
		l.learnLevel(n.Server(), pong.Level)
	}
	return alive, leaving
}

func (l *lead) learnLevel(s meta.Server, level uint8) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.levels[s] = level
}

func (l *lead) heardSince(s meta.Server, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.seen[s].After(since)
}

func (l *lead) silent(s meta.Server) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.mu.seen[s])
}
