package edge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sluice/core/record"
	"sluice/core/vfs"
	"sluice/edge/buffer"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// fasthttp's worker pool has a cleaner that ends up to ten seconds after the server, and its clock never ends.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// patience is how long a test waits for what must come: only a failure waits so long, however slow the machine.
const patience = time.Minute

// testConfig is a gateway on free ports.
func testConfig(t *testing.T) Config {
	c := Default()
	c.DataDir = t.TempDir()
	c.MQTT.Listen, c.MQTT.WebSocket.Listen, c.HTTP.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.HTTP.Timeout = patience
	return c
}

// gateway is a running one.
type gateway struct {
	*Gateway
	t    *testing.T
	stop func() error
}

func startGateway(t *testing.T, fs vfs.FS, c Config) *gateway {
	t.Helper()
	g, err := OpenFS(fs, c, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	<-g.Ready()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { stop() })
	return &gateway{g, t, stop}
}

func (g *gateway) mustStop() {
	g.t.Helper()
	if err := g.stop(); err != nil {
		g.t.Fatal(err)
	}
}

// stored is a record for the core.
type stored struct {
	to, key, value string
	headers        map[string]string
}

func (g *gateway) stored() []stored { return storedIn(g.t, g.Buffer(), g.Buffer().Synced()) }

func storedIn(t *testing.T, b *buffer.Buffer, end int64) []stored {
	t.Helper()
	var all []stored
	for at := b.Log().Start(); at < end; {
		chunk, err := b.Log().Read(at, 1<<20, end)
		if err != nil {
			t.Fatal(err)
		}
		buf, err := chunk.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for len(buf) > 0 {
			batch, rest, err := record.Next(buf)
			if err != nil {
				t.Fatal(err)
			}
			err = batch.Each(func(r record.Record) error {
				if len(r.Headers) == 0 || r.Headers[0].Key != buffer.HeaderTo {
					return nil
				}
				s := stored{string(r.Headers[0].Value), string(r.Key), string(r.Value), map[string]string{}}
				for _, h := range r.Headers[1:] {
					s.headers[h.Key] = string(h.Value)
				}
				all = append(all, s)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			buf = rest
		}
		at = chunk.Next()
		chunk.Release()
	}
	return all
}

func storedValues(all []stored) []string {
	var values []string
	for _, s := range all {
		values = append(values, s.value)
	}
	return values
}

// crashed is the gateway as it is found after the power went: the log as a crash leaves it, the sessions as they were written last.
func (g *gateway) crashed(mem *vfs.Mem) (vfs.FS, Config) {
	g.t.Helper()
	fs := mem.CrashClone(nil)
	c := g.config
	old := c.DataDir
	c.DataDir = g.t.TempDir()
	if err := makeDir(fs, filepath.Dir(c.DataDir)); err != nil {
		g.t.Fatal(err)
	}
	if err := fs.Rename(old, c.DataDir); err != nil {
		g.t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(old), filepath.Dir(c.DataDir)} {
		if err := fs.SyncDir(dir); err != nil {
			g.t.Fatal(err)
		}
	}
	sessions, err := os.ReadFile(filepath.Join(old, "sessions.db"))
	if err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.DataDir, "sessions.db"), sessions, 0o600); err != nil {
		g.t.Fatal(err)
	}
	return fs, c
}

// A device speaks packets, byte by byte as the test wants them.
type device struct {
	t       *testing.T
	nc      net.Conn
	r       *bufio.Reader
	version byte
}

func (g *gateway) dial(version byte) *device {
	g.t.Helper()
	nc, err := net.Dial("tcp", g.Addrs().TCP.String())
	if err != nil {
		g.t.Fatal(err)
	}
	d := &device{g.t, nc, bufio.NewReader(nc), version}
	g.t.Cleanup(func() { nc.Close() })
	return d
}

type hello struct {
	id             string
	clean          bool
	expiry         uint32 // MQTT 5
	user, password string
}

