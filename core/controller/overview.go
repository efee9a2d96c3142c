package controller

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/core/meta"
)

const (
	// overviewTimeout is how long an overview waits for a node: it shall also be given while one hangs.
	overviewTimeout = time.Second
	// rateWindow is over what time the rate of a copy is taken.
	rateWindow = 2 * time.Second
)

// Overview is the state of the cluster's members as far as the nodes that answer know it.
type Overview struct {
	Cluster string `json:"cluster"`
	// Balancing: replicas and leaders are being spread. AutoBalance: that begins by itself.
	Balancing   bool            `json:"balancing"`
	AutoBalance bool            `json:"autoBalance"`
	Nodes       []NodeOverview  `json:"nodes"`
	Shards      []ShardOverview `json:"shards"`
	// Blocked are replicas that should leave their node, and no other can take them.
	Blocked []BlockedReplica `json:"blocked,omitempty"`
}

// NodeOverview is one node.
type NodeOverview struct {
	ID    meta.NodeID `json:"id"`
	Addr  string      `json:"addr"`
	Kafka string      `json:"kafka"`
	HTTP  string      `json:"http,omitempty"`
	Rack  string      `json:"rack,omitempty"`
	// State is live, dead, or silent: it did not answer this overview.
	State    string `json:"state"`
	Draining bool   `json:"draining"`
	Version  string `json:"version,omitempty"`
	// Replicas are those it shall have and those it has still to delete; Leaders the shards that it leads.
	Replicas int `json:"replicas"`
	Leaders  int `json:"leaders"`
	// Metadata is its part in the metadata group: leader, voter, or follower, which has no vote.
	Metadata      string  `json:"metadata"`
	DiskFreeBytes *uint64 `json:"diskFreeBytes,omitempty"`
}

// ShardOverview is one shard.
type ShardOverview struct {
	ID                meta.ShardID  `json:"id"`
	Partitions        int           `json:"partitions"`
	ReplicationFactor int16         `json:"replicationFactor"`
	Leader            meta.NodeID   `json:"leader"` // -1: none
	Replicas          []meta.NodeID `json:"replicas"`
	InSync            []meta.NodeID `json:"inSync"`
	// Adding are wanted replicas that do not vote yet, Removing those that are to go.
	Adding   []meta.NodeID `json:"adding,omitempty"`
	Removing []meta.NodeID `json:"removing,omitempty"`
	Lost     bool          `json:"lost,omitempty"`
	// Copies are replicas that are behind or fetch segments.
	Copies []CopyOverview `json:"copies,omitempty"`
}

// CopyOverview is how far a replica is that is not in sync.
type CopyOverview struct {
	Node meta.NodeID `json:"node"`
	// BytesLeft of closed segments are to be fetched, EntriesLeft of the log behind them.
	BytesLeft      int64  `json:"bytesLeft"`
	EntriesLeft    uint64 `json:"entriesLeft"`
	BytesPerSecond int64  `json:"bytesPerSecond"`
}

// BlockedReplica is a replica that should leave its node and has nowhere to go.
type BlockedReplica struct {
	Shard meta.ShardID `json:"shard"`
	Node  meta.NodeID  `json:"node"`
}

// nodeReport is what a node says of itself for an overview.
type nodeReport struct {
	Version string        `cbor:"1,keyasint,omitempty"`
	Disk    *DiskState    `cbor:"2,keyasint,omitempty"`
	Led     []shardReport `cbor:"3,keyasint,omitempty"`
	Copies  []copyReport  `cbor:"4,keyasint,omitempty"`
	Quorum  []voterReport `cbor:"5,keyasint,omitempty"` // of the metadata, from its leader
}

type voterReport struct {
	Server meta.Server `cbor:"1,keyasint"`
	Voter  bool        `cbor:"2,keyasint,omitempty"`
}

