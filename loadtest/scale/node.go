package scale

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// servingWithin bounds the wait for a node to answer /healthz.
	servingWithin = 2 * time.Minute
	// stopWithin bounds the wait for a clean stop, after which a node is killed.
	stopWithin = 30 * time.Second
	// pollEvery separates looks at something that is to come.
	pollEvery = 10 * time.Millisecond
)

// node is one core process that the run started, or that it was told of.
type node struct {
	id                int
	args              []string // of the program; none for a node that was running already
	binary, log       string
	kafka, node, http string
	pid               int
	done              chan error // the process has ended
}

// newNodes lays three nodes out below a directory, on ports from base on: Kafka, node and HTTP of each.
func newNodes(binary, data string, base, count int, extra []string) []*node {
	nodes := make([]*node, count)
	address := func(n int) string { return "127.0.0.1:" + strconv.Itoa(n) }
	for i := range nodes {
		n := &node{id: i + 1, binary: binary, kafka: address(base + 10*i), node: address(base + 10*i + 1), http: address(base + 10*i + 2)}
		n.log = filepath.Join(data, fmt.Sprintf("core-%d.log", n.id))
		n.args = append([]string{"core", "--id", strconv.Itoa(n.id), "--data", filepath.Join(data, fmt.Sprintf("core-%d", n.id)),
			"--kafka", n.kafka, "--node", n.node, "--http", n.http}, extra...)
		if i > 0 {
			n.args = append(n.args, "--join", nodes[0].node)
		}
		nodes[i] = n
	}
	return nodes
}

// start runs the process and returns at once.
func (n *node) start() error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
	defer log.Close()
	cmd := exec.Command(n.binary, n.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the run, which stops them
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
	n.pid, n.done = cmd.Process.Pid, make(chan error, 1)
	go func(done chan error) { done <- cmd.Wait() }(n.done)
	return nil
}

// healthy waits until the node says that it serves.
func (n *node) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, servingWithin)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/healthz", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-n.done:
			n.pid = 0
			return fmt.Errorf("node %d ended while starting (%v): see %s", n.id, err, n.log)
		case <-ctx.Done():
			return fmt.Errorf("node %d does not serve: see %s: %w", n.id, n.log, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// kill ends the process as a crash would.
func (n *node) kill() {
	if n.pid == 0 || n.done == nil {
		return
	}
	_ = syscall.Kill(n.pid, syscall.SIGKILL) // it may have ended by itself
	<-n.done
	n.pid = 0
}

// stop ends the process as an operator would.
func (n *node) stop() error {
	if n.pid == 0 || n.done == nil {
		return nil
	}
	if err := syscall.Kill(n.pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop node %d: %w", n.id, err)
	}
	select {
	case err := <-n.done:
		n.pid = 0
		if err != nil {
			return fmt.Errorf("node %d ended with %w: see %s", n.id, err, n.log)
		}
		return nil
	case <-time.After(stopWithin):
		n.kill()
		return fmt.Errorf("node %d did not stop within %v: see %s", n.id, stopWithin, n.log)
	}
}

// all does something to every node at once.
func all(nodes []*node, do func(*node) error) error {
	errs := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() { errs <- do(n) }()
	}
	var joined error
	for range nodes {
		joined = errors.Join(joined, <-errs)
	}
	return joined
}
