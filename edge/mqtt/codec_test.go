package mqtt

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"sluice/edge/ingest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What we encode, mochi's decoder reads, and our parser reads back.
func TestPublishRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.SampledFrom([]byte{4, 5}).Draw(t, "version")
		p := outgoing{
			topic: rapid.StringMatching(`[a-z/é]{1,40}`).Draw(t, "topic"), payload: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload"),
			qos: byte(rapid.IntRange(0, 2).Draw(t, "qos")), retain: rapid.Bool().Draw(t, "retain"), id: uint16(rapid.IntRange(1, 65535).Draw(t, "id")),
		}
		p.dup = p.qos > 0 && rapid.Bool().Draw(t, "dup")
		if version == 5 {
			p.props = []byte{packets.PropContentType, 0, 1, 'x', packets.PropUser, 0, 1, 'k', 0, 1, 'v'}
			p.hasExpiry = rapid.Bool().Draw(t, "expires")
			p.expiry = rapid.Uint32Range(1, 1<<31).Draw(t, "expiry")
		}
		b, size := appendPublish(nil, &p, version, 0)
		if size != len(b) {
			t.Fatalf("size %d of %d bytes", size, len(b))
		}
		if none, _ := appendPublish(nil, &p, version, uint32(size-1)); len(none) != 0 {
			t.Fatal("a packet larger than the client takes")
		}
		f := newField(b[1:])
		body := f.take(f.varint())
		if !f.end() {
			t.Fatal("the length is wrong")
		}
		got, _, ok := parsePublish(b[0], body, version, nil)
		if !ok || string(got.topic) != p.topic || !bytes.Equal(got.payload, p.payload) || got.qos != p.qos || got.dup != p.dup || got.retain != p.retain ||
			!bytes.Equal(got.props, p.props) || p.qos > 0 && got.id != p.id || p.hasExpiry && got.expiry != p.expiry {
			t.Fatalf("got %+v of %+v", got, p)
		}
		theirs := packets.Packet{ProtocolVersion: version, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: p.qos}}
		if err := theirs.PublishDecode(body); err != nil || theirs.TopicName != p.topic || !bytes.Equal(theirs.Payload, p.payload) {
			t.Fatalf("mochi reads %+v: %v", theirs, err)
		}
	})
}

// No packet panics past the guard, whatever its bytes.
func FuzzPackets(f *testing.F) {
	f.Add(byte(0x82), []byte{0, 1, 0, 0, 1, 'a'}, byte(5)) // panics mochi's decoder
	f.Add(byte(0x10), []byte{0, 4, 'M', 'Q', 'T', 'T', 5, 6, 0, 0, 0, 0, 1, 'x', 0, 0, 1, 'w', 0, 1, 'p'}, byte(5))
	f.Add(byte(0x32), []byte{0, 1, 'a', 0, 1, 3, 0x23, 0, 1, 'x'}, byte(5))
	f.Add(byte(0xa2), []byte{0, 1, 0, 0, 1, 'a'}, byte(5))
	f.Add(byte(0xe0), []byte{0, 5, 0x11, 0, 0, 0, 1}, byte(5))
	f.Fuzz(func(t *testing.T, first byte, body []byte, version byte) {
		version = 4 + version&1
		if p, code, ok := parsePublish(first&15|0x30, body, version, nil); ok != (code == packets.CodeSuccess) || len(p.payload) > len(body) {
			t.Fatalf("%+v %v %v", p, code, ok)
		}
		if p, code := parseConnect(0x10, body); code == packets.CodeSuccess && p.Connect.WillFlag != (p.will != nil) {
			t.Fatalf("%+v", p)
		}
		if _, subs, code := parseSubscribe(0x82, body, version); code == packets.CodeSuccess && len(subs) == 0 {
			t.Fatal("a SUBSCRIBE without filters")
		}
		parseUnsubscribe(0xa2, body, version)
		parseAck(first, body, version)
		parseDisconnect(0xe0, body, version)
	})
}

// The strings of a decoded packet are its own: the connection's buffer is used again.
func TestDecodedPacketsDoNotAlias(t *testing.T) {
	body := []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 6, 0, 0, 0, 2, 'i', 'd', 0, 1, 'w', 0, 1, 'p'}
	p, code := parseConnect(0x10, body)
	if code != packets.CodeSuccess {
		t.Fatal(code)
	}
	clear(body)
	if p.Connect.ClientIdentifier != "id" || p.will.Topic != "w" || string(p.will.Payload) != "p" {
		t.Fatalf("got %+v %+v", p.Connect, p.will)
	}
}

