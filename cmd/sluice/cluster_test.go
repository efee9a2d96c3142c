package main

import (
	"encoding/json"
	"strings"
	"testing"

	"sluice/core/controller"
	"sluice/core/meta"
)

func TestClusterCommands(t *testing.T) {
	p := startCore(t, t.TempDir())
	t.Setenv("SLUICE_HTTP", "127.0.0.1:1,"+strings.TrimPrefix(p.address("http"), "http://")) // the first answers nobody
	ok(t, "", "topic", "create", "a", "-p", "2")
	eventually(t, func(out string) bool {
		var o controller.Overview
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			t.Fatal(err)
		}
		return len(o.Nodes) == 1 && o.Nodes[0].State == "live" && o.Nodes[0].Metadata == "leader" && o.Nodes[0].Replicas > 0 && o.Nodes[0].DiskFreeBytes != nil && len(o.Shards) > 0
	}, "cluster", "status", "-o", "json")
	if text := ok(t, "", "cluster", "status"); !strings.Contains(text, "METADATA") || !strings.Contains(text, "PARTITIONS") {
		t.Errorf("status printed %q", text)
	}
	if got := ok(t, "", "cluster", "drain", "1", "--wait=false"); got != "node 1: draining\n" {
		t.Errorf("drain printed %q", got)
	}
	eventually(t, has("live, draining", "node 1 cannot be emptied"), "cluster", "status") // nobody takes what it has
	if got := asJSON[changedNode](t, "cluster", "undrain", "1"); got != (changedNode{1, "in use"}) {
		t.Errorf("undrain printed %+v", got)
	}
	eventually(t, func(out string) bool { return out == "balanced\n" }, "cluster", "balance")
	eventually(t, func(out string) bool { return out == "shard 1: replicas on 1\n" }, "cluster", "move", "1", "--to", "1")
	for _, c := range []struct{ args, want string }{
		{"remove 1", "is the last one"},
		{"remove 9", "Node 9 is not registered"},
		{"drain 9", "Node 9 is not registered"},
		{"move 1 --to 1,2", "Shard 1 has 1 replicas"},
		{"move 1 --to 9", "Node 9 is not registered"},
		{"move 99 --to 1", "Shard 99 does not exist"},
		{"recover 1 --lose-data", "Shard 1 has its data"},
		{"status --http 127.0.0.1:1", "hint: is a node running there?"},
	} {
		if r := sluice(t, "", append([]string{"cluster"}, strings.Fields(c.args)...)...); r.code != 1 || !strings.Contains(r.err, c.want) {
			t.Errorf("%s: %d %q, want %q", c.args, r.code, r.err, c.want)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"", "a command is missing"},
		{"drain one", `"one": must be the id of a node`},
		{"move x --to 1", `"x": must be the id of a shard`},
		{"move 1", "--to is missing"},
		{"remove 1 --lose-data", "needs --force"},
		{"recover 1", "--lose-data: must be given"},
		{"status --http nowhere", `"nowhere": must be host:port`},
	} {
		if r := sluice(t, "", append([]string{"cluster"}, strings.Fields(c.args)...)...); r.code != 2 || !strings.Contains(r.err, c.want) {
			t.Errorf("%s: %d %q, want %q", c.args, r.code, r.err, c.want)
		}
	}
}

func TestClusterProgress(t *testing.T) {
	o := &controller.Overview{
		Nodes: []controller.NodeOverview{{ID: 1, Replicas: 2, Leaders: 1, Metadata: "voter"}},
		Shards: []controller.ShardOverview{{
			ID: 3, Leader: 1, Replicas: []meta.NodeID{2}, InSync: []meta.NodeID{1}, Adding: []meta.NodeID{2}, Removing: []meta.NodeID{1},
			Copies: []controller.CopyOverview{{Node: 2, BytesLeft: 3 << 20, BytesPerSecond: 1536}},
		}},
	}
	if text, done := drainText(o, 1); done || text != "node 1: 2 replicas left, 1 leaders; 1 shards moving, 3.0 MiB left at 1.5 KiB/s" {
		t.Errorf("%q %t", text, done)
	}
	if text, done := moveText(o, 3, []int32{2}); done || text != "shard 3: leader 1, in sync 1, +2 -1 2: 3.0 MiB left at 1.5 KiB/s" {
		t.Errorf("%q %t", text, done)
	}
	if text, done := moveText(o, 3, []int32{4}); !done || !strings.Contains(text, "2 are wanted by now") {
		t.Errorf("%q %t", text, done)
	}
	o.Nodes[0].Replicas = 0
	if text, done := drainText(o, 1); done || !strings.Contains(text, "hands its part in the metadata over") {
		t.Errorf("%q %t", text, done)
	}
	o.Nodes[0].Metadata = "follower"
	if _, done := drainText(o, 1); !done {
		t.Error("an empty node is not empty")
	}
	if _, done := drainText(o, 7); !done {
		t.Error("a node that was removed meanwhile is waited for")
	}
}
