package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTopicCommands(t *testing.T) {
	startCore(t, t.TempDir())
	if got := ok(t, "", "topic", "create", "a", "b", "-p", "2", "-c", "retention.ms=5000"); got != "created topic a: 2 partitions, 1 replicas\ncreated topic b: 2 partitions, 1 replicas\n" {
		t.Errorf("create printed %q", got)
	}
	again := sluice(t, "", "topic", "create", "a")
	if again.code != 1 || !strings.Contains(again.err, "TOPIC_ALREADY_EXISTS") || !strings.Contains(again.err, "hint: --if-not-exists") {
		t.Errorf("creating it again: %d %q", again.code, again.err)
	}
	if got := ok(t, "", "topic", "create", "a", "--if-not-exists"); got != "topic a exists\n" {
		t.Errorf("create --if-not-exists printed %q", got)
	}
	if got := ok(t, "", "topic", "create", "c", "--validate-only"); got != "topic c could be created\n" {
		t.Errorf("create --validate-only printed %q", got)
	}
	if r := sluice(t, "", "topic", "create", "c", "-c", "retention.ms=soon"); r.code != 1 || !strings.Contains(r.err, "Not a number of type LONG") {
		t.Errorf("a bad setting: %d %q", r.code, r.err)
	}
	if got := ok(t, "", "topic", "list"); got != "a\nb\n" {
		t.Errorf("list printed %q", got)
	}
	long := strings.Fields(ok(t, "", "topic", "list", "-l"))
	list := asJSON[[]listedTopic](t, "topic", "list")
	if len(list) != 2 || len(list[0].ID) != 22 || list[0].Partitions != 2 || long[7] != list[0].ID {
		t.Errorf("list printed %+v and %v", list, long)
	}
	ok(t, "", "topic", "alter", "a", "-p", "3", "-c", "segment.ms=6000", "-d", "retention.ms")
	described := asJSON[[]describedTopic](t, "topic", "describe", "a")[0]
	if len(described.Partitions) != 3 || !cmp.Equal(described.Configs, map[string]string{"segment.ms": "6000"}) || described.Partitions[0].Leader != 1 {
		t.Errorf("describe printed %+v", described)
	}
	if all := asJSON[[]describedTopic](t, "topic", "describe", "a", "--all")[0]; len(all.Configs) < 25 {
		t.Errorf("describe --all printed %d settings", len(all.Configs))
	}
	if text := ok(t, "", "topic", "describe", "a"); !strings.Contains(text, "segment.ms=6000") || !strings.Contains(text, "PARTITION") {
		t.Errorf("describe printed %q", text)
	}
	if r := sluice(t, "", "topic", "alter", "a", "-p", "1"); r.code != 1 || !strings.Contains(r.err, "INVALID_PARTITIONS") {
		t.Errorf("fewer partitions: %d %q", r.code, r.err)
	}
	if got := asJSON[[]deletedItem](t, "topic", "delete", "a", "b", "x", "--if-exists"); len(got) != 3 || !got[0].Deleted || got[2].Deleted {
		t.Errorf("delete printed %+v", got)
	}
	if r := sluice(t, "", "topic", "delete", "a"); r.code != 1 || !strings.Contains(r.err, "UNKNOWN_TOPIC_OR_PARTITION") || !strings.Contains(r.err, "hint: `sluice topic list`") {
		t.Errorf("deleting what is not there: %d %q", r.code, r.err)
	}
	if r := sluice(t, "", "topic", "describe", "a"); r.code != 1 {
		t.Errorf("describing what is not there: %d %q", r.code, r.err)
	}
}

