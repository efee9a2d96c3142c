package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testTimeout bounds what a test waits for; it is far above what anything takes.
const testTimeout = time.Minute

// result is what one command line gave.
type result struct {
	code     int
	out, err string
}

// sluice runs one command line in this process.
func sluice(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	var out, errs bytes.Buffer
	code := run(ctx, args, streams{strings.NewReader(stdin), &out, &errs})
	return result{code, out.String(), errs.String()}
}

// ok runs one command line that must succeed, and returns what it printed.
func ok(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	r := sluice(t, stdin, args...)
	if r.code != 0 {
		t.Fatalf("sluice %s: exit code %d: %s", strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// eventually runs one command line until it succeeds and what it printed is as wanted: nodes tell each other how they are now and then, and on a busy machine
// one may just be taken for dead.
func eventually(t *testing.T, wanted func(out string) bool, args ...string) {
	t.Helper()
	late := time.After(testTimeout)
	for {
		r := sluice(t, "", args...)
		if r.code == 0 && wanted(r.out) {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-late:
			t.Fatalf("sluice %s: exit code %d after %v, printed %q, %s", strings.Join(args, " "), r.code, testTimeout, r.out, r.err)
		}
	}
}

// has is for eventually.
func has(parts ...string) func(string) bool {
	return func(out string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(out, p) })
	}
}

// asJSON runs one command line with -o json and decodes what it printed.
func asJSON[T any](t *testing.T, args ...string) T {
	t.Helper()
	var v T
	text := ok(t, "", append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("sluice %s printed %q: %v", strings.Join(args, " "), text, err)
	}
	return v
}

// process is a command that runs until it is stopped.
type process struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan int
	errs   *bytes.Buffer
	line   string // the one it printed when it served
}

// start runs a command line and waits until it says that it serves.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	read, write := io.Pipe()
	p := &process{t: t, cancel: cancel, done: make(chan int, 1), errs: new(bytes.Buffer)}
	go func() {
		code := run(ctx, args, streams{strings.NewReader(""), write, p.errs})
		write.Close()
		p.done <- code
	}()
	buf := make([]byte, 4096)
	n, err := read.Read(buf)
	if err != nil {
		code := <-p.done
		cancel()
		t.Fatalf("sluice %s ended with %d: %s", strings.Join(args, " "), code, p.errs)
	}
	p.line = strings.TrimSpace(string(buf[:n]))
	go io.Copy(io.Discard, read)
	t.Cleanup(p.stop)
	return p
}

// stop ends the process and checks that it ended cleanly.
func (p *process) stop() {
	p.t.Helper()
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.cancel = nil
	if code := <-p.done; code != 0 {
		p.t.Errorf("the process ended with %d: %s", code, p.errs)
	}
}

// address finds one of the addresses that the process printed.
func (p *process) address(name string) string {
	p.t.Helper()
	m := regexp.MustCompile(name + ` (?:http://)?([0-9.]+:[0-9]+)`).FindStringSubmatch(p.line)
	if m == nil {
		p.t.Fatalf("no address of %s in %q", name, p.line)
	}
	return m[1]
}

// startCore runs a core node on free ports and makes it the one that tools speak to.
func startCore(t *testing.T, data string, more ...string) *process {
	t.Helper()
	p := start(t, append([]string{"core", "--data", data, "--kafka", "127.0.0.1:0", "--node", "127.0.0.1:0", "--http", "127.0.0.1:0"}, more...)...)
	t.Setenv("SLUICE_BOOTSTRAP", p.address("kafka"))
	return p
}

func TestWrongUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("kafka: nowhere\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		want string
	}{
		{"", "a command is missing"},
		{"topc", `unknown command "topc"`},
		{"topc", "hint: did you mean topic?"},
		{"topic", "a command is missing"},
		{"topic craete", "did you mean create?"},
		{"topic create", "requires at least 1 arg"},
		{"topic create a -c retention.ms", `--config "retention.ms": must be name=value`},
		{"topic alter a", "nothing to alter"},
		{"topic list --nix", "unknown flag: --nix"},
		{"topic list -o xml", `--output "xml": must be text or json`},
		{"topic list -b nowhere", `--bootstrap: "nowhere": must be host:port`},
		{"group reset-offsets g", "--to is missing"},
		{"group reset-offsets g --to soon", `--to "soon": must be earliest`},
		{"group reset-offsets g --to earliest -t a:x", `"x" is no partition`},
		{"produce a -z rar", `--compression "rar": must be`},
		{"produce a --acks 2", `--acks "2": must be`},
		{"consume a --from soon", `--from "soon": must be`},
		{"consume a -g g -p 1", "--group and --partition exclude each other"},
		{"core --kafka nowhere", `kafka: "nowhere": must be host:port`},
		{"core -c " + bad, bad + `: kafka: "nowhere": must be host:port`},
		{"edge --core nowhere", `uplink.core[0]: "nowhere": must be host:port`},
		{"bridge --topics= ", "dashboard.topics: must name at least one topic"},
		{"config check " + bad, "hint: `sluice config print --kind core`"},
		{"config print", "name a file"},
		{"config print --kind moon", `--kind "moon": must be core, edge or bridge`},
		{"version now", "unknown command"},
	} {
		r := sluice(t, "", strings.Fields(c.args)...)
		if r.code != 2 || !strings.Contains(r.err, c.want) || !strings.Contains(r.err, "hint: ") {
			t.Errorf("sluice %s: exit code %d, %q, want %q", c.args, r.code, r.err, c.want)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	for _, args := range []string{"topic list", "group list", "produce a", "consume a"} {
		r := sluice(t, "", append(strings.Fields(args), "-b", "127.0.0.1:1", "--timeout", "5s")...)
		if r.code != 1 || !strings.Contains(r.err, "reach 127.0.0.1:1: dial tcp") || !strings.Contains(r.err, "hint: is a node running there?") {
			t.Errorf("sluice %s: exit code %d, %q", args, r.code, r.err)
		}
	}
}

func TestVersionAndHelp(t *testing.T) {
	if got := asJSON[map[string]string](t, "version"); got["version"] == "" || got["go"] == "" {
		t.Errorf("the version is %v", got)
	}
	if got := ok(t, "", "version"); !strings.HasPrefix(got, "sluice ") {
		t.Errorf("the version is %q", got)
	}
	help := ok(t, "", "--help")
	for _, name := range []string{"core", "edge", "bridge", "topic", "group", "produce", "consume", "log", "config", "version", "completion"} {
		if !regexp.MustCompile(`(?m)^  ` + name + ` `).MatchString(help) {
			t.Errorf("help does not show %s", name)
		}
	}
	if got := ok(t, "", "completion", "bash"); !strings.Contains(got, "__start_sluice") {
		t.Error("no completion for bash")
	}
}

func TestConfigCommands(t *testing.T) {
	dir := t.TempDir()
	core, gateway := filepath.Join(dir, "core.yaml"), filepath.Join(dir, "gw.yaml")
	for name, text := range map[string]string{core: "id: 7\nrack: rack7\n", gateway: "mqtt:\n  listen: 127.0.0.1:2883\nuplink:\n  core: []\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := ok(t, "", "config", "check", core, gateway); got != core+": ok (core)\n"+gateway+": ok (edge)\n" {
		t.Errorf("check printed %q", got)
	}
	if got := ok(t, "", "config", "print", core); !strings.Contains(got, "id: 7\n") || !strings.Contains(got, "kafka: 127.0.0.1:9092\n") {
		t.Errorf("print printed %q", got)
	}
	if got := asJSON[map[string]any](t, "config", "print", gateway)["mqtt"].(map[string]any)["listen"]; got != "127.0.0.1:2883" {
		t.Errorf("the address is %v", got)
	}
	for _, kind := range []string{"core", "edge", "bridge"} {
		printed := filepath.Join(dir, kind+"-printed.yaml")
		if err := os.WriteFile(printed, []byte(ok(t, "", "config", "print", "--kind", kind)), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := ok(t, "", "config", "check", printed); got != printed+": ok ("+kind+")\n" {
			t.Errorf("what print printed is %q", got)
		}
	}
	if r := sluice(t, "", "config", "check", filepath.Join(dir, "none.yaml")); r.code != 1 {
		t.Errorf("a missing file: exit code %d, %s", r.code, r.err)
	}
}

func TestCoreServesAndStops(t *testing.T) {
	data, pid := t.TempDir(), filepath.Join(t.TempDir(), "core.pid")
	p := startCore(t, data, "--pid-file", pid, "--id", "4", "--rack", "r4")
	if !strings.HasPrefix(p.line, "sluice core 4 serves: kafka 127.0.0.1:") {
		t.Errorf("it printed %q", p.line)
	}
	if text, err := os.ReadFile(pid); err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(os.Getpid()) {
		t.Errorf("the pid file holds %q, %v", text, err)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/metrics": "sluice_", "/status": `"broker"`} {
		if code, body := httpGet(t, "http://"+p.address("http")+path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s answered %d %.200s", path, code, body)
		}
	}
	second := sluice(t, "", "core", "--data", data, "--kafka", "127.0.0.1:0", "--node", "127.0.0.1:0", "--http", "")
	if second.code != 1 || !strings.Contains(second.err, "in use") || !strings.Contains(second.err, "hint: stop the process") {
		t.Errorf("a second process: exit code %d, %q", second.code, second.err)
	}
	ok(t, "a\nb\n", "produce", "kept")
	p.stop()
	if _, err := os.Stat(pid); !os.IsNotExist(err) {
		t.Errorf("the pid file is still there: %v", err)
	}
	other := sluice(t, "", "core", "--data", data, "--id", "5", "--kafka", "127.0.0.1:0", "--node", "127.0.0.1:0", "--http", "")
	if other.code != 1 || !strings.Contains(other.err, "hint: start with the --id") {
		t.Errorf("another id: exit code %d, %q", other.code, other.err)
	}
	startCore(t, data, "--id", "4")
	if got := ok(t, "", "consume", "kept", "--from", "earliest", "-e"); got != "a\nb\n" && got != "b\na\n" {
		t.Errorf("after a restart the topic holds %q", got)
	}
}

func httpGet(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestEdgeServesAndStops(t *testing.T) {
	p := start(t, "edge", "--data", t.TempDir(), "--mqtt", "127.0.0.1:0", "--websocket", "127.0.0.1:0", "--http", "127.0.0.1:0", "--core", "")
	url := "http://" + p.address("http")
	resp, err := http.Post(url+"/v1/ingest/city/north", "application/json", strings.NewReader(`{"value":5}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("the gateway answered %d", resp.StatusCode)
	}
	if code, _ := httpGet(t, url+"/healthz"); code != 200 {
		t.Errorf("/healthz answered %d", code)
	}
	p.address("mqtt")
	p.address("websocket")
}

// The way of one record: a device's message goes through the gateway and its uplink into the core.
func TestEdgeForwardsToCore(t *testing.T) {
	core := startCore(t, t.TempDir())
	gateway := start(t, "edge", "--data", t.TempDir(), "--mqtt", "127.0.0.1:0", "--websocket", "", "--http", "127.0.0.1:0", "--core", core.address("kafka"))
	resp, err := http.Post("http://"+gateway.address("http")+"/v1/ingest/city/north", "text/plain", strings.NewReader("21.5"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := ok(t, "", "consume", "mqtt", "--from", "earliest", "-n", "1", "-f", `%k %s\n`); got != "city/north 21.5\n" {
		t.Errorf("the core has %q", got)
	}
}
