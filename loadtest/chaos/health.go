package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// askMax bounds one question to a node: one that does not answer within it is not healthy.
	askMax = 2 * time.Second
	// answerBytesMax bounds a /status; one of ten thousand partitions has less.
	answerBytesMax = 64 << 20
)

// view is what one node says about itself and the others (its /status).
type view struct {
	Controller struct {
		Ready  bool
		Leader int
		Nodes  []struct {
			ID     int
			Fenced bool
		}
		Disks []struct {
			Node int
			Low  bool
		}
		Shards   []shardView
		Metadata replicaView
	} `json:"controller"`
}

// shardView is a shard as the metadata knows it, with the node's own replica of it, if it has one.
type shardView struct {
	ID            int
	Leader        int
	Replicas, ISR []int
	Lost          bool
	Replica       *replicaView
}

type replicaView struct {
	Shard             int
	State             string
	Leader            int
	Serving, Complete bool
	Error             string
	Replicas          []struct {
		Server        string
		Voter, InSync bool
	}
}

func (r *replicaView) leads() bool { return r != nil && r.State == "Leader" }

// client asks over new connections: one that a fault has broken tells nothing about a node that is well again.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: askMax}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

func (c *cluster) serves(ctx context.Context, node int) error {
	_, err := get(ctx, "http://"+c.http(node)+"/healthz")
	return err
}

func (c *cluster) gatewayServes(ctx context.Context) error {
	_, err := get(ctx, "http://"+hostPort(c.net.address(c.gatewayMember()), edgePort)+"/healthz")
	return err
}

// views asks every node.
func (c *cluster) views(ctx context.Context) ([]view, error) {
	out := make([]view, len(c.nodes))
	for i := range c.nodes {
		body, err := get(ctx, "http://"+c.http(i+1)+"/status?component=controller")
		if err == nil {
			err = json.Unmarshal(body, &out[i])
		}
		if err != nil {
			return nil, fmt.Errorf("status of node %d: %w", i+1, err)
		}
	}
	return out, nil
}

// leaderships counts the shards that each node leads, and finds the controller.
func leaderships(views []view) (leads []int, controller int) {
	leads, controller = make([]int, len(views)), 1
	for i, v := range views {
		for _, s := range v.Controller.Shards {
			if s.Replica.leads() {
				leads[i]++
			}
		}
		if v.Controller.Metadata.leads() {
			controller = i + 1
		}
	}
	return leads, controller
}

// errUnhealthy is returned while the cluster has not healed.
var errUnhealthy = errors.New("unhealthy")

// healthy says what is not as it has to be between two faults: every node serves and sees all others, every shard has one leader whose replicas are
// all in sync and as many as there shall be, nothing moves, and the gateway serves.
func (c *cluster) healthy(ctx context.Context) error {
	for i := range c.nodes {
		if err := c.serves(ctx, i+1); err != nil {
			return err
		}
	}
	if c.gateway != nil {
		if err := c.gatewayServes(ctx); err != nil {
			return err
		}
	}
	views, err := c.views(ctx)
	if err != nil {
		return err
	}
	if err := judgeViews(views); err != nil {
		return err
	}
	m, err := c.membership(ctx)
	if err != nil {
		return err
	}
	return m.whole()
}

// judgeViews is healthy for what the nodes say.
func judgeViews(views []view) error {
	led := map[int]int{}
	for i, v := range views {
		if err := v.judgeNodes(len(views)); err != nil {
			return fmt.Errorf("node %d: %w", i+1, err)
		}
		if err := v.Controller.Metadata.judge(); err != nil {
			return fmt.Errorf("node %d: metadata: %w", i+1, err)
		}
		for _, s := range v.Controller.Shards {
			if err := s.judge(); err != nil {
				return fmt.Errorf("node %d: shard %d: %w", i+1, s.ID, err)
			}
			led[s.ID] += 0
			if s.Replica.leads() {
				led[s.ID]++
			}
		}
	}
	for shard, n := range led {
		if n != 1 {
			return fmt.Errorf("%w: shard %d has %d leaders", errUnhealthy, shard, n)
		}
	}
	return nil
}

// judgeNodes looks at what a node knows of the others.
func (v view) judgeNodes(nodes int) error {
	c := &v.Controller
	if !c.Ready || len(c.Nodes) < nodes {
		return fmt.Errorf("%w: ready %v, knows %d nodes of %d", errUnhealthy, c.Ready, len(c.Nodes), nodes)
	}
	for _, n := range c.Nodes {
		if n.Fenced {
			return fmt.Errorf("%w: sees node %d fenced", errUnhealthy, n.ID)
		}
	}
	for _, d := range c.Disks {
		if d.Low {
			return fmt.Errorf("%w: sees the disk of node %d low", errUnhealthy, d.Node)
		}
	}
	return nil
}

func (s shardView) judge() error {
	if s.Lost || s.Leader <= 0 || len(s.ISR) < len(s.Replicas) {
		return fmt.Errorf("%w: lost %v, leader %d, in sync %v of %v", errUnhealthy, s.Lost, s.Leader, s.ISR, s.Replicas)
	}
	if s.Replica == nil {
		return nil
	}
	return s.Replica.judge()
}

func (r *replicaView) judge() error {
	switch {
	case r.Error != "":
		return fmt.Errorf("%w: its replica has failed: %s", errUnhealthy, r.Error)
	case r.Leader <= 0:
		return fmt.Errorf("%w: its replica knows no leader", errUnhealthy)
	case !r.Complete:
		return fmt.Errorf("%w: its replica is not complete", errUnhealthy)
	case r.leads() && !r.Serving:
		return fmt.Errorf("%w: it leads and does not serve", errUnhealthy)
	}
	if !r.leads() {
		return nil
	}
	for _, one := range r.Replicas {
		if !one.InSync {
			return fmt.Errorf("%w: replica %s is behind", errUnhealthy, one.Server)
		}
	}
	return nil
}