// connect returns Session Present.
func (g *gateway) connect(version byte, h hello) (*device, bool) {
	g.t.Helper()
	d := g.dial(version)
	flags := byte(0)
	if h.clean {
		flags |= 2
	}
	if h.user != "" {
		flags |= 0xC0
	}
	body := append(text("MQTT"), version, flags, 0, 0)
	if version == 5 {
		body = binary.BigEndian.AppendUint32(append(body, 5, 0x11), h.expiry)
	}
	body = append(body, text(h.id)...)
	if h.user != "" {
		body = append(append(body, text(h.user)...), text(h.password)...)
	}
	d.send(frame(0x10, body))
	kind, ack := d.next()
	if kind != 0x20 || ack[1] != 0 {
		g.t.Fatalf("answer to CONNECT: %x % x", kind, ack)
	}
	return d, ack[0] == 1
}

func text(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func frame(first byte, body []byte) []byte {
	b := []byte{first}
	n := len(body)
	for ; n > 127; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(append(b, byte(n)), body...)
}

func (d *device) send(packets ...[]byte) {
	d.t.Helper()
	if _, err := d.nc.Write(bytes.Join(packets, nil)); err != nil {
		d.t.Fatal(err)
	}
}

type publish struct {
	topic, payload string
	qos            byte
	id             uint16
	dup, retain    bool
	alias          byte
}

func (d *device) encode(p publish) []byte {
	first := 0x30 | p.qos<<1
	if p.dup {
		first |= 8
	}
	if p.retain {
		first |= 1
	}
	body := text(p.topic)
	if p.qos > 0 {
		body = append(body, byte(p.id>>8), byte(p.id))
	}
	if d.version == 5 && p.alias > 0 {
		body = append(body, 3, 0x23, 0, p.alias)
	} else if d.version == 5 {
		body = append(body, 0)
	}
	return frame(first, append(body, p.payload...))
}

func (d *device) publish(p publish) { d.t.Helper(); d.send(d.encode(p)) }

// read returns the next packet, or the error that ended the connection.
func (d *device) read() (first byte, body []byte, err error) {
	d.nc.SetReadDeadline(time.Now().Add(patience))
	if first, err = d.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(d.r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(d.r, body)
	return first, body, err
}

func (d *device) next() (first byte, body []byte) {
	d.t.Helper()
	first, body, err := d.read()
	if err != nil {
		d.t.Fatalf("read a packet: %v", err)
	}
	return first, body
}

// acked reads an acknowledgement and returns its reason.
func (d *device) acked(kind byte, id uint16) (reason byte) {
	d.t.Helper()
	first, body := d.next()
	if first != kind || binary.BigEndian.Uint16(body) != id {
		d.t.Fatalf("got %x % x, want %x of packet %d", first, body, kind, id)
	}
	if len(body) > 2 {
		return body[2]
	}
	return 0
}

const (
	puback  = 0x40
	pubrec  = 0x50
	pubrel  = 0x62
	pubcomp = 0x70
)

func (d *device) release(id uint16) {
	d.t.Helper()
	d.send(frame(pubrel, []byte{byte(id >> 8), byte(id)}))
	d.acked(pubcomp, id)
}

func (d *device) ends() {
	d.t.Helper()
	for {
		if _, _, err := d.read(); err != nil {
			if os.IsTimeout(err) {
				d.t.Fatal("the connection is still open")
			}
			return
		}
	}
}

func (d *device) subscribe(filter string, qos byte) {
	d.t.Helper()
	body := []byte{0, 77}
	if d.version == 5 {
		body = append(body, 0)
	}
	d.send(frame(0x82, append(append(body, text(filter)...), qos)))
	first, answer := d.next()
	if first != 0x90 || answer[len(answer)-1] != qos {
		d.t.Fatalf("answer to SUBSCRIBE: %x % x", first, answer)
	}
}

// gets reads a message, and acknowledges it when it has QoS 1.
func (d *device) gets(topic, payload string) {
	d.t.Helper()
	first, body := d.next()
	if first>>4 != 3 {
		d.t.Fatalf("got %x % x, want a message", first, body)
	}
	n := int(binary.BigEndian.Uint16(body))
	rest := body[2+n:]
	if first&6 != 0 {
		d.send(frame(puback, rest[:2]))
		rest = rest[2:]
	}
	if d.version == 5 {
		rest = rest[1+rest[0]:]
	}
	if string(body[2:2+n]) != topic || string(rest) != payload {
		d.t.Fatalf("got %q: %q, want %q: %q", body[2:2+n], rest, topic, payload)
	}
}

// same compares what is stored.
func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("stored %q, want %q", got, want)
	}
}