// The index finds what a list of all filters finds, and is empty when all are gone.
func TestIndexAgainstAList(t *testing.T) {
	level := rapid.SampledFrom([]string{"a", "b", "", "$x"})
	topics := rapid.Map(rapid.SliceOfN(level, 1, 4), func(l []string) string { return strings.Join(l, "/") })
	filters := rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "", "$x", "+"}), 1, 4), func(l []string) string { return strings.Join(l, "/") })
	rapid.Check(t, func(t *rapid.T) {
		var x index
		type entry struct {
			s   *session
			sub *subscription
		}
		list := map[string]entry{}
		sessions := []*session{{id: "s0"}, {id: "s1"}, {id: "s2"}}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				s, f := rapid.SampledFrom(sessions).Draw(t, "session"), filters.Draw(t, "filter")
				if rapid.Bool().Draw(t, "hash") {
					f = strings.TrimSuffix(f+"/#", "/")
				}
				share := rapid.SampledFrom([]string{"", "g"}).Draw(t, "share")
				key := s.id + " " + share + " " + f
				_, existed := list[key]
				sub := &subscription{Filter: f, Share: share}
				if x.add(s, sub) != existed {
					t.Fatalf("add %s says %v", key, !existed)
				}
				list[key] = entry{s, sub}
			},
			"remove": func(t *rapid.T) {
				keys := []string{"none"}
				for k := range list {
					keys = append(keys, k)
				}
				slices.Sort(keys)
				e, ok := list[rapid.SampledFrom(keys).Draw(t, "key")]
				if !ok {
					e = entry{sessions[0], &subscription{Filter: "not/there"}}
				}
				if x.remove(e.s, e.sub) != ok {
					t.Fatal("remove is wrong")
				}
				delete(list, e.s.id+" "+e.sub.Share+" "+e.sub.Filter)
			},
			"": func(t *rapid.T) {
				topic := topics.Draw(t, "topic")
				var got, want []string
				x.match(topic, func(s *session, sub *subscription) { got = append(got, s.id+" "+sub.Filter) }, func(g *group) {
					for _, m := range g.members {
						got = append(got, m.session.id+" g "+m.sub.Filter)
					}
				})
				for _, e := range list {
					if ingest.Match(e.sub.Filter, topic) {
						want = append(want, strings.TrimPrefix(e.s.id+" "+e.sub.Share, "")+map[bool]string{true: "", false: " "}[e.sub.Share == ""]+e.sub.Filter)
					}
				}
				slices.Sort(got)
				slices.Sort(want)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("%q (-list +index)\n%s", topic, diff)
				}
				if int(x.count.Load()) != len(list) || len(list) == 0 && len(x.mu.root.children) != 0 {
					t.Fatalf("%d subscriptions counted, %d are there", x.count.Load(), len(list))
				}
			},
		})
	})
}

// The ring forgets the oldest, and finds the newest of an id.
func TestRecentAgainstAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const most = 5
		var r recent
		var list []receipt
		for range rapid.IntRange(0, 30).Draw(t, "adds") {
			one := receipt{uint16(rapid.IntRange(1, 8).Draw(t, "id")), uint64(rapid.IntRange(1, 3).Draw(t, "hash"))}
			r.add(most, one.id, one.hash)
			list = append(list, one)
			list = list[max(0, len(list)-most):]
		}
		var all []receipt
		r.all(func(one receipt) { all = append(all, one) })
		if !slices.Equal(all, list) {
			t.Fatalf("holds %v, want %v", all, list)
		}
		for id := uint16(1); id <= 8; id++ {
			var newest uint64
			for _, one := range list {
				if one.id == id {
					newest = one.hash
				}
			}
			for hash := uint64(1); hash <= 3; hash++ {
				if r.find(id, hash) != (hash == newest) {
					t.Fatalf("find(%d, %d) in %v", id, hash, list)
				}
			}
		}
	})
}

// Notes bring an inbound state back, one by one and as a table.
func TestNotesBringTheStateBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const most = 4
		var live, replayed, restored inbound
		apply := func(to *inbound, framed []byte) {
			f := newField(framed[1:])
			note := f.take(f.varint())
			op := newField(note[1:])
			op.take(op.varint())
			if err := to.apply(note[0], note[1+op.at:], most); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(0, 30).Draw(t, "n") {
			id := uint16(rapid.IntRange(1, 6).Draw(t, "id"))
			var note []byte
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0, 1:
				live.last.add(most, id, uint64(id)*7)
				note = noteQoS1(nil, "c", id, uint64(id)*7)
			case 2:
				live.take(id)
				note = noteID(nil, opQoS2, "c", id)
			case 3:
				delete(live.taken, id)
				note = noteID(nil, opRelease, "c", id)
			}
			apply(&replayed, note)
		}
		if err := replayed.dump("c", func(note []byte) error {
			op := newField(note[1:])
			op.take(op.varint())
			return restored.apply(note[0], note[1+op.at:], most)
		}); err != nil {
			t.Fatal(err)
		}
		for _, got := range []*inbound{&replayed, &restored} {
			if fmt.Sprint(got.taken) != fmt.Sprint(live.taken) && len(got.taken)+len(live.taken) > 0 {
				t.Fatalf("taken %v, want %v", got.taken, live.taken)
			}
			var a, b []receipt
			got.last.all(func(r receipt) { a = append(a, r) })
			live.last.all(func(r receipt) { b = append(b, r) })
			if !slices.Equal(a, b) {
				t.Fatalf("messages %v, want %v", a, b)
			}
		}
	})
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		allowed, wanted string
		want            bool
	}{
		{"#", "#", true}, {"#", "a/+", true}, {"a/#", "a", true}, {"a/#", "a/+/#", true}, {"a/+", "a/b", true}, {"a/+", "a/+", true},
		{"a/+", "a/#", false}, {"a/b", "a/+", false}, {"a/b", "+/b", false}, {"+", "#", false}, {"a/b", "a/b", true}, {"a", "a/b", false},
	} {
		if got := covers(c.allowed, c.wanted); got != c.want {
			t.Errorf("covers(%q, %q) = %v", c.allowed, c.wanted, got)
		}
	}
}

func TestNamesInFiltersDoNotWiden(t *testing.T) {
	u := &User{Name: "ann", Publish: []string{"dev/${client}/#"}}
	for client, want := range map[string]bool{"x": true, "+": false, "#": false, "x/y": false, "": false} {
		if got := u.MayPublish(client, "dev/x/t"); got != want {
			t.Errorf("client %q: %v", client, got)
		}
	}
}
