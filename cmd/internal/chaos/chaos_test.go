package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"go/build"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/core/vfs"
)

// serving is a board with a client.
func serving(t *testing.T) (*Board, *http.Client) {
	t.Helper()
	b := New(slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second finds the file of the first, as after a kill
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b, &http.Client{Transport: transport}
}

// post returns the stats, or the error of a refusal.
func post(t *testing.T, c *http.Client, path, body string) (Stats, string) {
	t.Helper()
	resp, err := c.Post("http://x"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Stats
		Error string
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || (resp.StatusCode == 200) != (answer.Error == "") {
		t.Fatal(resp.StatusCode, answer, err)
	}
	return answer.Stats, answer.Error
}

func TestRules(t *testing.T) {
	b, client := serving(t)
	dir := t.TempDir()
	before, err := b.FS(vfs.OS, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	post(t, client, "/fs", `{"rules":[{"op":"create","path":"a*","mode":"fail","count":1}]}`)
	after, err := b.FS(vfs.OS, dir, "") // a disk that comes later has the rules too
	if err != nil {
		t.Fatal(err)
	}
	for _, fs := range []vfs.FS{before, after} {
		if err := vfs.WriteFile(fs, filepath.Join(dir, "b"), nil); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFile(fs, filepath.Join(dir, "a"), nil); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	if s, _ := post(t, client, "/fs", `{"rules":[]}`); s.Injected[vfs.Fail] != 2 || s.Rules != 0 {
		t.Fatal(s)
	}
	if err := vfs.WriteFile(before, filepath.Join(dir, "a"), nil); err != nil {
		t.Fatal(err)
	}
	if s := b.Stats(); s.Injected[vfs.Fail] != 2 {
		t.Fatal(s)
	}
}

func TestRefusals(t *testing.T) {
	_, client := serving(t)
	for _, c := range []struct{ path, body, want string }{
		{"/fs", `{"rules":[{"op":"sync","mode":"fail"},{"mode":"burn"}]}`, `rule 1: mode "burn"`},
		{"/fs", `{"rules":[{"mode":"slow","delay":50}]}`, `unknown field "delay"`},
		{"/fs", `{"rules":[{"mode":"slow","delayMs":-1}]}`, "out of range"},
		{"/fs", `x`, "decode request"},
		{"/clock", `{"offsetMs":1e30}`, "decode request"},
		{"/clock", `{"offsetMs":9000000000000}`, "must be within"},
		{"/", ``, "nothing is here"},
	} {
		if s, err := post(t, client, c.path, c.body); !strings.Contains(err, c.want) || s.Rules != 0 {
			t.Errorf("%s %s: %q, want %q", c.path, c.body, err, c.want)
		}
	}
}

// TestClock: the wall reading jumps, what lasts does not.
func TestClock(t *testing.T) {
	b, client := serving(t)
	for _, offset := range []time.Duration{time.Hour, -time.Hour, 1500 * time.Millisecond, -1500 * time.Millisecond, 20 * 365 * 24 * time.Hour} {
		body, _ := json.Marshal(map[string]int64{"offsetMs": offset.Milliseconds()})
		if s, err := post(t, client, "/clock", string(body)); err != "" || s.ClockOffsetMs != offset.Milliseconds() {
			t.Fatal(s, err)
		}
		before, now, after := time.Now(), b.Now(), time.Now()
		if now.Before(before) || now.After(after) {
			t.Errorf("%v: the monotonic reading has moved by %v", offset, now.Sub(before))
		}
		// The two readings of a time are taken one after the other: what passes on one of them is not exactly what passes on the other.
		wall, passed := now.Round(0).Sub(before.Round(0)), after.Round(0).Sub(before.Round(0))
		if wall < offset || wall > offset+passed {
			t.Errorf("%v: the wall reading has moved by %v", offset, wall)
		}
		if at := now.Add(time.Minute); time.Until(at) > time.Minute || time.Until(at) < 50*time.Second {
			t.Errorf("%v: a minute is %v", offset, time.Until(at))
		}
	}
}

func TestShiftedWithoutMonotonicReading(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 999_999_999, time.UTC)
	if got := shifted(at, time.Nanosecond); !got.Equal(at.Add(time.Nanosecond)) {
		t.Fatal(got)
	}
}

func TestStats(t *testing.T) {
	_, client := serving(t)
	resp, err := client.Get("http://x/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil || !strings.HasPrefix(body.String(), `{"injected":{"fail":0,`) {
		t.Fatal(body.String(), err)
	}
}

// TestReleasesHaveNoSwitchboard: only the tag links it.
func TestReleasesHaveNoSwitchboard(t *testing.T) {
	const us = "sluice/cmd/internal/chaos"
	for _, c := range []struct {
		tags []string
		want bool
	}{{nil, false}, {[]string{"chaos"}, true}} {
		context := build.Default
		context.BuildTags = c.tags
		for _, program := range []string{"sluice", "sluice-edge"} {
			pkg, err := context.ImportDir(filepath.Join("..", "..", program), 0)
			if err != nil {
				t.Fatal(err)
			}
			if linked := slices.Contains(pkg.Imports, us); linked != (c.want && program == "sluice") {
				t.Errorf("%s with tags %v links the switchboard: %v", program, c.tags, linked)
			}
		}
	}
}

func TestVolatile(t *testing.T) {
	b := New(slog.New(slog.DiscardHandler))
	dir := t.TempDir()
	fs, err := b.FS(vfs.OS, dir, "1")
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.Create(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err != nil || b.Stats().VolatileBytes == 0 {
		t.Fatal(err, b.Stats())
	}
	if _, err := vfs.ReadFile(vfs.OS, filepath.Join(dir, "a")); err == nil {
		t.Fatal("the file is on the disk")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"yes", "seed:", "seed:0", "seed:x", "7"} {
		if _, err := b.FS(vfs.OS, dir, text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if _, err := b.FS(vfs.OS, dir, "seed:7"); err != nil {
		t.Fatal(err)
	}
}