// shardReport is a leader's word on its shard: who votes, and who is behind by how much.
type shardReport struct {
	Shard  meta.ShardID  `cbor:"1,keyasint"`
	Term   uint64        `cbor:"2,keyasint"`
	Voters []meta.NodeID `cbor:"3,keyasint"`
	Behind []copyReport  `cbor:"4,keyasint,omitempty"`
}

type copyReport struct {
	Shard   meta.ShardID `cbor:"1,keyasint"`
	Node    meta.NodeID  `cbor:"2,keyasint"`
	Bytes   int64        `cbor:"3,keyasint,omitempty"`
	Entries uint64       `cbor:"4,keyasint,omitempty"`
	Rate    int64        `cbor:"5,keyasint,omitempty"`
}

// report answers another node's overview.
func (c *Controller) report() *nodeReport {
	out := &nodeReport{Version: c.o.Version, Disk: c.disks.own()}
	for id, r := range c.replicaMap() {
		if bytes := r.set.Lacks(); bytes > 0 {
			out.Copies = append(out.Copies, copyReport{Shard: id, Node: c.Self(), Bytes: bytes, Rate: r.rate.get()})
		}
		if term, ok := r.group.Serving(); ok {
			out.Led = append(out.Led, r.reportMembers(term))
		}
	}
	if c.lead.serving() == nil {
		for _, m := range c.group().Replicas() {
			out.Quorum = append(out.Quorum, voterReport{m.Server, m.Voter})
		}
	}
	return out
}

func (r *replica) reportMembers(term uint64) shardReport {
	out := shardReport{Shard: r.id, Term: term}
	members := r.group.Replicas()
	last := uint64(0)
	for _, m := range members {
		last = max(last, m.LastIndex)
	}
	for _, m := range members {
		if m.Voter {
			out.Voters = append(out.Voters, m.Server.Node)
		}
		if !m.InSync {
			out.Behind = append(out.Behind, copyReport{Shard: r.id, Node: m.Server.Node, Entries: last - m.LastIndex})
		}
	}
	return out
}

// Overview asks all nodes and puts together what they say.
func (c *Controller) Overview(ctx context.Context) *Overview {
	image := c.Image()
	reports := c.askAll(ctx, image)
	o := &Overview{Cluster: image.ClusterID(), Balancing: image.BalanceRequest() != 0, AutoBalance: c.autoBalance(), Blocked: c.blocked(image)}
	quorum := quorumOf(reports)
	leads := make(map[meta.NodeID]int)
	for _, s := range image.Shards() {
		o.Shards = append(o.Shards, c.shardOverview(s, reports))
		leads[o.Shards[len(o.Shards)-1].Leader]++
	}
	leader, _ := c.Leader()
	for _, n := range image.Nodes() {
		v := nodeOverview(image, n, reports[n.ID])
		v.Leaders, v.Metadata = leads[n.ID], "follower"
		switch {
		case n.ID == leader:
			v.Metadata = "leader"
		case quorum[n.Server()]:
			v.Metadata = "voter"
		}
		o.Nodes = append(o.Nodes, v)
	}
	return o
}

