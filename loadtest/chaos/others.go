package chaos

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	// othersEvery is the time over which the processors are counted: Linux counts in steps of 10 ms.
	othersEvery = 250 * time.Millisecond
	// othersMin is the part of the processors that others have on a quiet machine at most: the kernel's own threads, which work for the nodes' disks and
	// links, are among them.
	othersMin = 0.25
	// clockTick is the unit of processor times in /proc: USER_HZ, which Linux shows as 100 whatever the kernel runs at.
	clockTick = 10 * time.Millisecond
)

// usage is what the processors have done so far.
type usage struct {
	at        time.Time
	all, ours time.Duration
}

// others notes when programs that are not of this run had a good part of the processors, or the machine's own host did.
func (s *stalls) others(ctx context.Context, ours []*process) {
	last, err := used(ours)
	if err != nil {
		return // no Linux: then it is not known, and excuses nothing
	}
	for sleep(ctx, othersEvery) == nil {
		now, err := used(ours)
		if err != nil {
			return
		}
		s.note(last, now, runtime.NumCPU())
		last = now
	}
}

// note compares two moments.
func (s *stalls) note(last, now usage, processors int) {
	span := now.at.Sub(last.at)
	part := float64(now.all-last.all-(now.ours-last.ours)) / float64(span) / float64(processors)
	if span <= 0 || part < othersMin {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.taken = append(s.mu.taken, taken{stall{last.at.Sub(s.start), now.at.Sub(s.start)}, min(part, 1)})
}

// used counts. What a child of ours has used is in this process's own numbers as soon as it has ended and was waited for.
func used(ours []*process) (u usage, err error) {
	u.at = time.Now()
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, fmt.Errorf("read processor times: %w", err)
	}
	if u.all, err = parseAll(string(data)); err != nil {
		return u, err
	}
	if u.ours, err = usedBy("self"); err != nil {
		return u, err
	}
	for _, p := range ours {
		if pid := p.pid(); pid > 0 {
			if t, err := usedBy(strconv.Itoa(pid)); err == nil { // it may just have ended
				u.ours += t
			}
		}
	}
	return u, nil
}

// parseAll reads the first line of /proc/stat: all but what the processors were idle. Steal is what the host gave to others.
func parseAll(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("processor times: %q is not understood", line)
	}
	const user, nice, system, irq, softirq, steal = 1, 2, 3, 6, 7, 8
	return ticks(f, user, nice, system, irq, softirq, steal)
}

// usedBy is what a process and the children that it has waited for have used.
func usedBy(pid string) (time.Duration, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read processor times: %w", err)
	}
	const utime, stime, cutime, cstime = 11, 12, 13, 14 // counted from the field after the name, which may hold anything
	return ticks(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])), utime, stime, cutime, cstime)
}

func ticks(fields []string, which ...int) (sum time.Duration, err error) {
	for _, i := range which {
		if i >= len(fields) {
			return 0, fmt.Errorf("processor times: %d fields are too few", len(fields))
		}
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor times: %w", err)
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}
