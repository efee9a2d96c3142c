package loadtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// nodesReadyWithin bounds a node's start; a long replay may take most of it.
	nodesReadyWithin = 2 * time.Minute
	// nodesStopWithin is what a clean stop may take before the process is killed.
	nodesStopWithin = 30 * time.Second
	// nodesPoll is how often a process is asked whether it is there.
	nodesPoll = 20 * time.Millisecond
)

// Nodes is a cluster of processes on this machine that a load may kill and start: its own, or those of deploy/cluster.sh.
type Nodes struct {
	// Binary is the sluice program, Data an empty or old directory, Port the first of the ports taken (three for each node).
	Binary, Data string
	Port         int
	Count        int
	// Cluster is the data directory of a running deploy/cluster.sh; the fields above are not looked at then.
	Cluster string

	list []*Node
}

// A Node is one process.
type Node struct {
	Name        string
	Kafka, HTTP string
	script      string   // starts it, when it is not ours
	args        []string // its command line, when it is ours
	dir         string
	mu          sync.Mutex
	pid         int
	exited      chan struct{} // closed when our own child is reaped
}

// Start starts the nodes, or finds those that run, and waits until they serve.
func (c *Nodes) Start(ctx context.Context) error {
	var err error
	if c.Cluster != "" {
		c.list, err = findNodes(c.Cluster)
	} else {
		c.list, err = c.ownNodes()
	}
	if err != nil {
		return err
	}
	for _, n := range c.list {
		if c.Cluster == "" {
			if err := n.Start(); err != nil {
				return err
			}
		}
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *Nodes) ownNodes() ([]*Node, error) {
	if err := os.MkdirAll(c.Data, 0o755); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	port := func(node, which int) string { return "127.0.0.1:" + strconv.Itoa(c.Port+10*node+which) }
	var list []*Node
	for i := range c.Count {
		n := &Node{Name: fmt.Sprintf("core-%d", i+1), Kafka: port(i, 0), HTTP: port(i, 2), dir: c.Data}
		n.args = []string{c.Binary, "core", "--id", strconv.Itoa(i + 1), "--data", filepath.Join(c.Data, n.Name), "--kafka", n.Kafka,
			"--node", port(i, 1), "--http", n.HTTP, "--rack", fmt.Sprintf("rack%d", i+1)}
		if i > 0 {
			n.args = append(n.args, "--join", port(0, 1))
		}
		list = append(list, n)
	}
	return list, nil
}

var addressFlag = regexp.MustCompile(`--(kafka|http) (\S+)`)

// findNodes reads the start scripts and pid files of deploy/cluster.sh.
func findNodes(dir string) ([]*Node, error) {
	scripts, err := filepath.Glob(filepath.Join(dir, "core-*.sh"))
	if err != nil || len(scripts) == 0 {
		return nil, fmt.Errorf("no core-*.sh in %s: is that the data directory of deploy/cluster.sh?", dir)
	}
	var list []*Node
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			return nil, fmt.Errorf("read start script: %w", err)
		}
		n := &Node{Name: strings.TrimSuffix(filepath.Base(script), ".sh"), script: script, dir: dir}
		for _, m := range addressFlag.FindAllStringSubmatch(string(text), -1) {
			if m[1] == "kafka" {
				n.Kafka = m[2]
			} else {
				n.HTTP = m[2]
			}
		}
		if n.pid, err = readPID(strings.TrimSuffix(script, ".sh") + ".pid"); err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

func readPID(name string) (int, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read process id: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read process id in %s: %w", name, err)
	}
	return pid, nil
}

// Brokers are the addresses for Kafka clients.
func (c *Nodes) Brokers() []string {
	var list []string
	for _, n := range c.list {
		list = append(list, n.Kafka)
	}
	return list
}

// Stop ends our own processes.
func (c *Nodes) Stop() {
	if c.Cluster != "" {
		return
	}
	for _, n := range c.list {
		_ = n.signal(syscall.SIGTERM) // one that is gone is what is wanted
	}
	for _, n := range c.list {
		if n.exited == nil {
			continue
		}
		select {
		case <-n.exited:
		case <-time.After(nodesStopWithin):
			_ = n.signal(syscall.SIGKILL)
			<-n.exited
		}
	}
}