func TestProduceAndConsume(t *testing.T) {
	startCore(t, t.TempDir())
	ok(t, "", "topic", "create", "t", "-p", "2")
	ok(t, "k1:v1\nk2:\nplain\n", "produce", "t", "-p", "0", "-K", ":", "-H", "unit=C", "-Z", "-z", "zstd")
	got := ok(t, "", "consume", "t", "--from", "earliest", "-e", "-p", "0", "-f", `%t %p %o %k %K %s %S %h\n`)
	if diff := cmp.Diff("t 0 0 k1 2 v1 2 unit=C\nt 0 1 k2 2  -1 unit=C\nt 0 2  -1 plain 5 unit=C\n", got); diff != "" {
		t.Error(diff)
	}
	file := filepath.Join(t.TempDir(), "whole")
	if err := os.WriteFile(file, []byte("two\nlines\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if sent := asJSON[produced](t, "produce", "t", file, "--whole", "-p", "1", "-k", "key"); sent.Records != 1 || sent.Bytes != 13 {
		t.Errorf("produce printed %+v", sent)
	}
	var r jsonOut
	if err := json.Unmarshal([]byte(ok(t, "", "consume", "t", "--from", "0", "-e", "-p", "1", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	if r.Value != nil || string(r.ValueB64) != "two\nlines\xff" || *r.Key != "key" || time.Since(r.Timestamp) > testTimeout {
		t.Errorf("consume printed %+v", r)
	}
	for from, want := range map[string]string{"-1": "plain", "2": "plain", "latest": "", "-1h": "v1\n\nplain", "2020-01-02T03:04:05Z": "v1\n\nplain"} {
		if got := strings.TrimSpace(ok(t, "", "consume", "t", "--from", from, "-e", "-p", "0")); got != want {
			t.Errorf("from %s: %q, want %q", from, got, want)
		}
	}
	if got := ok(t, "", "consume", "t", "--from", "earliest", "-n", "1", "-p", "0", "-K", "="); got != "k1=v1\n" {
		t.Errorf("one record: %q", got)
	}
	if r := sluice(t, "", "consume", "none", "--from", "earliest", "-e"); r.code != 1 || !strings.Contains(r.err, "UNKNOWN_TOPIC_OR_PARTITION") {
		t.Errorf("a topic that is not there: %d %q", r.code, r.err)
	}
}

func TestProduceJSON(t *testing.T) {
	startCore(t, t.TempDir())
	ok(t, "", "topic", "create", "t", "-p", "3")
	lines := `{"key":"a","value":"text","headers":{"h":"x"},"partition":2,"timestamp":"2026-01-31T12:00:00Z"}
{"value":{"n":1},"partition":2}
{"key":"gone","value":null,"partition":2}
{"valueBase64":"/w==","partition":2}
`
	ok(t, lines, "produce", "t", "--json")
	got := ok(t, "", "consume", "t", "--from", "earliest", "-e", "-f", `%p %k %s %S %h|`)
	if got != "2 a text 4 h=x|2  {\"n\":1} 7 |2 gone  -1 |2  \xff 1 |" {
		t.Errorf("the topic holds %q", got)
	}
	if r := sluice(t, "{\"key\":\"a\"}\nnot json\n", "produce", "t", "--json"); r.code != 1 || !strings.Contains(r.err, "line 2: read record") {
		t.Errorf("a line that is no JSON: %d %q", r.code, r.err)
	}
	if r := sluice(t, "x\n", "produce", "bad name"); r.code != 1 || !strings.Contains(r.err, "INVALID_TOPIC") {
		t.Errorf("a bad topic: %d %q", r.code, r.err)
	}
	if r := sluice(t, strings.Repeat("x", 2_000_000)+"\n", "produce", "t", "--timeout", "10s"); r.code != 1 || !strings.Contains(r.err, "MESSAGE_TOO_LARGE") {
		t.Errorf("too large a record: %d %q", r.code, r.err)
	}
}

func TestAcks(t *testing.T) {
	startCore(t, t.TempDir())
	ok(t, "", "topic", "create", "t", "-p", "1")
	for _, acks := range []string{"0", "1", "all"} {
		ok(t, "with acks="+acks+"\n", "produce", "t", "--acks", acks)
	}
	if got := strings.Split(strings.TrimSpace(ok(t, "", "consume", "t", "--from", "earliest", "-n", "3")), "\n"); len(got) != 3 {
		t.Errorf("the topic holds %v", got)
	}
}

func TestGroupCommands(t *testing.T) {
	startCore(t, t.TempDir())
	ok(t, "", "topic", "create", "t", "-p", "2")
	ok(t, "a\nb\n", "produce", "t", "-p", "0")
	ok(t, "c\n", "produce", "t", "-p", "1")
	consumed := func() string {
		lines := strings.Fields(ok(t, "", "consume", "t", "-g", "g", "-e"))
		sort.Strings(lines)
		return strings.Join(lines, " ")
	}
	if got := consumed(); got != "a b c" {
		t.Errorf("the group consumed %q", got)
	}
	if got := consumed(); got != "" {
		t.Errorf("the group consumed %q again", got)
	}
	if got := asJSON[[]listedGroup](t, "group", "list"); len(got) != 1 || got[0] != (listedGroup{"g", "Empty", "consumer", 1}) {
		t.Errorf("list printed %+v", got)
	}
	if text := ok(t, "", "group", "list"); !strings.Contains(text, "GROUP") || !strings.Contains(text, "Empty") {
		t.Errorf("list printed %q", text)
	}
	described := asJSON[[]describedGroup](t, "group", "describe", "g")[0]
	want := []groupOffset{{Topic: "t", Committed: 2, End: 2}, {Topic: "t", Partition: 1, Committed: 1, End: 1}}
	if diff := cmp.Diff(want, described.Offsets); diff != "" || described.Lag != 0 {
		t.Errorf("lag %d, %s", described.Lag, diff)
	}
	if got := asJSON[[]movedOffset](t, "group", "reset-offsets", "g", "--to", "earliest", "--dry-run"); len(got) != 2 || consumed() != "" {
		t.Errorf("a dry run moved the offsets: %+v", got)
	}
	ok(t, "", "group", "reset-offsets", "g", "--to", "-1", "-t", "t:0")
	if got := consumed(); got != "b" {
		t.Errorf("after going back by one it consumed %q", got)
	}
	ok(t, "", "group", "reset-offsets", "g", "--to", "earliest")
	if text := ok(t, "", "group", "describe", "g"); !strings.Contains(text, "lag 3") {
		t.Errorf("describe printed %q", text)
	}
	for _, name := range []string{"describe", "delete"} {
		if r := sluice(t, "", "group", name, "nobody"); r.code != 1 || !strings.Contains(r.err, "GROUP_ID_NOT_FOUND") {
			t.Errorf("%s of a group that is not there: %d %q", name, r.code, r.err)
		}
	}
	if got := ok(t, "", "group", "delete", "g"); got != "deleted group g\n" {
		t.Errorf("delete printed %q", got)
	}
	if r := sluice(t, "", "group", "reset-offsets", "g", "--to", "earliest"); r.code != 1 || !strings.Contains(r.err, "name the topics with --topic") {
		t.Errorf("reset of a group that is not there: %d %q", r.code, r.err)
	}
}

func TestLogDump(t *testing.T) {
	data := t.TempDir()
	core := startCore(t, data)
	ok(t, "", "topic", "create", "t", "-p", "1")
	ok(t, "", "topic", "create", "empty", "-p", "1")
	one := strings.Repeat("one", 100)
	ok(t, "k:"+one+"\nk:two\n", "produce", "t", "-K", ":", "-z", "gzip")
	dir := filepath.Join(data, "t-0")
	if text := ok(t, "", "log", "dump", "-r", dir); !strings.Contains(text, "compresscodec: gzip") || !strings.Contains(text, `key: "k" value: "two"`) {
		t.Errorf("dump printed %s", text)
	}
	var batch struct {
		Count   int32
		IsValid bool
		Records []struct{ Value string }
	}
	if err := json.Unmarshal([]byte(ok(t, "", "log", "dump", "-r", dir, "-o", "json")), &batch); err != nil || batch.Count != 2 || !batch.IsValid || batch.Records[1].Value != "two" {
		t.Errorf("dump printed %+v, %v", batch, err)
	}
	core.stop()
	segment := filepath.Join(dir, "00000000000000000000.log")
	raw, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-3] ^= 1
	damaged := filepath.Join(t.TempDir(), "damaged.log")
	if err := os.WriteFile(damaged, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := sluice(t, "", "log", "dump", damaged, segment); r.code != 1 || !strings.Contains(r.out, "isvalid: false") || !strings.Contains(r.out, "isvalid: true") || !strings.Contains(r.err, "dump "+damaged) {
		t.Errorf("a damaged file: %d %q %q", r.code, r.out, r.err)
	}
	if r := sluice(t, "", "log", "dump", t.TempDir()); r.code != 1 || !strings.Contains(r.err, "holds no segment") {
		t.Errorf("an empty directory: %d %q", r.code, r.err)
	}
	if r := sluice(t, "", "log", "dump", "/nowhere"); r.code != 1 {
		t.Errorf("no directory: %d %q", r.code, r.err)
	}
}

func TestParsePosition(t *testing.T) {
	for text, want := range map[string]position{
		"earliest": {kind: atStart}, "latest": {kind: atEnd}, "7": {kind: atOffset, offset: 7}, "-7": {kind: fromEnd, offset: 7},
		"2026-01-31T12:00:00Z": {kind: atTime, time: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)},
	} {
		if got, err := parsePosition(text); err != nil || got != want {
			t.Errorf("%s is %+v, %v", text, got, err)
		}
	}
	if got, err := parsePosition("-15m"); err != nil || got.kind != atTime || time.Since(got.time) < 15*time.Minute {
		t.Errorf("-15m is %+v, %v", got, err)
	}
	for _, text := range []string{"", "15m", "soon", "2026-01-31"} {
		if got, err := parsePosition(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}
