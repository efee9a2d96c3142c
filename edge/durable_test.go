package edge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/core/vfs"
	"sluice/edge/buffer"
)

var both = []byte{4, 5}

// The standard form: value as it came, key and headers as the issue fixes them.
func TestDefaultRouting(t *testing.T) {
	g := startGateway(t, vfs.OS, testConfig(t))
	d, _ := g.connect(4, hello{id: "dev1", clean: true})
	d.publish(publish{topic: "city/north/temperature/7", payload: `{"v":1}`, qos: 1, id: 9})
	d.acked(puback, 9)
	all := g.stored()
	if len(all) != 1 {
		t.Fatalf("stored %+v", all)
	}
	s := all[0]
	if s.to != "mqtt" || s.key != "city/north/temperature/7" || s.value != `{"v":1}` || len(s.headers) != 4 ||
		s.headers["mqtt.client"] != "dev1" || s.headers["mqtt.topic"] != s.key || s.headers["mqtt.qos"] != "1" || len(s.headers["gateway.time"]) != 13 {
		t.Fatalf("stored %+v", s)
	}
}

func TestAcksComeInTheOrderOfTheMessages(t *testing.T) {
	for _, v := range both {
		g := startGateway(t, vfs.OS, testConfig(t))
		d, _ := g.connect(v, hello{id: "dev", clean: true})
		var all []byte
		var want []string
		for i := range uint16(500) {
			want = append(want, fmt.Sprint(i))
			all = append(all, d.encode(publish{topic: "a", payload: fmt.Sprint(i), qos: 1, id: i + 1})...)
		}
		d.send(all)
		for i := range uint16(500) {
			d.acked(puback, i+1)
		}
		same(t, storedValues(g.stored()), want...)
		g.mustStop()
	}
}

// Power goes at every write and sync while devices publish with QoS 1 and 2: what was acknowledged is in the log.
func TestAckedIsStoredAfterEveryCrash(t *testing.T) {
	mem := vfs.NewMem()
	fault := vfs.NewFault(mem)
	type crash struct {
		fs    *vfs.Mem
		acked [2]int64
	}
	var mu sync.Mutex
	var crashes []crash
	var acked [2]atomic.Int64
	random := rand.New(rand.NewPCG(1, 2))
	fault.SetHook(func(op vfs.Op, path string) error {
		if (op == vfs.OpSync || op == vfs.OpWrite) && filepath.Ext(path) == ".log" {
			mu.Lock()
			defer mu.Unlock()
			n := [2]int64{acked[0].Load(), acked[1].Load()}
			crashes = append(crashes, crash{mem.CrashClone(func() bool { return random.IntN(2) == 0 }), n})
		}
		return nil
	})
	c := testConfig(t)
	g := startGateway(t, fault, c)
	var all sync.WaitGroup
	for i, kind := range []byte{puback, pubrec} {
		all.Go(func() {
			d, _ := g.connect(5, hello{id: fmt.Sprint("dev", i), expiry: 1000})
			for n := range uint16(30) {
				d.publish(publish{topic: fmt.Sprint("t", i), payload: fmt.Sprint(n), qos: byte(i + 1), id: n + 1})
				d.acked(kind, n+1)
				acked[i].Add(1)
				if kind == pubrec && n%2 == 0 {
					d.release(n + 1)
				}
			}
		})
	}
	all.Wait()
	g.mustStop()
	if len(crashes) < 60 {
		t.Fatalf("only %d crashes", len(crashes))
	}
	for i, crash := range crashes {
		b, err := buffer.Open(buffer.Options{FS: crash.fs, Dir: filepath.Join(c.DataDir, "buffer")})
		if err != nil {
			t.Fatalf("crash %d: %v", i, err)
		}
		var got [2]int64
		for _, s := range storedIn(t, b, b.Log().End()) {
			n := s.key[1] - '0'
			if s.value != fmt.Sprint(got[n]) {
				t.Fatalf("crash %d: message %d of device %d is %q", i, got[n], n, s.value)
			}
			got[n]++
		}
		if got[0] < crash.acked[0] || got[1] < crash.acked[1] {
			t.Fatalf("crash %d: stored %v, acknowledged %v", i, got, crash.acked)
		}
		b.Log().Close()
	}
}

// What was written but not acknowledged when the power went does not come twice.
func TestResendAfterCrashIsRecognised(t *testing.T) {
	for _, v := range both {
		mem := vfs.NewMem()
		g := startGateway(t, mem, testConfig(t))
		d, _ := g.connect(v, hello{id: "dev", expiry: 1000})
		d.publish(publish{topic: "a", payload: "one", qos: 1, id: 1})
		d.acked(puback, 1)
		d.publish(publish{topic: "a", payload: "two", qos: 1, id: 2})
		d.acked(puback, 2) // let us say that it is lost on the way
		fs, c := g.crashed(mem)
		after := startGateway(t, fs, c)
		d, present := after.connect(v, hello{id: "dev", expiry: 1000})
		if !present {
			t.Fatal("the session is lost")
		}
		d.publish(publish{topic: "a", payload: "two", qos: 1, id: 2, dup: true})
		d.acked(puback, 2)
		d.publish(publish{topic: "a", payload: "three", qos: 1, id: 1, dup: true}) // the id is used, the message is new
		d.acked(puback, 1)
		d.publish(publish{topic: "a", payload: "three", qos: 1, id: 1}) // the same again without DUP is a new message
		d.acked(puback, 1)
		same(t, storedValues(after.stored()), "one", "two", "three", "three")
		after.mustStop()
		g.mustStop()
	}
}

