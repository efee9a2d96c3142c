package firmwaresim

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// broker is an MQTT broker that we did not write, with an ear.
type broker struct {
	url string
	mu  sync.Mutex
	got []packets.Packet
	ear chan struct{}
}

func startBroker(t *testing.T) *broker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	b := &broker{url: "tcp://" + l.Addr().String(), ear: make(chan struct{}, 1)}
	if err := s.AddHook(new(auth.AllowHook), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.AddListener(listeners.NewNet("net", l)); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	err = s.Subscribe("#", 1, func(_ *mochi.Client, _ packets.Subscription, pk packets.Packet) {
		b.mu.Lock()
		b.got = append(b.got, pk)
		b.mu.Unlock()
		select {
		case b.ear <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// until waits for a condition on what came in.
func (b *broker) until(t *testing.T, what string, ok func([]packets.Packet) bool) []packets.Packet {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		b.mu.Lock()
		got := slices.Clone(b.got)
		b.mu.Unlock()
		if ok(got) {
			return got
		}
		select {
		case <-b.ear:
		case <-deadline:
			t.Fatalf("%s: not after %d messages", what, len(got))
		}
	}
}

func TestCityPublishesEveryKindInEveryZone(t *testing.T) {
	b := startBroker(t)
	s := Default()
	s.Broker, s.DevicesPerSet, s.Interval, s.Zones = b.url, 2, 100*time.Millisecond, []string{"north", "south"}
	f, err := NewFleet(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	got := b.until(t, "every device of 24", func(all []packets.Packet) bool {
		topics := map[string]bool{}
		for _, p := range all {
			topics[p.TopicName] = true
		}
		return len(topics) == 24
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, p := range got {
		checkPayload(t, p)
	}
	if st := f.Status(); st.Devices != 24 || st.Published < 24 {
		t.Errorf("status = %+v", st)
	}
}

func checkPayload(t *testing.T, p packets.Packet) {
	t.Helper()
	if strings.HasSuffix(p.TopicName, SenMLSuffix) {
		var pack []senmlRecord
		if err := cbor.Unmarshal(p.Payload, &pack); err != nil || len(pack) != 1 || pack[0].BaseTime < 1e9 || pack[0].Unit == "" {
			t.Errorf("%s: %x: %v, %v", p.TopicName, p.Payload, pack, err)
		}
		return
	}
	var r jsonReading
	if err := json.Unmarshal(p.Payload, &r); err != nil || r.Unit == "" {
		t.Errorf("%s: %s: %v", p.TopicName, p.Payload, err)
	}
	if _, err := time.Parse(time.RFC3339Nano, r.Timestamp); err != nil {
		t.Error(err)
	}
}

func TestLostLinkComesBackAndSendsWhatWaited(t *testing.T) {
	b := startBroker(t)
	s := Default()
	s.Broker, s.DevicesPerSet, s.Zones, s.Interval = b.url, 1, []string{"north"}, 50*time.Millisecond
	s.Reconnect = Reconnect{Every: 2 * time.Second, Down: 50 * time.Millisecond}
	f, err := NewFleet(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	b.until(t, "links lost and found", func([]packets.Packet) bool { return f.m.drops.Get() > 3 && f.m.connects.Get() > 8 })
	cancel()
	<-done
	if f.m.lost.Get() == 0 {
		t.Error("no connection was lost")
	}
}

func TestReplayIsWholeAndInOrder(t *testing.T) {
	b := startBroker(t)
	var file strings.Builder
	file.WriteString("timestamp,value\n")
	var want []string
	for i := range 500 {
		at := time.Date(2014, 10, 26, 0, 30, 0, 0, time.UTC).Add(time.Duration(i%120) * time.Minute).Format("2006-01-02 15:04:05")
		file.WriteString(at + ",7.10\n")
		want = append(want, `{"timestamp":"`+at+`","value":7.10}`)
	}
	n, err := Replay{Broker: b.url, Topic: "nab/x", QoS: 1}.Run(context.Background(), strings.NewReader(file.String()))
	if n != 500 || err != nil {
		t.Fatalf("replayed %d rows, %v", n, err)
	}
	got := b.until(t, "500 rows", func(all []packets.Packet) bool { return len(all) >= 500 })
	for i, p := range got {
		if string(p.Payload) != want[i] {
			t.Fatalf("row %d is %s, want %s", i, p.Payload, want[i])
		}
	}
}

func TestReplayNamesTheBadRow(t *testing.T) {
	b := startBroker(t)
	for in, want := range map[string]string{
		"timestamp,value\n2014-04-01 00:00:00,1\nyesterday,2\n":           "row 2: \"yesterday\" is not a time",
		"timestamp,value\n2014-04-01 00:00:00,1\n2014-04-01 00:05:00,x\n": "row 2: value \"x\" is not a number",
		"when,what,why\n1,2,3\n":                                          "read recording",
	} {
		if _, err := (Replay{Broker: b.url, Topic: "t", QoS: 1}).Run(context.Background(), strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestScenarioErrors(t *testing.T) {
	for text, want := range map[string]string{
		"zonez: [a]":                       "zonez",
		"zones: []":                        "zones: at least one",
		"zones: [a, a]":                    "zones: \"a\"",
		"zones: ['a/b']":                   "zones: \"a/b\"",
		"interval: 1ms":                    "interval: 1ms",
		"jitter: 2":                        "jitter: 2",
		"qos: {1: 0.2}":                    "qos: the shares",
		"broker: ''":                       "broker: is empty",
		"devices_per_zone_and_kind: 99999": "devices_per_zone_and_kind",
		"offline_queue: 0":                 "offline_queue",
		"reconnect: {every: -1s}":          "reconnect",
	} {
		path := filepath.Join(t.TempDir(), "s.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}

func TestSameSeedSameCity(t *testing.T) {
	s := Default()
	for n := range 50 {
		a, b := newDevice(&s, 1, 2, n%28, newTestCounters()), newDevice(&s, 1, 2, n%28, newTestCounters())
		now := time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC)
		if a.topic != b.topic || a.qos != b.qos || a.offset != b.offset || a.drift != b.drift || a.sensor.read(now) != b.sensor.read(now) {
			t.Fatalf("device %d differs between two runs", n)
		}
	}
}

func TestDeviceClockDrifts(t *testing.T) {
	d := &device{offset: time.Second, drift: 1 + 100e-6}
	start := time.Unix(1000, 0)
	if got, want := d.clock(start, start.Add(10000*time.Second)), start.Add(10002*time.Second); got.Sub(want).Abs() > time.Millisecond {
		t.Errorf("clock = %v, want %v", got, want)
	}
}