// askAll returns what the nodes that answer in time say of themselves.
func (c *Controller) askAll(ctx context.Context, image *meta.Image) map[meta.NodeID]*nodeReport {
	ctx, cancel := context.WithTimeout(ctx, overviewTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	reports := map[meta.NodeID]*nodeReport{c.Self(): c.report()}
	for _, n := range image.Nodes() {
		if n.ID == c.Self() {
			continue
		}
		wg.Go(func() {
			var r nodeReport
			if c.pool.call(ctx, n.ID, opOverview, nil, &r) == nil {
				mu.Lock()
				defer mu.Unlock()
				reports[n.ID] = &r
			}
		})
	}
	wg.Wait()
	return reports
}

func quorumOf(reports map[meta.NodeID]*nodeReport) map[meta.Server]bool {
	votes := make(map[meta.Server]bool)
	for _, r := range reports {
		for _, v := range r.Quorum {
			votes[v.Server] = v.Voter
		}
	}
	return votes
}

func nodeOverview(image *meta.Image, n meta.Node, r *nodeReport) NodeOverview {
	v := NodeOverview{
		ID: n.ID, Addr: n.Addr, Kafka: net.JoinHostPort(n.KafkaHost, strconv.Itoa(int(n.KafkaPort))), HTTP: n.HTTPAddr, Rack: n.Rack,
		State: "live", Draining: n.Draining, Replicas: replicaCount(image, n.Server()),
	}
	switch {
	case n.Fenced:
		v.State = "dead"
	case r == nil:
		v.State = "silent"
	}
	if r != nil {
		v.Version = r.Version
		if r.Disk != nil {
			v.DiskFreeBytes = &r.Disk.FreeBytes
		}
	}
	return v
}

func (c *Controller) shardOverview(s *meta.Shard, reports map[meta.NodeID]*nodeReport) ShardOverview {
	o := ShardOverview{
		ID: s.ID, Partitions: s.Partitions, ReplicationFactor: s.ReplicationFactor, Leader: meta.NoNode,
		Replicas: s.Nodes(), InSync: s.ISR, Removing: serverNodes(s.Leaving), Lost: c.Image().HasLost(s),
	}
	if leader, _, ok := c.LeaderOf(s.ID); ok {
		o.Leader = leader
	}
	said := leaderReport(s.ID, reports)
	if said == nil {
		return o
	}
	for _, v := range s.Voters {
		if !slices.Contains(said.Voters, v.Node) {
			o.Adding = append(o.Adding, v.Node)
		}
	}
	for _, behind := range said.Behind {
		o.Copies = append(o.Copies, copyOf(behind, reports[behind.Node]))
	}
	return o
}

// leaderReport returns what the leader of the newest term says of a shard, nil when none has answered.
func leaderReport(id meta.ShardID, reports map[meta.NodeID]*nodeReport) *shardReport {
	var best *shardReport
	for _, r := range reports {
		for i := range r.Led {
			if x := &r.Led[i]; x.Shard == id && (best == nil || x.Term > best.Term) {
				best = x
			}
		}
	}
	return best
}

// copyOf puts together what the leader and the replica itself say.
func copyOf(behind copyReport, own *nodeReport) CopyOverview {
	o := CopyOverview{Node: behind.Node, EntriesLeft: behind.Entries}
	if own == nil {
		return o
	}
	for _, x := range own.Copies {
		if x.Shard == behind.Shard {
			o.BytesLeft, o.BytesPerSecond = x.Bytes, x.Rate
		}
	}
	return o
}

// blocked returns the replicas that should go elsewhere and cannot, as the metadata leader's planner would see it.
func (c *Controller) blocked(image *meta.Image) []BlockedReplica {
	up := func(id meta.NodeID) bool { n, ok := image.Node(id); return ok && !n.Fenced }
	b := &balancer{
		image: image, alive: up, silent: func(meta.NodeID) time.Duration { return 0 },
		takes: func(id meta.NodeID) bool { n, _ := image.Node(id); return up(id) && !n.Draining },
	}
	b.begin()
	b.budget = len(image.Shards())
	b.evacuate()
	out := make([]BlockedReplica, 0, len(b.blocked))
	for _, x := range b.blocked {
		out = append(out, BlockedReplica{x.Shard, x.Node})
	}
	return out
}

// rate measures how fast a replica fetches. Its owner samples it, others read it.
type rate struct {
	mu     sync.Mutex
	at     time.Time
	bytes  uint64
	second int64
}

// sample takes the bytes fetched so far.
func (r *rate) sample(bytes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if took := now.Sub(r.at); took >= rateWindow || r.at.IsZero() {
		if !r.at.IsZero() {
			r.second = int64(float64(bytes-r.bytes) / took.Seconds())
		}
		r.at, r.bytes = now, bytes
	}
}

func (r *rate) get() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.second
}
