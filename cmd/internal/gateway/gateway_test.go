package gateway

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/cmd/internal/conf"
	"sluice/core/vfs"
)

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"":                           func(*Config) {},
		"dataDir: must not be empty": func(c *Config) { c.DataDir = "" },
		`uplink.core[1]: "core": must be host:port`:                          func(c *Config) { c.Uplink.Core = []string{"a:1", "core"} },
		`uplink.compression: "rar": must be none, gzip, snappy, lz4 or zstd`: func(c *Config) { c.Uplink.Compression = "rar" },
		"uplink.bytesPerSecond: -1: must not be negative":                    func(c *Config) { c.Uplink.BytesPerSecond = -1 },
		"uplink.linger: 2m0s: must be from 0 to 1m0s":                        func(c *Config) { c.Uplink.Linger = 2 * time.Minute },
		`uplink.windows[0]: "always"`:                                        func(c *Config) { c.Uplink.Windows = []string{"always"} },
		"uplink.tls.key: must be set when cert is":                           func(c *Config) { c.Uplink.TLS.Cert = "a.pem" },
		`log.level: "loud": must be debug, info, warn or error`:              func(c *Config) { c.Log.Level = "loud" },
	} {
		c := Default()
		change(&c)
		err := c.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	c := Default()
	err := conf.Parse("edge.yaml", []byte("uplink:\n  cores: [a:1]\n"), &c)
	if err == nil || !strings.Contains(err.Error(), `edge.yaml: line 2: unknown field "cores" (known: bytesPerSecond, compression, core,`) {
		t.Errorf("the error is %v", err)
	}
}

// local is a gateway on free ports that keeps what it gets.
func local(t *testing.T) Config {
	c := Default()
	c.DataDir = t.TempDir()
	c.MQTT.Listen, c.MQTT.WebSocket.Listen, c.HTTP.Listen = "127.0.0.1:0", "", "127.0.0.1:0"
	c.Uplink.Core = nil
	return c
}

func TestServesWithoutACore(t *testing.T) {
	c := local(t)
	c.Uplink.Core = []string{"127.0.0.1:1"} // nobody is there
	ctx, cancel := context.WithCancel(context.Background())
	serving, done := make(chan string, 1), make(chan error, 1)
	go func() { done <- Run(ctx, vfs.OS, c, slog.New(slog.DiscardHandler), func(a string) { serving <- a }) }()
	var addresses string
	select {
	case addresses = <-serving:
	case err := <-done:
		t.Fatal(err)
	}
	_, url, _ := strings.Cut(addresses, "http ")
	resp, err := http.Post(url+"/v1/ingest/a", "text/plain", strings.NewReader("1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("the gateway answered %d", resp.StatusCode)
	}
	status, err := http.Get(url + "/status")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(status.Body)
	status.Body.Close()
	if err != nil || !bytes.Contains(body, []byte(`"uplink"`)) {
		t.Errorf("the status is %s, %v", body, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAddressInUse(t *testing.T) {
	c := local(t)
	c.MQTT.Listen = "256.0.0.1:1"
	err := Run(t.Context(), vfs.OS, c, slog.New(slog.DiscardHandler), func(string) { t.Error("it serves") })
	if err == nil || !strings.Contains(err.Error(), "open gateway") {
		t.Errorf("the error is %v", err)
	}
}
