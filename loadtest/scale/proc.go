package scale

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc: USER_HZ, which Linux shows as 100 whatever the kernel runs at.
const clockTick = 10 * time.Millisecond

// Usage is what one node holds at a moment.
type Usage struct {
	RSSBytes   int64 `json:"rss_bytes"`
	HeapBytes  int64 `json:"heap_bytes,omitempty"` // live and not yet collected objects, by /metrics
	Files      int   `json:"open_files"`
	Goroutines int   `json:"goroutines,omitempty"`
}

// cpuTime is the processor time that a process has used, in user and kernel mode.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	return parseCPU(string(text))
}

// parseCPU reads the fields utime and stime of /proc/<pid>/stat. The command's name before them may hold anything, also brackets.
func parseCPU(stat string) (time.Duration, error) {
	const utime, stime = 11, 12 // counted from the field after the name
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) <= stime {
		return 0, fmt.Errorf("processor time: %q has %d fields after the name", stat, len(f))
	}
	var ticks int64
	for _, field := range []string{f[utime], f[stime]} {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

func residentBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	return parseRSS(string(text))
}

// parseRSS reads the line "VmRSS:  81234 kB" of /proc/<pid>/status.
func parseRSS(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in the status of the process")
}

func openFiles(pid int) (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, fmt.Errorf("count open files: %w", err)
	}
	return len(entries), nil
}

// scrape reads values of /metrics by their names, without labels.
func scrape(ctx context.Context, address string, names ...string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	defer resp.Body.Close()
	out := make(map[string]float64)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			continue
		}
		for _, want := range names {
			if n, err := strconv.ParseFloat(value, 64); err == nil && name == want {
				out[name] = n
			}
		}
	}
	return out, nil
}

// usage is what a node holds now; what /metrics would tell is left out where there is no address.
func usage(ctx context.Context, pid int, http string) (u Usage, err error) {
	if u.RSSBytes, err = residentBytes(pid); err != nil {
		return u, err
	}
	if u.Files, err = openFiles(pid); err != nil || http == "" {
		return u, err
	}
	const heap, goroutines = "go_memstats_heap_alloc_bytes", "go_goroutines"
	values, err := scrape(ctx, http, heap, goroutines)
	u.HeapBytes, u.Goroutines = int64(values[heap]), int(values[goroutines])
	return u, err
}
