package chaos

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

const wellLeader = `{"controller":{"Ready":true,"Leader":1,"Nodes":[{"ID":1},{"ID":2}],"Disks":[{"Node":1},{"Node":2}],
"Metadata":{"State":"Leader","Leader":1,"Serving":true,"Complete":true,"Replicas":[{"Server":"1.a","InSync":true},{"Server":"2.b","InSync":true}]},
"Shards":[{"ID":5,"Leader":1,"Replicas":[1,2],"ISR":[1,2],"Replica":{"State":"Leader","Leader":1,"Serving":true,"Complete":true,"Replicas":[{"Server":"2.b","InSync":true}]}}]}}`

const wellFollower = `{"controller":{"Ready":true,"Leader":1,"Nodes":[{"ID":1},{"ID":2}],"Disks":[{"Node":1},{"Node":2}],
"Metadata":{"State":"Follower","Leader":1,"Complete":true},
"Shards":[{"ID":5,"Leader":1,"Replicas":[1,2],"ISR":[1,2],"Replica":{"State":"Follower","Leader":1,"Complete":true}}]}}`

func viewsOf(t *testing.T, texts ...string) (out []view) {
	t.Helper()
	for _, text := range texts {
		var v view
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func TestHealthy(t *testing.T) {
	if err := judgeViews(viewsOf(t, wellLeader, wellFollower)); err != nil {
		t.Error(err)
	}
}

func TestUnhealthy(t *testing.T) {
	for name, c := range map[string]struct{ old, new, says string }{
		"a node that starts":         {`"Ready":true`, `"Ready":false`, "ready false"},
		"a node nobody knows of":     {`,{"ID":2}],"Disks"`, `],"Disks"`, "knows 1 nodes of 2"},
		"a fenced node":              {`{"ID":2}],"Disks"`, `{"ID":2,"Fenced":true}],"Disks"`, "sees node 2 fenced"},
		"a low disk":                 {`{"Node":2}`, `{"Node":2,"Low":true}`, "disk of node 2 low"},
		"metadata without a leader":  {`"Leader","Leader":1,"Serving":true,"Complete":true,"Replicas":[{"Server":"1.a"`, `"Leader","Leader":0,"Serving":true,"Complete":true,"Replicas":[{"Server":"1.a"`, "knows no leader"},
		"a replica behind":           {`[{"Server":"2.b","InSync":true}]`, `[{"Server":"2.b","InSync":false}]`, "replica 2.b is behind"},
		"not in sync":                {`"ISR":[1,2]`, `"ISR":[1]`, "in sync [1] of [1 2]"},
		"a lost shard":               {`"ID":5,`, `"ID":5,"Lost":true,`, "lost true"},
		"a failed replica":           {`"Replica":{`, `"Replica":{"Error":"disk",`, "has failed: disk"},
		"a leader that does not yet": {`"Replica":{"State":"Leader","Leader":1,"Serving":true`, `"Replica":{"State":"Leader","Leader":1,"Serving":false`, "does not serve"},
		"a replica with holes":       {`"Serving":true,"Complete":true,"Replicas":[{"Server":"2.b"`, `"Serving":true,"Complete":false,"Replicas":[{"Server":"2.b"`, "not complete"},
		"two leaders or none":        {`"Replica":{"State":"Leader"`, `"Replica":{"State":"Candidate"`, "shard 5 has 0 leaders"},
	} {
		sick := strings.Replace(wellLeader, c.old, c.new, 1)
		if sick == wellLeader {
			t.Fatalf("%s: nothing was changed", name)
		}
		err := judgeViews(viewsOf(t, sick, wellFollower))
		if !errors.Is(err, errUnhealthy) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.says)
		}
	}
}

func TestLeaderships(t *testing.T) {
	leads, controller := leaderships(viewsOf(t, wellFollower, wellLeader))
	if leads[0] != 0 || leads[1] != 1 || controller != 2 {
		t.Errorf("leads %v, controller %d", leads, controller)
	}
}

func TestAnotherIsAnother(t *testing.T) {
	c := &cluster{nodes: make([]*process, 3)}
	seen := map[[2]int]bool{}
	for node := 1; node <= 3; node++ {
		for number := range 10 {
			other := c.another(node, number)
			if other == node || other < 1 || other > 3 {
				t.Errorf("beside node %d: %d", node, other)
			}
			seen[[2]int{node, other}] = true
		}
	}
	if len(seen) != 6 {
		t.Errorf("pairs that occur: %v", seen)
	}
}

func TestPairs(t *testing.T) {
	c := &cluster{nodes: make([]*process, 3)}
	if got := c.pairs(2); len(got) != 4 || got[0] != (pair{2, 1}) || got[1] != (pair{1, 2}) || got[3] != (pair{3, 2}) {
		t.Errorf("%v", got)
	}
}

// Every life of a node is one of three: nothing is lost by a kill, everything unsynced, some of it.
func TestVolatileLives(t *testing.T) {
	c := &cluster{seed: 9}
	kinds := map[string]int{}
	for n := range 12 {
		v := c.volatile(1, n)
		if v != c.volatile(1, n) || (v == "") != c.firm(1, n) {
			t.Errorf("life %d: %q", n, v)
		}
		kinds[strings.SplitN(v, ":", 2)[0]]++
	}
	if len(kinds) != 3 {
		t.Errorf("%v", kinds)
	}
}
