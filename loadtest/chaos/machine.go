package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// ErrUnfit is returned when this machine cannot run faults: not Linux, not root, or a program is missing.
var ErrUnfit = errors.New("this machine cannot run faults")

const (
	// commandTimeout bounds ip, iptables, mount and their like, which take milliseconds.
	commandTimeout = 20 * time.Second
	// subnetFirst to subnetLast are the 10.x.0.0/24 among which a run chooses.
	subnetFirst, subnetLast = 77, 126
)

// registry is where runs leave word of themselves, for the case that they crash.
const registry = "/run/sluice-chaos"

// fit says why this machine cannot run faults.
func fit() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("%w: network namespaces need Linux", ErrUnfit)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: network namespaces and mounts need root", ErrUnfit)
	}
	for program, of := range map[string]string{"ip": "iproute2", "tc": "iproute2", "iptables": "iptables", "mkfs.ext4": "e2fsprogs", "mount": "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: %s is missing (package %s)", ErrUnfit, program, of)
		}
	}
	return nil
}

// execute runs a command; the error has what it said.
func execute(ctx context.Context, c command) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func runAll(ctx context.Context, commands []command) error {
	for _, c := range commands {
		if err := execute(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// probe does every kind of change to the network once, so that a kernel that lacks one is found before anything runs.
func (n network) probe(ctx context.Context) error {
	kinds := [][]change{{n.cut(1, 2)}, n.lossy(1, 10), {n.narrow(1, 1024)}, n.divert(1, 2, nodePort, nodePort)}
	for _, k := range kinds {
		a := changes(k...)
		if err := a.begin(ctx); err != nil {
			return fmt.Errorf("try a fault of the network: %w", err)
		}
		if err := a.end(ctx); err != nil {
			return fmt.Errorf("try a fault of the network: %w", err)
		}
	}
	return nil
}

// owned is what a run writes down about itself.
type owned struct {
	PID     int    `json:"pid"`
	Started string `json:"started"` // of the process, so that a number used again is recognised
	ID      string `json:"id"`
	Dir     string `json:"dir"`
	Members int    `json:"members"`
}

func (o owned) file() string { return filepath.Join(registry, o.ID+".json") }

func (o owned) write() error {
	data, err := json.Marshal(o)
	if err != nil {
		panic("BUG: encode the run's entry: " + err.Error())
	}
	if err := os.MkdirAll(registry, 0o755); err != nil {
		return fmt.Errorf("make registry: %w", err)
	}
	if err := os.WriteFile(o.file(), data, 0o644); err != nil {
		return fmt.Errorf("write the run's entry: %w", err)
	}
	return nil
}

// started is the start time of a process in clock ticks since boot, "" when there is none.
func started(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(stat), ") ") // a program's name may hold anything
	if fields := strings.Fields(after); len(fields) > 19 && fields[0] != "Z" {
		return fields[19]
	}
	return ""
}

func (o owned) alive() bool { return o.Started != "" && started(o.PID) == o.Started }

// sweep removes what runs left behind whose process is gone.
func sweep(ctx context.Context) error {
	entries, err := filepath.Glob(filepath.Join(registry, "*.json"))
	if err != nil {
		return fmt.Errorf("list registry: %w", err)
	}
	var errs []error
	for _, file := range entries {
		var o owned
		data, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(data, &o) != nil || o.ID == "" {
			continue // another run removes it just now, or writes it
		}
		if !o.alive() {
			errs = append(errs, remove(ctx, o))
		}
	}
	return errors.Join(errs...)
}

// remove ends the processes in a run's namespaces, removes the namespaces, and unmounts its disks. What is not there any more is no error.
func remove(ctx context.Context, o owned) error {
	n := network{id: o.ID, members: o.Members}
	for m := range o.Members + 1 {
		out, err := exec.CommandContext(ctx, "ip", "netns", "pids", n.namespace(m)).Output()
		if err != nil {
			continue
		}
		for _, text := range strings.Fields(string(out)) {
			if pid, err := strconv.Atoi(text); err == nil {
				killPID(pid)
			}
		}
	}
	for _, c := range n.down() {
		_ = execute(ctx, c)
	}
	err := unmountBelow(ctx, o.Dir)
	return errors.Join(err, os.Remove(o.file()))
}

func killPID(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Kill()
	}
}

// unmountBelow unmounts every disk of a run. A process that was just killed may hold it a moment longer: then it goes when that one does (-l).
func unmountBelow(ctx context.Context, dir string) error {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			errs = append(errs, execute(ctx, command{"umount", "-l", fields[1]}))
		}
	}
	return errors.Join(errs...)
}

// freeSubnet is the first of ours that no interface of this machine has, beginning at one that differs between runs.
func freeSubnet(pid int) (int, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	count := subnetLast - subnetFirst + 1
	for i := range count {
		s := subnetFirst + (pid+i)%count
		if !subnetUsed(addresses, s) {
			return s, nil
		}
	}
	return 0, fmt.Errorf("no free subnet among 10.%d.0.0/24 to 10.%d.0.0/24", subnetFirst, subnetLast)
}

func subnetUsed(addresses []net.Addr, subnet int) bool {
	probe := net.IPv4(10, byte(subnet), 0, 1)
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.Contains(probe) && !n.IP.IsLoopback() {
			return true
		}
	}
	return false
}
