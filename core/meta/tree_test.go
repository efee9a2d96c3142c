package meta

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func (n *treeNode[K, V]) checkBalance(t *rapid.T) int8 {
	if n == nil {
		return 0
	}
	l, r := n.left.checkBalance(t), n.right.checkBalance(t)
	if l-r > 1 || r-l > 1 || n.height != 1+max(l, r) {
		t.Fatalf("key %v: height %d over %d and %d", n.key, n.height, l, r)
	}
	return n.height
}

func TestTreeIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tr tree[int, int]
		model := map[int]int{}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			old, oldKeys := tr, slices.Sorted(maps.Keys(model))
			key := rapid.IntRange(0, 60).Draw(t, "key")
			if rapid.Bool().Draw(t, "put") {
				v := rapid.Int().Draw(t, "value")
				tr = tr.put(key, v)
				model[key] = v
			} else {
				tr = tr.drop(key)
				delete(model, key)
			}
			tr.root.checkBalance(t)
			if got := keysFrom(old, -1); !slices.Equal(got, oldKeys) {
				t.Fatalf("the old tree became %v", got)
			}
		}
		if tr.len() != len(model) {
			t.Fatalf("len %d, want %d", tr.len(), len(model))
		}
		if got := maps.Collect(tr.all()); !maps.Equal(got, model) {
			t.Fatalf("%v, want %v", got, model)
		}
		start := rapid.IntRange(0, 60).Draw(t, "start")
		want := slices.DeleteFunc(slices.Sorted(maps.Keys(model)), func(k int) bool { return k < start })
		if got := keysFrom(tr, start); !slices.Equal(got, want) {
			t.Fatalf("from %d: %v, want %v", start, got, want)
		}
		for k := range 61 {
			v, ok := tr.get(k)
			if w, there := model[k]; ok != there || v != w {
				t.Fatalf("get %d: %d %v", k, v, ok)
			}
		}
	})
}

func keysFrom(tr tree[int, int], start int) []int {
	var out []int
	for k := range tr.from(start) {
		out = append(out, k)
	}
	return out
}

func TestTopicNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "A.b_c-9": true, "": false, ".": false, "..": false, "...": true, "a b": false, "é": false, "a/b": false,
		string(make([]byte, 250)): false,
	} {
		if err := ValidateTopicName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
