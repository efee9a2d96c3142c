//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func startDev(t *testing.T, data string) *process {
	t.Helper()
	return launch(t, "sluice dev:", nil, filepath.Join(root(t), "bin", "sluice"), "dev", "--data", data, "--kafka", port(9092), "--node", port(9093),
		"--http", port(9644), "--mqtt", mqtt, "--websocket", port(8083), "--edge-http", port(8080), "--page", port(8090), "--sim", port(8091))
}

// browser starts a Chromium that looks at nothing but this machine.
func browser(t *testing.T, language string) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium here: install Debian's package chromium")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("accept-lang", language), chromedp.WindowSize(1500, 1400), chromedp.WSURLReadTimeout(patience))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 4*patience)
	t.Cleanup(cancel)
	return ctx
}

// until polls a JavaScript expression until it is true.
func until(t *testing.T, ctx context.Context, what, expression string) {
	t.Helper()
	began := time.Now()
	defer func() {
		if took := time.Since(began); took > patience/12 {
			t.Logf("%s: waited for %v", what, took)
		}
	}()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(patience))); err != nil {
		look, cancel := context.WithTimeout(ctx, patience/4)
		defer cancel()
		text, lookErr := chromedp.Run(look, chromedp.Evaluate[string]("document.querySelector('#state').textContent + '\\n' + document.body.innerText"))
		t.Fatalf("%s: %v; the page shows (%v):\n%.2000s", what, err, lookErr, text)
	}
}

// snapshot saves a screenshot where SCREENSHOTS says.
func snapshot(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// The city is on the page in both languages, and moves; a value published by hand shows at once; a second start finds its data.
func TestPage(t *testing.T) {
	data := t.TempDir()
	dev := startDev(t, data)
	for _, l := range []struct{ language, title, zone, kind string }{
		{"en", "City, live", "Harbour", "Air quality"},
		{"fr", "La ville en direct", "Port", "Qualité de l’air"},
	} {
		t.Run(l.language, func(t *testing.T) {
			ctx := browser(t, l.language)
			if err := chromedp.Do(ctx, chromedp.Navigate("http://"+port(8090)+"/")); err != nil {
				t.Fatal(err)
			}
			until(t, ctx, "title", fmt.Sprintf("document.querySelector('h1').textContent.includes(%q)", l.title))
			until(t, ctx, "six zones of six charts", "document.querySelectorAll('.zone').length === 6 && document.querySelectorAll('.measure .line[d]').length === 36")
			until(t, ctx, "names", fmt.Sprintf("document.body.innerText.includes(%q) && document.body.innerText.includes(%q)", l.zone, l.kind))
			until(t, ctx, "language", fmt.Sprintf("document.documentElement.lang === %q", l.language))
			until(t, ctx, "readings move", `(() => { const n = Number(document.querySelector('#readings').textContent.replace(/\D/g, ''));
				window.first ??= n; return n > window.first + 50; })()`)
			byHand(t, ctx, l.language)
			snapshot(t, ctx, "page-"+l.language)
		})
	}
	before := endOffset(t)
	dev.stop(syscall.SIGINT)
	dev = startDev(t, data)
	if after := endOffset(t); after < before {
		t.Errorf("topic mqtt ends at %d after a new start, at %d before", after, before)
	}
	dev.stop(syscall.SIGTERM)
}

// filter has the page's list of readings show those of one device only, all of them: where new devices are shown it is one of many that come and go, and it is
// none of them after the connection was lost when it was new.
func filter(t *testing.T, ctx context.Context, device string) {
	t.Helper()
	set := fmt.Sprintf("(() => { const f = document.querySelector('#filter'); f.value = %q; f.dispatchEvent(new Event('input')); return true; })()", device)
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](set)); err != nil {
		t.Fatalf("filter %q: %v", device, err)
	}
}

// byHand publishes values to a zone's topic and looks how soon they show. The machine may be busy: the first in time counts, of three or more.
func byHand(t *testing.T, ctx context.Context, language string) {
	t.Helper()
	const promised = 2 * time.Second
	client := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + mqtt).SetClientID("hand-" + language))
	if token := client.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	defer client.Disconnect(100)
	filter(t, ctx, "by-hand-"+language)
	defer filter(t, ctx, "")
	best := time.Hour
	for i := 0; i < 3 || i < 30 && best > promised; i++ {
		value := 4000 + i // shown as 4,000 in English and 4 000 in French
		began := time.Now()
		token := client.Publish("city/north/temperature/by-hand-"+language, 1, false, `{"value":`+strconv.Itoa(value)+`}`)
		if !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatal(token.Error())
		}
		until(t, ctx, "the value published by hand", fmt.Sprintf(`[...document.querySelectorAll('#feed tr')].some(
			(e) => e.textContent.includes('by-hand-%s') && e.textContent.replace(/[^0-9]/g, '').endsWith('%d'))`, language, value))
		best = min(best, time.Since(began))
	}
	t.Logf("a value published by hand shows after %v", best)
	if best > promised {
		t.Errorf("a value published by hand shows after %v at best, promised are %v", best, promised)
	}
}

func endOffset(t *testing.T) (n int64) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(port(9092)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var ends kadm.ListedOffsets
	wait(t, "the ends of topic mqtt are known", func() error {
		var err error
		ends, err = kadm.NewClient(client).ListEndOffsets(ctx, "mqtt")
		return errors.Join(err, ends.Error())
	})
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

// What the small binary is for: no core in it, and not much of anything.
func TestSmallBinary(t *testing.T) {
	info, err := os.Stat(filepath.Join(root(t), "bin", "sluice-edge"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 20<<20 {
		t.Errorf("sluice-edge has %d bytes, promised are at most 20 MiB", info.Size())
	}
	out, err := exec.Command(filepath.Join(root(t), "bin", "sluice-edge"), "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "sluice-edge version") {
		t.Errorf("--version says %q, %v", out, err)
	}
}
