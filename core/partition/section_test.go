package partition

import (
	"bytes"
	"testing"
)

// TestSectionOfACompactedPartition: the 11th element is there when it is not 0 and comes back, also in a manifest; without, sections and manifests are
// as older releases wrote them.
func TestSectionOfACompactedPartition(t *testing.T) {
	for _, dirty := range []int64{0, 1, 23, 24, 1 << 40} {
		sec := &section{Topic: topicID("a"), Name: "a", dirty: dirty, EpochBase: 3}
		b := sec.encode()
		if (b[0] == sectionArray) != (dirty == 0) {
			t.Errorf("dirty from %d: begins with %#x", dirty, b[0])
		}
		got, err := decodeSection(bytes.Clone(b))
		if err != nil || got.dirty != dirty || got.Name != "a" || got.EpochBase != 3 {
			t.Errorf("dirty from %d came back as %+v, %v", dirty, got, err)
		}
		h := manifestHeader{Shard: testShard, Partitions: 1, compacted: dirty > 0}
		var buf bytes.Buffer
		m := newManifestWriter(&buf)
		if err := m.header(h); err != nil {
			t.Fatal(err)
		}
		if err := m.frame(b); err != nil {
			t.Fatal(err)
		}
		if err := m.flush(); err != nil {
			t.Fatal(err)
		}
		read, sections, err := readManifest(&buf, testShard)
		want := uint16(1)
		if dirty > 0 {
			want = 3
		}
		if err != nil || read.Version != want || len(sections) != 1 || sections[0].dirty != dirty {
			t.Errorf("manifest: version %d, %v", read.Version, err)
		}
	}
	for _, hostile := range [][]byte{{}, {compactedArray}, {sectionArray}, append([]byte{compactedArray}, bytes.Repeat([]byte{0xf6}, 12)...)} {
		if _, err := decodeSection(hostile); err == nil {
			t.Errorf("%x was taken for a section", hostile)
		}
	}
}