// A taken id stays taken over a crash until it is released, and a released one is free after a crash.
func TestQoS2IdsSurviveCrashes(t *testing.T) {
	mem := vfs.NewMem()
	g := startGateway(t, mem, testConfig(t))
	d, _ := g.connect(5, hello{id: "dev", expiry: 1000})
	d.publish(publish{topic: "a", payload: "one", qos: 2, id: 7})
	d.acked(pubrec, 7)

	fs, c := g.crashed(mem)
	g2 := startGateway(t, fs, c)
	d, _ = g2.connect(5, hello{id: "dev", expiry: 1000})
	for _, dup := range []bool{true, false} {
		d.publish(publish{topic: "a", payload: "one", qos: 2, id: 7, dup: dup})
		if reason := d.acked(pubrec, 7); reason != 0 {
			t.Fatalf("PUBREC 0x%02x", reason)
		}
	}
	d.release(7)

	fs, c = g2.crashed(fs.(*vfs.Mem))
	g3 := startGateway(t, fs, c)
	d, _ = g3.connect(5, hello{id: "dev", expiry: 1000})
	d.send(frame(pubrel, []byte{0, 7}))
	if reason := d.acked(pubcomp, 7); reason != 0x92 {
		t.Fatalf("PUBCOMP 0x%02x for an id that is released", reason)
	}
	d.publish(publish{topic: "a", payload: "two", qos: 2, id: 7})
	d.acked(pubrec, 7)
	same(t, storedValues(g3.stored()), "one", "two")
	g3.mustStop()
	g2.mustStop()
	g.mustStop()
}

// The journal's state is told anew at a clean stop; nothing of it is lost.
func TestInboundStateSurvivesCleanRestart(t *testing.T) {
	c := testConfig(t)
	g := startGateway(t, vfs.OS, c)
	d, _ := g.connect(4, hello{id: "dev"})
	d.publish(publish{topic: "a", payload: "one", qos: 1, id: 1})
	d.acked(puback, 1)
	d.publish(publish{topic: "a", payload: "two", qos: 2, id: 2})
	d.acked(pubrec, 2)
	g.mustStop()
	g = startGateway(t, vfs.OS, c)
	d, present := g.connect(4, hello{id: "dev"})
	if !present {
		t.Fatal("the session is lost")
	}
	d.publish(publish{topic: "a", payload: "one", qos: 1, id: 1, dup: true})
	d.acked(puback, 1)
	d.publish(publish{topic: "a", payload: "two", qos: 2, id: 2, dup: true})
	d.acked(pubrec, 2)
	d.release(2)
	same(t, storedValues(g.stored()), "one", "two")
}

func TestCleanStartForgetsIds(t *testing.T) {
	c := testConfig(t)
	g := startGateway(t, vfs.OS, c)
	d, _ := g.connect(5, hello{id: "dev", expiry: 1000})
	d.publish(publish{topic: "a", payload: "one", qos: 2, id: 2})
	d.acked(pubrec, 2)
	d, present := g.connect(5, hello{id: "dev", expiry: 1000, clean: true})
	if present {
		t.Fatal("a clean start found a session")
	}
	g.mustStop()
	g = startGateway(t, vfs.OS, c)
	d, _ = g.connect(5, hello{id: "dev", expiry: 1000})
	d.publish(publish{topic: "a", payload: "other", qos: 2, id: 2, dup: true})
	d.acked(pubrec, 2)
	same(t, storedValues(g.stored()), "one", "other")
}

// Subscriptions, retained messages and what waits for a device that is away are there after a stop, and after a crash.
func TestSessionsSurvive(t *testing.T) {
	for _, how := range []string{"stop", "crash", "crash after writing"} {
		t.Run(how, func(t *testing.T) {
			mem := vfs.NewMem()
			g := startGateway(t, mem, testConfig(t))
			sub, _ := g.connect(4, hello{id: "sub"})
			sub.subscribe("a/#", 1)
			sub.nc.Close()
			d, _ := g.connect(4, hello{id: "dev", clean: true})
			for i := range uint16(5) {
				d.publish(publish{topic: "a/b", payload: fmt.Sprint(i), qos: 1, id: i + 1})
				d.acked(puback, i+1)
			}
			d.publish(publish{topic: "r", payload: "kept", qos: 1, id: 9, retain: true})
			d.acked(puback, 9)
			var fs vfs.FS = mem
			c := g.config
			if how == "crash after writing" {
				other, _ := g.connect(4, hello{id: "other"})
				other.subscribe("x", 1) // its SUBACK comes when the sessions' file has all of the above
			}
			if how != "stop" {
				fs, c = g.crashed(mem)
			}
			g.mustStop()
			g = startGateway(t, fs, c)
			sub, present := g.connect(4, hello{id: "sub"})
			if !present {
				t.Fatal("the session is lost")
			}
			for i := range 5 {
				sub.gets("a/b", fmt.Sprint(i))
			}
			sub.subscribe("r", 1)
			sub.gets("r", "kept")
			d, _ = g.connect(4, hello{id: "dev", clean: true})
			d.publish(publish{topic: "a/c", payload: "live", qos: 1, id: 1})
			sub.gets("a/c", "live")
		})
	}
}

