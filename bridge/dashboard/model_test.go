package dashboard

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func at(zone, kind, device string, value float64, ms int64) reading {
	return reading{source{zone, kind, device}, value, "Cel", ms}
}

func TestModelAverages(t *testing.T) {
	m := newModel()
	m.add(at("north", "temperature", "1", 10, 100_000))
	m.add(at("north", "temperature", "2", 20, 101_999))
	m.add(at("north", "temperature", "1", 30, 102_000))
	f := m.step()
	want := []seriesOut{{"north", "temperature", "Cel", []pointOut{{100_000, 15, 10, 20, 2}, {102_000, 30, 30, 30, 1}}}}
	if diff := cmp.Diff(want, f.Series); diff != "" {
		t.Error(diff)
	}
	if f.Devices != 2 || f.Total != 3 || len(f.Latest) != 2 || !f.Latest[0].Fresh {
		t.Errorf("frame = %+v", f)
	}
	if f = m.step(); len(f.Latest) != 0 {
		t.Errorf("a second step repeats %v", f.Latest)
	}
	m.add(at("north", "temperature", "1", 31, 103_000))
	if f = m.step(); len(f.Latest) != 1 || f.Latest[0].Fresh || f.Latest[0].Value != 31 {
		t.Errorf("a known device came as %+v", f.Latest)
	}
	if s := m.snapshot(); len(s.Latest) != 2 || len(s.Series[0].Points) != 2 {
		t.Errorf("snapshot = %+v", s)
	}
}

func TestModelKeepsLatestByTime(t *testing.T) {
	m := newModel()
	m.add(at("north", "noise", "1", 50, 10_000))
	m.add(at("north", "noise", "1", 40, 9_000)) // an old one that came late
	if got := m.snapshot().Latest[0].Value; got != 50 {
		t.Errorf("latest = %v, want 50", got)
	}
}

func TestModelClockOfOneDeviceDoesNotClearTheChart(t *testing.T) {
	m := newModel()
	now := int64(1_700_000_000_000)
	m.add(at("north", "noise", "1", 50, now))
	m.add(at("north", "noise", "2", 60, now+10*historyLength.Milliseconds()))
	m.add(at("north", "noise", "3", 70, now-10*historyLength.Milliseconds()))
	if p := m.snapshot().Series[0].Points; len(p) != 1 || p[0].Count != 1 || p[0].Average != 50 {
		t.Errorf("points = %+v", p)
	}
}

func TestModelBounds(t *testing.T) {
	m := newModel()
	for i := range zonesMax + 10 {
		m.add(at(fmt.Sprint("zone", i), "noise", "1", 1, 1000))
	}
	for i := range kindsMax + 10 {
		m.add(at("zone0", fmt.Sprint("kind", i), "1", 1, 1000))
	}
	for i := range devicesMax + 10 {
		m.add(at("zone1", "noise", fmt.Sprint(i), 1, 1000))
	}
	if len(m.zones) != zonesMax || m.zones["zone0"] != kindsMax || len(m.devices) > devicesMax || m.refused == 0 {
		t.Errorf("%d zones, %d kinds, %d devices, %d refused", len(m.zones), m.zones["zone0"], len(m.devices), m.refused)
	}
}

func TestHubCutsOffTheSlow(t *testing.T) {
	h := newHub()
	slow, quick := h.join(), h.join()
	for range frameQueue + 1 {
		h.send([]byte("x"))
		<-quick
	}
	for range frameQueue {
		<-slow
	}
	if _, ok := <-slow; ok {
		t.Error("a browser that did not read is still served")
	}
	if h.len() != 1 {
		t.Errorf("%d browsers, want 1", h.len())
	}
	h.close()
	if _, ok := <-quick; ok || h.join() != nil {
		t.Error("a closed hub serves on")
	}
}
