package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// switchboard speaks with the faults inside a node that was built with them, over a socket in the file system.
type switchboard struct{ socket string }

// fileRule is a fault of the file system: what is done to which operation on which files (a pattern below the data directory).
type fileRule struct {
	Op      string `json:"op"`   // sync, write, create, read, any
	Path    string `json:"path"` // ** stands for any number of directories
	Mode    string `json:"mode"` // fail, slow, lie, full
	DelayMs int    `json:"delayMs,omitempty"`
	Count   int    `json:"count,omitempty"` // how often; 0 = until replaced
}

// files replaces the rules; none means a healthy disk.
func (s switchboard) files(ctx context.Context, rules ...fileRule) error {
	if rules == nil {
		rules = []fileRule{}
	}
	return s.post(ctx, "/fs", map[string]any{"rules": rules})
}

// clock shifts the wall clock that the node uses.
func (s switchboard) clock(ctx context.Context, offset time.Duration) error {
	return s.post(ctx, "/clock", map[string]any{"offsetMs": offset.Milliseconds()})
}

func (s switchboard) post(ctx context.Context, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		panic("BUG: encode fault: " + err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://switchboard"+path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("set fault: %w", err)
	}
	resp, err := s.client().Do(req)
	if err != nil {
		return fmt.Errorf("set fault: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil || resp.StatusCode/100 != 2 {
		return fmt.Errorf("set fault: %s answers %s: %s, %w", path, resp.Status, strings.TrimSpace(string(text)), err)
	}
	return nil
}

// answers tells whether there is a switchboard.
func (s switchboard) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://switchboard/stats", nil)
	if err != nil {
		return false
	}
	resp, err := s.client().Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (s switchboard) client() *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.socket)
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: commandTimeout}
}