// A failed sync: no acknowledgement, the connection ends, the gateway says why.
func TestNothingIsAckedAfterAFailedSync(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	g := startGateway(t, fault, testConfig(t))
	d, _ := g.connect(5, hello{id: "dev", clean: true})
	d.publish(publish{topic: "a", payload: "one", qos: 1, id: 1})
	d.acked(puback, 1)
	broken := errors.New("input/output error")
	fault.SetHook(func(op vfs.Op, path string) error {
		if op == vfs.OpSync && filepath.Ext(path) == ".log" {
			return broken
		}
		return nil
	})
	d.publish(publish{topic: "a", payload: "two", qos: 1, id: 2})
	for {
		first, body, err := d.read()
		if err != nil {
			break
		}
		if first == puback {
			t.Fatalf("acknowledged % x", body)
		}
	}
	<-g.Buffer().Failed()
	if err := g.stop(); !errors.Is(err, broken) || !errors.Is(err, buffer.ErrFailed) {
		t.Fatalf("run returned %v", err)
	}
}

// A full disk: MQTT 5 is told, 3.1.1 is not read further, HTTP is told; all go on when there is room again.
func TestFullDisk(t *testing.T) {
	fault := vfs.NewFault(vfs.NewMem())
	fault.SetFree(1 << 30)
	g := startGateway(t, fault, testConfig(t))
	five, _ := g.connect(5, hello{id: "five", clean: true})
	three, _ := g.connect(4, hello{id: "three", clean: true})
	fault.SetFree(1000)
	g.await(func() bool { return g.Buffer().Full() })
	five.publish(publish{topic: "a", payload: "no", qos: 1, id: 1})
	if reason := five.acked(puback, 1); reason != 0x97 {
		t.Fatalf("PUBACK 0x%02x, want 0x97", reason)
	}
	five.publish(publish{topic: "a", payload: "no", qos: 2, id: 2})
	if reason := five.acked(pubrec, 2); reason != 0x97 {
		t.Fatalf("PUBREC 0x%02x, want 0x97", reason)
	}
	three.publish(publish{topic: "a", payload: "late", qos: 1, id: 1})
	code, answer := g.post("/v1/ingest/a", "text/plain", "no")
	if code != http.StatusTooManyRequests || !strings.Contains(answer, `"hint"`) {
		t.Fatalf("HTTP %d %s", code, answer)
	}
	fault.SetFree(1 << 30)
	three.acked(puback, 1)
	five.publish(publish{topic: "a", payload: "yes", qos: 2, id: 2})
	if reason := five.acked(pubrec, 2); reason != 0 {
		t.Fatalf("PUBREC 0x%02x", reason)
	}
	same(t, storedValues(g.stored()), "late", "yes")
}

// A stop in the middle of traffic: what was read is stored, and all that was stored was acknowledged before the connection ended.
func TestStopUnderLoad(t *testing.T) {
	c := testConfig(t)
	g := startGateway(t, vfs.OS, c)
	const devices = 8
	var acked [devices]int
	var heard [devices]atomic.Bool
	var all sync.WaitGroup
	for i := range devices {
		d, _ := g.connect(4, hello{id: fmt.Sprint("dev", i), clean: true})
		all.Go(func() {
			for n := uint16(1); ; n++ {
				if _, err := d.nc.Write(d.encode(publish{topic: fmt.Sprint(i), payload: fmt.Sprint(n), qos: 1, id: n})); err != nil {
					return
				}
				if first, _, err := d.read(); err != nil || first != puback {
					return
				}
				acked[i] = int(n)
				heard[i].Store(true)
			}
		})
	}
	g.await(func() bool {
		for i := range devices {
			if !heard[i].Load() {
				return false
			}
		}
		return g.Buffer().Synced() > 500
	})
	began := time.Now()
	g.mustStop()
	unacked := 0
	if time.Since(began) > time.Second { // the gateway gives devices 2 s to take their last acknowledgement, on a machine that is slow too
		unacked = 1
	}
	all.Wait()
	g = startGateway(t, vfs.OS, c)
	var got [devices]int
	for _, s := range g.stored() {
		var i int
		fmt.Sscan(s.key, &i)
		if got[i]++; s.value != fmt.Sprint(got[i]) {
			t.Fatalf("device %d: %s after %d", i, s.value, got[i]-1)
		}
	}
	for i := range devices {
		if got[i] < acked[i] || got[i] > acked[i]+unacked || acked[i] == 0 {
			t.Fatalf("device %d: %d stored, %d acknowledged", i, got[i], acked[i])
		}
	}
}
