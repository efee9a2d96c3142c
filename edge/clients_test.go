package edge

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	pahov3 "github.com/eclipse/paho.mqtt.golang"

	"sluice/core/vfs"
	"sluice/edge/ingest"
	"sluice/edge/mqtt"
)

// await waits for a condition that another goroutine brings about.
func (g *gateway) await(ok func() bool) {
	g.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			g.t.Fatal("it did not come to that")
		}
	}
}

func (g *gateway) post(path, contentType, body string, headers ...string) (code int, answer string) {
	g.t.Helper()
	return g.request("POST", path, contentType, body, headers...)
}

func (g *gateway) request(method, path, contentType, body string, headers ...string) (code int, answer string) {
	g.t.Helper()
	r, err := http.NewRequest(method, "http://"+g.HTTPAddr()+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

func waitFor(t *testing.T, token pahov3.Token) {
	t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("paho: %v", token.Error())
	}
}

// The 3.1.1 client over TCP and WebSocket: every QoS, a subscriber beside the core, in order.
func TestPaho3(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	for _, address := range []string{"tcp://" + g.Addrs().TCP.String(), "ws://" + g.Addrs().WebSocket.String() + "/mqtt"} {
		kind := address[:2]
		got := make(chan string, 100)
		c := pahov3.NewClient(pahov3.NewClientOptions().AddBroker(address).SetClientID("paho-" + kind).SetOrderMatters(true))
		waitFor(t, c.Connect())
		waitFor(t, c.Subscribe(kind+"/#", 2, func(_ pahov3.Client, m pahov3.Message) {
			got <- fmt.Sprintf("%s %d %s", m.Topic(), m.Qos(), m.Payload())
		}))
		before := len(g.stored())
		for i := range 30 {
			waitFor(t, c.Publish(fmt.Sprintf("%s/%d", kind, i), byte(i%3), false, fmt.Sprint(i)))
		}
		for i := range 30 {
			want := fmt.Sprintf("%s/%d %d %d", kind, i, i%3, i)
			select {
			case m := <-got:
				if m != want {
					t.Fatalf("got %s, want %s", m, want)
				}
			case <-time.After(patience):
				t.Fatalf("%s did not come", want)
			}
		}
		all := g.stored()[before:]
		if len(all) != 30 || all[29].value != "29" {
			t.Fatalf("stored %+v", all)
		}
		c.Disconnect(100)
	}
}

// The MQTT 5 client: properties reach subscribers, the content type reaches the core.
func TestPaho5(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	nc, err := net.Dial("tcp", g.Addrs().TCP.String())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *paho.Publish, 10)
	c := paho.NewClient(paho.ClientConfig{Conn: nc, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(r paho.PublishReceived) (bool, error) { got <- r.Packet; return true, nil },
	}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ack, err := c.Connect(ctx, &paho.Connect{ClientID: "five", KeepAlive: 30, CleanStart: true})
	if err != nil {
		t.Fatal(err)
	}
	if ack.Properties.ReceiveMaximum == nil || *ack.Properties.ReceiveMaximum != 1024 || ack.Properties.MaximumPacketSize == nil {
		t.Fatalf("CONNACK %+v", ack.Properties)
	}
	if _, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "five/+", QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	for _, qos := range []byte{1, 2} {
		p := &paho.Publish{Topic: "five/a", QoS: qos, Payload: []byte("hello"), Properties: &paho.PublishProperties{ContentType: "text/plain", CorrelationData: []byte{1}}}
		p.Properties.User.Add("k", "v")
		if _, err := c.Publish(ctx, p); err != nil {
			t.Fatal(err)
		}
		m := <-got
		if m.Properties.ContentType != "text/plain" || m.Properties.User.Get("k") != "v" || string(m.Properties.CorrelationData) != "\x01" || m.QoS != qos {
			t.Fatalf("got %+v %+v", m, m.Properties)
		}
	}
	if s := g.stored(); len(s) != 2 || s[1].headers["content-type"] != "text/plain" || s[1].headers["mqtt.qos"] != "2" {
		t.Fatalf("stored %+v", s)
	}
	if err := c.Disconnect(&paho.Disconnect{}); err != nil {
		t.Fatal(err)
	}
}

// Permission is looked up for the topic that an alias stands for, and for wills; what is refused is not stored.
func TestUsers(t *testing.T) {
	hash, err := mqtt.HashPassword("secret")
	if err != nil {
		t.Fatal(err)
	}
	c := testConfig(t)
	c.Users = filepath.Join(t.TempDir(), "users.yaml")
	file := fmt.Sprintf("users:\n  - {name: ann, password: %q, publish: [\"city/${user}/#\"], subscribe: [\"city/#\"]}\n", hash)
	if err := os.WriteFile(c.Users, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, vfs.OS, c)
	for _, h := range []hello{{id: "x", clean: true}, {id: "x", clean: true, user: "ann", password: "wrong"}, {id: "x", clean: true, user: "bob", password: "secret"}} {
		d := g.dial(4)
		flags, tail := byte(2), []byte{}
		if h.user != "" {
			flags, tail = 0xC2, append(text(h.user), text(h.password)...)
		}
		d.send(frame(0x10, append(append(append(text("MQTT"), 4, flags, 0, 0), text("x")...), tail...)))
		if first, body := d.next(); first != 0x20 || body[1] != 4 {
			t.Fatalf("%+v: %x % x", h, first, body)
		}
	}
	d, _ := g.connect(5, hello{id: "dev", clean: true, user: "ann", password: "secret"})
	d.publish(publish{topic: "city/ann/t", payload: "yes", qos: 1, id: 1, alias: 1})
	d.publish(publish{topic: "other", payload: "no", qos: 1, id: 2, alias: 2})
	d.publish(publish{payload: "no", qos: 1, id: 3, alias: 2})
	d.publish(publish{payload: "no", qos: 2, id: 4, alias: 2})
	d.publish(publish{payload: "yes", qos: 1, id: 5, alias: 1})
	for i, want := range []struct{ kind, reason byte }{{puback, 0}, {puback, 0x87}, {puback, 0x87}, {pubrec, 0x87}, {puback, 0}} {
		if reason := d.acked(want.kind, uint16(i+1)); reason != want.reason {
			t.Fatalf("answer %d: 0x%02x", i+1, reason)
		}
	}
	same(t, storedValues(g.stored()), "yes", "yes")
	if code, answer := g.post("/v1/ingest/city/ann/t", "text/plain", "x"); code != 401 {
		t.Fatalf("HTTP without a name: %d %s", code, answer)
	}
	if code, answer := g.post("/v1/ingest/city/ann/t", "text/plain", "x", "Authorization", "Basic YW5uOnNlY3JldA=="); code != 200 {
		t.Fatalf("HTTP as ann: %d %s", code, answer)
	}
	if code, answer := g.post("/v1/ingest/other", "text/plain", "x", "Authorization", "Basic YW5uOnNlY3JldA=="); code != 403 {
		t.Fatalf("HTTP as ann elsewhere: %d %s", code, answer)
	}
}

// What panics mochi's decoder, and other broken packets, end their connection and no other.
func TestBrokenPacketsCostTheirConnectionOnly(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	good, _ := g.connect(4, hello{id: "good", clean: true})
	for _, b := range [][]byte{
		frame(0x82, append([]byte{0, 1, 0}, text("a")...)),       // SUBSCRIBE cut before its options
		frame(0x82, []byte{0, 1, 200, 1}),                        // properties past the end
		frame(0x30, []byte{0xff, 0xff}),                          // topic past the end
		frame(0x32, append(text("a"), 0, 1, 0xff, 0xff, 0xff)),   // property length cut
		frame(0x32, append(text("a"), 0, 1, 5, 0x26, 0, 9, 'x')), // property cut
		{0xf0, 0}, {0x00, 0}, {0x30, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		d, _ := g.connect(5, hello{id: "bad", clean: true})
		d.send(b)
		d.ends()
	}
	good.publish(publish{topic: "a", payload: "still here", qos: 1, id: 1})
	good.acked(puback, 1)
}

func TestReceiveMaximum(t *testing.T) {
	c := testConfig(t)
	c.MQTT.ReceiveMaximum = 3
	g := startGateway(t, vfs.OS, c)
	// QoS 2 ids stay open until PUBREL: the fourth is one too many.
	d, _ := g.connect(5, hello{id: "five", clean: true})
	for i := range uint16(4) {
		d.publish(publish{topic: "a", payload: fmt.Sprint(i), qos: 2, id: i + 1})
	}
	for range 4 {
		first, body := d.next()
		if first == 0xE0 {
			if body[0] != 0x93 {
				t.Fatalf("DISCONNECT 0x%02x", body[0])
			}
			break
		}
	}
	// One of 3.1.1 cannot know: it is read as acknowledgements go out, and loses nothing.
	old, _ := g.connect(4, hello{id: "three", clean: true})
	var all []byte
	for i := range uint16(200) {
		all = append(all, old.encode(publish{topic: "b", payload: fmt.Sprint(i), qos: 1, id: i + 1})...)
	}
	old.send(all)
	for i := range uint16(200) {
		old.acked(puback, i+1)
	}
}

func TestWillIsStored(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	d := g.dial(4)
	body := append(append(text("MQTT"), 4, 2|4|1<<3, 0, 0), text("dying")...)
	d.send(frame(0x10, append(append(body, text("last/words")...), text("gone")...)))
	d.next()
	d.nc.Close()
	g.await(func() bool { return len(g.stored()) == 1 })
	if s := g.stored()[0]; s.key != "last/words" || s.value != "gone" || s.headers["mqtt.client"] != "dying" || s.headers["mqtt.qos"] != "1" {
		t.Fatalf("stored %+v", s)
	}
}

// A crash of the gateway is not the death of its devices: who comes back soon has not died.
func TestWillWaitsForTheDeviceAfterACrash(t *testing.T) {
	for _, flags := range []byte{2 | 4, 4} { // clean, and with a session
		mem := vfs.NewMem()
		g := startGateway(t, mem, testConfig(t))
		connect := append(append(append(append(text("MQTT"), 4, flags, 0, 0), text("dev")...), text("last")...), text("gone")...)
		d := g.dial(4)
		d.send(frame(0x10, connect))
		d.next()
		sub, _ := g.connect(4, hello{id: "other"})
		sub.subscribe("x", 1) // its SUBACK says that all sessions are stored
		fs, c := g.crashed(mem)
		g.mustStop()
		g = startGateway(t, fs, c)
		d = g.dial(4)
		d.send(frame(0x10, connect))
		d.next()
		d.publish(publish{topic: "a", payload: "alive", qos: 1, id: 1})
		d.acked(puback, 1)
		same(t, storedValues(g.stored()), "alive")
		g.mustStop()
	}
}

// Over TLS, a certificate's common name is the user.
func TestTLS(t *testing.T) {
	c := testConfig(t)
	certs := newCertificates(t)
	c.MQTT.TLS = mqtt.TLSConfig{Listen: "127.0.0.1:0", Cert: certs.cert, Key: certs.key, ClientCA: certs.ca}
	c.Users = filepath.Join(t.TempDir(), "users.yaml")
	if err := os.WriteFile(c.Users, []byte("users:\n  - {name: localhost, publish: [\"own/#\"]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, vfs.OS, c)
	nc, err := tls.Dial("tcp", g.Addrs().TLS.String(), certs.client)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	d := &device{t, nc, bufio.NewReader(nc), 5}
	d.send(frame(0x10, append(append(text("MQTT"), 5, 2, 0, 0, 0), text("dev")...)))
	if first, body := d.next(); first != 0x20 || body[1] != 0 {
		t.Fatalf("CONNACK % x", body)
	}
	d.publish(publish{topic: "own/a", payload: "yes", qos: 1, id: 1})
	d.publish(publish{topic: "a", payload: "no", qos: 1, id: 2})
	if a, b := d.acked(puback, 1), d.acked(puback, 2); a != 0 || b != 0x87 {
		t.Fatalf("PUBACK 0x%02x and 0x%02x", a, b)
	}
	same(t, storedValues(g.stored()), "yes")
	without := certs.client.Clone()
	without.Certificates = nil
	if nc, err := tls.Dial("tcp", g.Addrs().TLS.String(), without); err == nil { // TLS 1.3 tells with the first read
		defer nc.Close()
		if _, err := nc.Read(make([]byte, 1)); err == nil {
			t.Fatal("a client without a certificate was let in")
		}
	}
}

// certificates are one self-signed for localhost that is also its own authority.
type certificates struct {
	cert, key, ca string
	client        *tls.Config
}

func newCertificates(t *testing.T) certificates {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	dir := t.TempDir()
	c := certificates{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), ca: filepath.Join(dir, "cert.pem")}
	for name, b := range map[string][]byte{c.cert: certPEM, c.key: keyPEM} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	c.client = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	return c
}

func TestRouting(t *testing.T) {
	c := testConfig(t)
	c.Routing = append(c.Routing, ingest.Rule{Filter: "city/+/temperature/#", Topic: "temperature", Key: "${2}"})
	g := startGateway(t, vfs.OS, c)
	d, _ := g.connect(4, hello{id: "dev", clean: true})
	d.publish(publish{topic: "city/north/temperature/7", payload: "21", qos: 1, id: 1})
	d.acked(puback, 1)
	if code, answer := g.post("/v1/ingest/city/south/temperature/1", "application/json", "22"); code != 200 || answer != `{"accepted":1}` {
		t.Fatalf("HTTP %d %s", code, answer)
	}
	all := g.stored()
	if len(all) != 2 || all[0].to != "temperature" || all[0].key != "north" || all[1].to != "temperature" || all[1].key != "south" || all[1].headers["mqtt.client"] != "http" {
		t.Fatalf("stored %+v", all)
	}
}

func TestWebSocketOrigin(t *testing.T) {
	c := testConfig(t)
	c.MQTT.WebSocket.Origins = []string{"https://city.example"}
	g := startGateway(t, vfs.OS, c)
	for origin, want := range map[string]bool{"https://city.example": true, "https://evil.example": false, "http://127.0.0.1:8090": true, "": true} {
		o := pahov3.NewClientOptions().AddBroker("ws://" + g.Addrs().WebSocket.String() + "/mqtt").SetClientID("ws").SetConnectRetry(false)
		o.SetHTTPHeaders(http.Header{})
		if origin != "" {
			o.SetHTTPHeaders(http.Header{"Origin": {origin}})
		}
		client := pahov3.NewClient(o)
		token := client.Connect()
		if !token.WaitTimeout(patience) || (token.Error() == nil) != want {
			t.Errorf("origin %q: error %v, want success %v", origin, token.Error(), want)
		}
		client.Disconnect(10)
	}
}

// A thousand devices fit into the small box's budget with much to spare.
func TestMemoryOfAThousandConnections(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	const devices = 1000
	for i := range devices {
		d, _ := g.connect(4, hello{id: fmt.Sprint("dev", i)})
		d.publish(publish{topic: fmt.Sprint("city/", i), payload: "21.5", qos: 1, id: 1})
		d.acked(puback, 1)
		d.r = nil // the client's own buffer does not count
	}
	each := (int64(used()) - int64(before)) / devices
	t.Logf("%d bytes a connection, client's half included", each)
	if each > 24<<10 {
		t.Fatalf("%d bytes a connection", each)
	}
}

func TestConfigThatIsRefused(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"dataDir: must not be empty": func(c *Config) { c.DataDir = "" },
		`mqtt.listen: "1883": want host:port: address 1883: missing port in address`:                                 func(c *Config) { c.MQTT.Listen = "1883" },
		"mqtt.receiveMaximum: 0: must be from 1 to 65535":                                                            func(c *Config) { c.MQTT.ReceiveMaximum = 0 },
		`mqtt.webSocket.path: "mqtt": must begin with /`:                                                             func(c *Config) { c.MQTT.WebSocket.Path = "mqtt" },
		`mqtt.tls: cert "" and key "": both files are needed`:                                                        func(c *Config) { c.MQTT.TLS.Listen = "127.0.0.1:8883" },
		"http.maxBatch: 0: must be from 1 to 100000":                                                                 func(c *Config) { c.HTTP.MaxBatch = 0 },
		"buffer.budgetBytes: 5: must be 0 (no bound) or at least 1048576":                                            func(c *Config) { c.Buffer.BudgetBytes = 5 },
		`buffer.whenFull: "drop": want refuse or drop-oldest`:                                                        func(c *Config) { c.Buffer.WhenFull = "drop" },
		`routing[0].filter: filter "": not a topic filter`:                                                           func(c *Config) { c.Routing = append(c.Routing, ingest.Rule{Topic: "t"}) },
		"users: a listener is not on localhost and there is no file of users; name one, or set allowAnonymous: true": func(c *Config) { c.MQTT.Listen = "0.0.0.0:1883" },
	} {
		c := Default()
		change(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	u := url.URL{Host: c.MQTT.Listen}
	if u.Port() != "1883" || c.MQTT.WebSocket.Listen != "127.0.0.1:8083" || c.HTTP.Listen != "127.0.0.1:8080" || c.MQTT.WebSocket.Path != "/mqtt" {
		t.Fatalf("defaults %+v", c)
	}
}
