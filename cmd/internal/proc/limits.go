package proc

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

// memoryShare is the part of the machine's memory that the runtime tries to stay below:
// the page cache serves reads and must keep the larger part.
const memoryShare = 0.4

// memoryMax is what no process of the house needs more of, however large the machine is: everything that grows with load is bounded to less, and what
// the collector has not got to yet shall not count for much more.
const memoryMax = 1536 << 20

// RaiseFileLimit raises the number of files the process may have open to what the system
// allows, and returns it. A core node keeps a file per recently read segment.
func RaiseFileLimit() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raise limit of open files to %d: %w", limit.Max, err)
	}
	return uint64(limit.Cur), nil
}

// LimitMemory sets the runtime's soft memory limit from the machine's memory or its control
// group's, unless GOMEMLIMIT says otherwise. It returns the limit in bytes, 0 when it left
// the runtime's own.
func LimitMemory() int64 {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0
	}
	total := machineMemory()
	if group := groupMemory(); group > 0 && (total == 0 || group < total) {
		total = group
	}
	if total == 0 {
		return 0
	}
	limit := min(int64(float64(total)*memoryShare), memoryMax)
	debug.SetMemoryLimit(limit)
	return limit
}

func machineMemory() int64 {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return parseMemTotal(string(info))
}

// parseMemTotal reads the line "MemTotal:  16303428 kB".
func parseMemTotal(info string) int64 {
	for line := range strings.SplitSeq(info, "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// groupMemory is the limit of the control group (version 2), 0 when there is none.
func groupMemory() int64 {
	text, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is none
	return n
}

// WritePIDFile writes the process's own id, replacing what was there. The function it
// returns removes the file.
func WritePIDFile(name string) (remove func(), err error) {
	temp := name + ".new"
	if err := os.WriteFile(temp, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	if err := os.Rename(temp, name); err != nil {
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	return func() { _ = os.Remove(name) }, nil
}
