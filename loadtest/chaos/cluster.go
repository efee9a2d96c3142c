package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// readyMax bounds the wait for a node that starts: it may have to replay what was not in a checkpoint.
	readyMax = 2 * time.Minute
	// stopMax bounds a clean stop: leadership is handed over and a checkpoint is written.
	stopMax = 30 * time.Second
	// tick is how often something is asked for that is waited for.
	tick = 100 * time.Millisecond
)

// cluster is the nodes of a run and its gateway.
type cluster struct {
	net     network
	dir     string
	binary  string
	seed    uint64
	calm    bool // no fault comes any more: what is written stays written
	boards  bool // the program has a fault switchboard
	disks   []disk
	nodes   []*process // node i+1 of the cluster is member i+1 of the network
	gateway *process   // nil without

	spare     *process // the node that joins and leaves; mostly it does not run
	spareDisk disk
}

// members is how many namespaces there are: the nodes', the gateway's, and that of the node that joins and leaves.
func members(nodes int) int { return nodes + 2 }

func (c *cluster) gatewayMember() int { return len(c.nodes) + 1 }

func (c *cluster) kafka(node int) string { return hostPort(c.net.address(node), kafkaPort) }
func (c *cluster) http(node int) string  { return hostPort(c.net.address(node), httpPort) }
func (c *cluster) mqtt() string          { return hostPort(c.net.address(c.gatewayMember()), mqttPort) }

func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// kafkas are the addresses of all nodes.
func (c *cluster) kafkas() []string {
	var out []string
	for i := range c.nodes {
		out = append(out, c.kafka(i+1))
	}
	return out
}

// data are the nodes' data directories.
func (c *cluster) data() (out []string) {
	for _, d := range c.disks {
		out = append(out, d.data())
	}
	return out
}

func (c *cluster) switchboard(node int) string {
	return filepath.Join(c.dir, fmt.Sprintf("core-%d.sock", node))
}

// node makes the process of a node, which is not started yet.
func (c *cluster) node(l *launcher, id int, d disk) *process {
	name := fmt.Sprintf("core-%d", id)
	p := &process{name: name, launcher: l, logFile: filepath.Join(c.dir, name+".log")}
	p.env = c.env(p, id)
	p.command = func() command {
		at := c.net.address(id)
		cmd := c.net.inside(id, c.binary, "core", "-c", c.config(), "--id", strconv.Itoa(id), "--data", d.data(), "--rack", "rack"+strconv.Itoa(id),
			"--kafka", hostPort(at, kafkaPort), "--node", hostPort(at, nodePort), "--http", hostPort(at, httpPort))
		if join := c.join(id, p.starts); join != "" {
			cmd = append(cmd, "--join", join)
		}
		return cmd
	}
	return p
}

// env asks a program for its switchboard; one without does not look at it. The switchboard of the gateway is named like that of a node behind the last.
func (c *cluster) env(p *process, id int) func() []string {
	return func() []string {
		env := []string{"SLUICE_CHAOS=" + c.switchboard(id)}
		v := c.volatile(id, p.starts)
		if p.volatile {
			v = "1"
		}
		if v != "" {
			env = append(env, "SLUICE_CHAOS_VOLATILE="+v)
		}
		return env
	}
}

// nodeConfig makes the nodes read all their segments every few seconds, so that damage is found while the run lasts, and tell what they do.
const nodeConfig = "scrub: {interval: 5s, bytesPerSecond: 33554432}\nprofiles: true\n"

func (c *cluster) config() string { return filepath.Join(c.dir, "core.yaml") }

func (c *cluster) writeConfig() error {
	if err := os.WriteFile(c.config(), []byte(nodeConfig), 0o644); err != nil {
		return fmt.Errorf("write the nodes' configuration: %w", err)
	}
	return nil
}

// volatile says what a kill takes from a node in its n-th life: nothing that was written (""), all that was not synced ("1"), or some of that,
// chosen by a seed. After the first life, which keeps all, they come in turns.
func (c *cluster) volatile(id, n int) string {
	switch {
	case c.calm || c.firm(id, n):
		return ""
	case n%2 == 0:
		return "1"
	}
	return fmt.Sprintf("seed:%d", c.seed+uint64(n))
}

// firm tells whether a kill takes nothing from a node in its n-th life.
func (c *cluster) firm(id, n int) bool { return (id+n)%3 == 0 }