// Start starts the process again.
func (n *Node) Start() error {
	if n.script != "" {
		return n.startScript()
	}
	out, err := os.OpenFile(filepath.Join(n.dir, n.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", n.Name, err)
	}
	defer out.Close()
	cmd := exec.Command(n.args[0], n.args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	own(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pid, n.exited = cmd.Process.Pid, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}(n.exited)
	return nil
}

func (n *Node) startScript() error {
	cmd := exec.Command("setsid", n.script)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	go func() { _ = cmd.Wait() }() // the script becomes the node: it is reaped whenever it ends
	old := n.PID()
	for deadline := time.Now().Add(nodesReadyWithin); time.Now().Before(deadline); time.Sleep(nodesPoll) {
		if pid, err := readPID(strings.TrimSuffix(n.script, ".sh") + ".pid"); err == nil && pid != old {
			n.mu.Lock()
			n.pid = pid
			n.mu.Unlock()
			return nil
		}
	}
	return fmt.Errorf("start %s: it wrote no process id", n.Name)
}

// PID is the process's id.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pid
}

func (n *Node) signal(s syscall.Signal) error {
	pid := n.PID()
	if pid <= 0 {
		return os.ErrProcessDone
	}
	return syscall.Kill(pid, s)
}

// Kill ends the process at once (SIGKILL) and waits until it is gone.
func (n *Node) Kill(ctx context.Context) error {
	if err := n.signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	for n.alive() {
		if !pauseFor(ctx, nodesPoll) {
			return ctx.Err()
		}
	}
	return nil
}

func (n *Node) alive() bool {
	n.mu.Lock()
	exited, pid := n.exited, n.pid
	n.mu.Unlock()
	if exited != nil {
		select {
		case <-exited:
			return false
		default:
			return true
		}
	}
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(state), ") Z ")
}

// Ready waits until the node serves.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nodesReadyWithin)
	defer cancel()
	for {
		if n.healthy(ctx) {
			return nil
		}
		if !n.alive() {
			return fmt.Errorf("%s ended while starting; see its log in %s", n.Name, n.dir)
		}
		if !pauseFor(ctx, nodesPoll) {
			return fmt.Errorf("%s does not serve: %w", n.Name, ctx.Err())
		}
	}
}

func (n *Node) healthy(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/healthz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// pauseFor waits; false when ctx ended first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// usage is what a process takes of the machine.
type usage struct {
	rss, anon int64 // bytes
	files     int
}

func usageOf(pid int) (usage, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, fmt.Errorf("read status of process %d: %w", pid, err)
	}
	var u usage
	for line := range strings.SplitSeq(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64) // the kernel writes numbers
		switch f[0] {
		case "VmRSS:":
			u.rss = kb << 10
		case "RssAnon:":
			u.anon = kb << 10
		}
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return u, fmt.Errorf("count files of process %d: %w", pid, err)
	}
	u.files = len(open)
	return u, nil
}

// Peak is the most that a node has taken in a phase.
type Peak struct {
	RSSMB  float64 `json:"rss_mb"`  // 10^6 bytes
	AnonMB float64 `json:"anon_mb"` // without what is mapped from files
	Files  int     `json:"files"`
}

// samplePeriod separates two looks at the processes.
const samplePeriod = 100 * time.Millisecond

// Sample looks at the nodes until ctx ends and returns their peaks by name.
func (c *Nodes) Sample(ctx context.Context) map[string]Peak {
	peaks := make(map[string]Peak)
	for {
		for _, n := range c.list {
			u, err := usageOf(n.PID())
			if err != nil {
				continue // killed: nothing to measure
			}
			p := peaks[n.Name]
			p.RSSMB, p.AnonMB, p.Files = max(p.RSSMB, float64(u.rss)/1e6), max(p.AnonMB, float64(u.anon)/1e6), max(p.Files, u.files)
			peaks[n.Name] = p
		}
		if !pauseFor(ctx, samplePeriod) {
			return peaks
		}
	}
}

// fetchedCounter counts the bytes of segments that a node of Sluice has fetched from its peers.
const fetchedCounter = "sluice_partition_fetched_bytes_total"

// metric sums a counter over its labels; false when the node cannot be asked.
func metric(ctx context.Context, n *Node, name string) (float64, bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/metrics", nil)
	if err != nil {
		return 0, false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return 0, false
	}
	sum := 0.0
	for line := range strings.SplitSeq(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') {
			v, _ := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64) // Prometheus' text form
			sum += v
		}
	}
	return sum, true
}
