package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"sluice/core/vfs"
)

var errNotFound = errors.New("nothing is here: POST /fs, POST /clock, GET /stats")

// offsetMaxMs keeps shifted clocks within what a Time with a monotonic reading can say (1885 to 2157).
const offsetMaxMs int64 = 50 * 365 * 24 * 3600 * 1000

// wireRule is a rule as the socket takes it.
type wireRule struct {
	Op      vfs.Class `json:"op"`
	Path    string    `json:"path"`
	Mode    vfs.Mode  `json:"mode"`
	DelayMs int64     `json:"delayMs"`
	Count   int64     `json:"count"`
}

func (b *Board) postFS(body []byte) error {
	var req struct {
		Rules []wireRule `json:"rules"`
	}
	if err := decode(body, &req); err != nil {
		return err
	}
	list := make([]vfs.Rule, len(req.Rules))
	for i, r := range req.Rules {
		if r.DelayMs < 0 || r.DelayMs > math.MaxInt64/int64(time.Millisecond) {
			return fmt.Errorf("rule %d: delayMs %d: out of range", i, r.DelayMs)
		}
		list[i] = vfs.Rule{Op: r.Op, Path: r.Path, Mode: r.Mode, Delay: time.Duration(r.DelayMs) * time.Millisecond, Count: r.Count}
	}
	if err := b.SetRules(list); err != nil {
		return err
	}
	b.logger.Warn("faults of the file system are set", "rules", req.Rules)
	return nil
}

func (b *Board) postClock(body []byte) error {
	var req struct {
		OffsetMs int64 `json:"offsetMs"`
	}
	if err := decode(body, &req); err != nil {
		return err
	}
	if req.OffsetMs < -offsetMaxMs || req.OffsetMs > offsetMaxMs {
		return fmt.Errorf("offsetMs %d: must be within %d", req.OffsetMs, offsetMaxMs)
	}
	b.clock.Set(time.Duration(req.OffsetMs) * time.Millisecond)
	b.logger.Warn("the clock is set", "offsetMs", req.OffsetMs)
	return nil
}

// decode is strict: a misspelt fault is worse than none.
func decode(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	return nil
}
