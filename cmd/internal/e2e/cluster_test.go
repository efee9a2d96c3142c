//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// patience bounds waits for things that take a second or two on a quiet machine: only a failure waits so long.
const patience = 2 * time.Minute

// offset moves every port, so that the tests run beside a cluster on the usual ones; OFFSET in the environment sets another.
var offset = func() int {
	if n, err := strconv.Atoi(os.Getenv("OFFSET")); err == nil {
		return n
	}
	return 10000
}()

func port(p int) string { return "127.0.0.1:" + strconv.Itoa(p+offset) }

var (
	brokers = []string{port(9092), port(9192), port(9292)}
	mqtt    = port(1883)
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bin", "sluice")); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return dir
}

// process is a program of ours under test.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{} // closed when it has ended
	err  error         // how it ended
}

// launch starts a program and waits for the line that says it serves.
func launch(t *testing.T, serving string, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Dir = t.TempDir()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done); w.Close() }()
	served := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			p.out.WriteString(lines.Text() + "\n")
			if strings.HasPrefix(lines.Text(), serving) {
				close(served)
				io.Copy(io.Discard, r)
				return
			}
		}
	}()
	t.Cleanup(func() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); <-p.done }) // what still runs may still write what is removed next
	select {
	case <-served:
	case <-p.done:
		t.Fatalf("%s ended before it served: %v\n%s", name, p.err, p.out.String())
	case <-time.After(patience):
		t.Fatalf("%s does not serve after %v\n%s", name, patience, p.out.String())
	}
	return p
}

// stop asks the program to stop and checks that it does so cleanly.
func (p *process) stop(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
		if p.err != nil {
			p.t.Errorf("%s ended with %v", p.cmd.Path, p.err)
		}
	case <-time.After(patience):
		p.t.Fatalf("%s has not stopped after %v", p.cmd.Path, patience)
	}
}

// cluster is three core nodes and a gateway, from deploy/cluster.sh.
type cluster struct {
	*process
	data string
}

func startCluster(t *testing.T, data string) *cluster {
	t.Helper()
	dir := root(t)
	c := &cluster{data: data}
	c.process = launch(t, "sluice cluster:", []string{"OFFSET=" + strconv.Itoa(offset)}, filepath.Join(dir, "deploy", "cluster.sh"), data)
	t.Cleanup(func() {
		for _, name := range []string{"core-1", "core-2", "core-3", "edge"} {
			if pid := c.pid(name); pid > 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
				c.gone(name, pid)
			}
		}
		if t.Failed() {
			c.tellLogs()
		}
	})
	return c
}

// tellLogs prints the end of what the processes said.
func (c *cluster) tellLogs() {
	for _, name := range []string{"core-1", "core-2", "core-3", "edge"} {
		data, _ := os.ReadFile(filepath.Join(c.data, name+".log"))
		lines := strings.Split(string(data), "\n")
		c.t.Logf("%s.log ends:\n%s", name, strings.Join(lines[max(0, len(lines)-30):], "\n"))
	}
}

func (c *cluster) pid(name string) int {
	data, err := os.ReadFile(filepath.Join(c.data, name+".pid"))
	if err != nil || len(data) == 0 {
		return 0 // not started yet, or about to say so
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		c.t.Fatalf("%s.pid holds %q", name, data)
	}
	return pid
}

// kill ends a process without warning and waits until it is gone.
func (c *cluster) kill(name string) {
	c.t.Helper()
	c.gone(name, c.shoot(name))
}

// shoot ends a process and does not wait.
func (c *cluster) shoot(name string) (pid int) {
	c.t.Helper()
	if pid = c.pid(name); pid <= 0 {
		c.t.Fatalf("kill %s: it has no process", name) // and 0 would be the test's own group
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatalf("kill %s (%d): %v", name, pid, err)
	}
	return pid
}

// gone waits until a process has ended.
func (c *cluster) gone(name string, pid int) {
	c.t.Helper()
	wait(c.t, fmt.Sprintf("%s, process %d, is gone", name, pid), func() error {
		if running(pid) {
			return errors.New("it still runs")
		}
		return nil
	})
}

// running is false for a process that has ended and only waits to be reaped. Its first thread may have ended while others still hold its files,
// among them the lock on its data: then it runs.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && (len(threads) > 1 || !strings.Contains(string(stat), ") Z "))
}

// restart starts a killed process again with its script, from another directory.
func (c *cluster) restart(name string) {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(c.data, name+".sh"))
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go cmd.Wait()
	wait(c.t, name+" writes its pid", func() error {
		if c.pid(name) != cmd.Process.Pid {
			return fmt.Errorf("pid file says %d, the process is %d", c.pid(name), cmd.Process.Pid)
		}
		return nil
	})
}

// ready waits until the node answers its health check.
func (c *cluster) ready(name string) {
	c.t.Helper()
	addr := port(8080)
	if n, ok := strings.CutPrefix(name, "core-"); ok {
		i, _ := strconv.Atoi(n)
		addr = port(9644 + 100*(i-1))
	}
	wait(c.t, name+" is healthy", func() error { return healthy(addr) })
}

func healthy(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	fmt.Fprintf(conn, "GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, " 200 ") {
		return fmt.Errorf("answered %q, %v", line, err)
	}
	return nil
}

// wait tries until fn succeeds.
func wait(t *testing.T, what string, fn func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not after %v: %v", what, patience, err)
		}
	}
}

// createTopic creates a topic with three replicas as a patient user would: on a busy machine a node may just be taken for dead.
func createTopic(t *testing.T, adm *kadm.Client, partitions int32, name string) {
	t.Helper()
	wait(t, "topic "+name+" is created", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := adm.CreateTopic(ctx, partitions, 3, nil, name)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return nil // an earlier try was carried out, though its answer did not say so
		}
		return err
	})
}
