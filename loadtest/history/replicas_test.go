package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// batch makes what CompareReplicas takes for a record batch: count records whose bytes are nonsense.
func batch(base int64, count int, body string) []byte {
	b := make([]byte, batchHeader, batchHeader+len(body))
	b = append(b, body...)
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[batchLengthAt:], uint32(len(b)-batchPrefix))
	b[16] = 2
	binary.BigEndian.PutUint32(b[batchDeltaAt:], uint32(count-1))
	binary.BigEndian.PutUint32(b[batchCRCAt:], crc32.Checksum(b[batchAttrsAt:], castagnoli))
	return b
}

// tenBatches are ten batches of two records.
func tenBatches() (out [][]byte) {
	for i := range 10 {
		out = append(out, batch(int64(2*i), 2, strings.Repeat(fmt.Sprint(i), 20)))
	}
	return out
}

// writeReplica writes batches into segments of so many batches each.
func writeReplica(t *testing.T, node string, batches [][]byte, perSegment int) {
	t.Helper()
	dir := filepath.Join(node, "t-0")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for len(batches) > 0 {
		n := min(perSegment, len(batches))
		name := filepath.Join(dir, fmt.Sprintf("%020d.log", binary.BigEndian.Uint64(batches[0])))
		if err := os.WriteFile(name, slices.Concat(batches[:n]...), 0o600); err != nil {
			t.Fatal(err)
		}
		batches = batches[n:]
	}
}

func TestCompareReplicas(t *testing.T) {
	for _, c := range []struct {
		name   string
		tamper func(b [][]byte) [][]byte // of one replica of three
		want   []Kind                    // that are found; none = all is well
	}{
		{"equal", func(b [][]byte) [][]byte { return b }, nil},
		{"one was stopped first", func(b [][]byte) [][]byte { return b[:7] }, nil},
		{"one has removed its first segments", func(b [][]byte) [][]byte { return b[3:] }, nil},
		{"a bit is changed", func(b [][]byte) [][]byte { b[4][batchHeader+3] ^= 4; return b }, []Kind{Corrupt, Diverged}},
		{"a bit outside of the checksum is changed", func(b [][]byte) [][]byte { b[4][batchPrefix] ^= 1; return b }, []Kind{Diverged}},
		{"another batch, whole by itself", func(b [][]byte) [][]byte { b[4] = batch(8, 2, "other"); return b }, []Kind{Diverged}},
		{"a batch is missing", func(b [][]byte) [][]byte { return slices.Delete(b, 4, 5) }, []Kind{Diverged, Gap}},
		{"two batches have changed places", func(b [][]byte) [][]byte { b[4], b[5] = b[5], b[4]; return b }, []Kind{Diverged, Gap}},
		{"cut into other batches", func(b [][]byte) [][]byte { return slices.Replace(b, 4, 6, batch(8, 4, "both")) }, []Kind{Diverged}},
		{"the last batch is torn", func(b [][]byte) [][]byte { b[9] = b[9][:len(b[9])-3]; return b }, []Kind{Corrupt}},
		{"a few bytes too many", func(b [][]byte) [][]byte { return append(b, make([]byte, 20)) }, []Kind{Corrupt}},
		{"zeros in the middle", func(b [][]byte) [][]byte { clear(b[4]); return b }, []Kind{Corrupt}},
	} {
		root := t.TempDir()
		var nodes []string
		for n := range 3 {
			node := filepath.Join(root, fmt.Sprint("node", n))
			nodes = append(nodes, node)
			b := tenBatches()
			if n == 1 {
				b = c.tamper(b)
			}
			writeReplica(t, node, b, 3)
		}
		found, err := FindReplicas(nodes...)
		if err != nil || len(found) != 1 || found[0].Name != "t-0" || len(found[0].Dirs) != 3 {
			t.Fatalf("%s: replicas %v, %v", c.name, found, err)
		}
		r, err := CompareReplicas(found[0])
		if err != nil || len(r.Ends) != 3 || r.Batches == 0 {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
		kinds := map[Kind]bool{}
		for _, v := range r.Violations {
			kinds[v.Kind] = true
		}
		for _, k := range []Kind{Corrupt, Diverged, Gap} {
			if kinds[k] != slices.Contains(c.want, k) {
				t.Errorf("%s: found %v, want %v: %v", c.name, kinds, c.want, r.Violations)
				break
			}
		}
	}
}

func TestFindReplicas(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a/t-0", "b/deep/t-0.00ff", "a/t-1-deleted", "a/raft", "a/empty-0", "b/my-topic-12"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if dir != "a/empty-0" {
			if err := os.WriteFile(filepath.Join(root, dir, "00000000000000000000.log"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := FindReplicas(filepath.Join(root, "a"), filepath.Join(root, "b"))
	if err != nil || len(got) != 2 || got[0].Name != "my-topic-12" || got[1].Name != "t-0" || len(got[1].Dirs) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := FindReplicas(filepath.Join(root, "nowhere")); err == nil {
		t.Error("a node that is not there is no error")
	}
	if r, err := CompareReplicas(got[1]); err != nil || len(r.Violations) > 0 {
		t.Errorf("empty replicas: %+v, %v", r, err)
	}
}