// join is whom a node asks for its cluster. The first node founds one in its first life.
func (c *cluster) join(id, life int) string {
	if id == 1 && life == 0 {
		return ""
	}
	var others []string
	for m := range c.nodes {
		if m+1 != id {
			others = append(others, hostPort(c.net.address(m+1), nodePort))
		}
	}
	return strings.Join(others, ",")
}

// edge makes the process of the gateway. Its configuration lets the devices of a closed network in.
func (c *cluster) edge(l *launcher) (*process, error) {
	at := c.net.address(c.gatewayMember())
	data, file := filepath.Join(c.dir, "edge"), filepath.Join(c.dir, "edge.yaml")
	config := fmt.Sprintf("dataDir: %s\nallowAnonymous: true\nmqtt: {listen: %q, webSocket: {listen: \"\"}}\nhttp: {listen: %q}\nuplink: {core: [%s]}\n",
		data, hostPort(at, mqttPort), hostPort(at, edgePort), strings.Join(c.kafkas(), ", "))
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("write the gateway's configuration: %w", err)
	}
	p := &process{name: "edge", launcher: l, logFile: filepath.Join(c.dir, "edge.log")}
	p.env = c.env(p, c.gatewayMember())
	p.command = func() command { return c.net.inside(c.gatewayMember(), c.binary, "edge", "-c", file) }
	return p, nil
}

// start starts the nodes one after the other, so that the first founds the cluster, and then the gateway.
func (c *cluster) start(ctx context.Context) error {
	for i, n := range c.nodes {
		if err := n.start(ctx); err != nil {
			return err
		}
		if err := c.await(ctx, readyMax, n.name+" serves", func() error { return c.serves(ctx, i+1) }); err != nil {
			return err
		}
	}
	if c.gateway == nil {
		return nil
	}
	if err := c.gateway.start(ctx); err != nil {
		return err
	}
	return c.await(ctx, readyMax, "the gateway serves", func() error { return c.gatewayServes(ctx) })
}

// all are the processes, the gateway first. The spare node is one of them also while it does not run.
func (c *cluster) all() (out []*process) {
	if c.gateway != nil {
		out = append(out, c.gateway)
	}
	out = append(out, c.nodes...)
	if c.spare != nil {
		out = append(out, c.spare)
	}
	return out
}

// stop stops everything cleanly, all nodes at once: each may wait for the others' leadership otherwise.
func (c *cluster) stop() error {
	errs := make(chan error, len(c.all()))
	for _, p := range c.all() {
		go func() { errs <- p.stop(stopMax) }()
	}
	var all []error
	for range c.all() {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// end kills whatever still runs.
func (c *cluster) end() {
	for _, p := range c.all() {
		p.signal(syscall.SIGCONT)
		p.kill()
	}
}

// died are the processes that ended without being told to.
func (c *cluster) died() error {
	var errs []error
	for _, p := range c.all() {
		errs = append(errs, p.died())
	}
	return errors.Join(errs...)
}

// errWaited is returned when something that is waited for did not come.
var errWaited = errors.New("not in time")

// await asks until fn succeeds, a process dies, or the bound is over.
func (c *cluster) await(ctx context.Context, bound time.Duration, what string, fn func() error) error {
	return await(ctx, bound, what, func() error {
		if err := c.died(); err != nil {
			return stopWaiting{err}
		}
		return fn()
	})
}

// stopWaiting ends a wait early.
type stopWaiting struct{ error }

func (s stopWaiting) Unwrap() error { return s.error }

func await(ctx context.Context, bound time.Duration, what string, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		if s := (stopWaiting{}); errors.As(err, &s) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (%v): %w", what, errWaited, bound, err)
		}
	}
}

// pick finds the node that has a role now.
func (c *cluster) pick(ctx context.Context, r Role) (int, error) {
	var views []view
	err := c.await(ctx, readyMax, "the nodes tell who leads", func() (err error) {
		views, err = c.views(ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	leads, controller := leaderships(views)
	most := slices.Index(leads, slices.Max(leads)) + 1
	switch r {
	case Leader:
		return most, nil
	case Controller:
		return controller, nil
	}
	for i := range leads {
		if i+1 != most && i+1 != controller {
			return i + 1, nil
		}
	}
	return most%len(c.nodes) + 1, nil
}

// another is a node that is not this one, chosen by a number.
func (c *cluster) another(node, number int) int {
	return (node-1+1+number%(len(c.nodes)-1))%len(c.nodes) + 1
}
