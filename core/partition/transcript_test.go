package partition

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"sluice/core/vfs"
)

// TestTranscripts plays the files of testdata/transcripts. Commands:
//
//	apply [term=N]   one ApplyBatch of the entries below, one a line
//	read KEY [committed]
//	state KEY        offsets, epochs, producers, aborted transactions
//	epoch KEY N...   OffsetForLeaderEpoch
//	checkpoint, restart [crash], dirs
//
// Items of one append entry are separated by ";", batches of an item by "+".
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		p := &player{t: t, term: 1, ids: make(map[string]Key)}
		p.r = newReplica(t, vfs.NewMem(), "/data")
		defer func() { _ = p.r.set.Close() }()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return p.play(d) })
	})
}

type player struct {
	t    *testing.T
	r    *replica
	log  entries
	term uint64
	ids  map[string]Key
}

func (p *player) play(d *datadriven.TestData) string {
	d.MaybeScanArgs(p.t, "term", &p.term)
	switch d.Cmd {
	case "apply":
		return p.apply(d)
	case "read":
		part := p.partition(d.CmdArgs[0].Key)
		return strings.Join(readAll(p.t, part, d.HasArg("committed")), " ") + "\n"
	case "state":
		return p.state(p.partition(d.CmdArgs[0].Key))
	case "epoch":
		return p.epochs(d)
	case "checkpoint":
		p.r.checkpoint()
		return ""
	case "restart":
		return p.restart(d.HasArg("crash"))
	case "dirs":
		return p.r.names()
	}
	p.t.Fatalf("unknown command %q", d.Cmd)
	return ""
}

func (p *player) restart(crash bool) string {
	var fs vfs.FS
	if crash {
		fs = p.r.fs.(*vfs.Mem).CrashClone(nil)
	}
	p.r.restart(fs)
	replayed := len(p.log.log) - p.r.applied
	p.r.apply(p.log.log, len(p.log.log))
	return fmt.Sprintf("replayed %d\n", replayed)
}

func (p *player) apply(d *datadriven.TestData) string {
	lines := strings.Split(strings.TrimSpace(d.Input), "\n")
	for _, line := range lines {
		p.log.add(p.term, p.entry(line))
	}
	var out strings.Builder
	for _, result := range p.r.apply(p.log.log, len(p.log.log)) {
		out.WriteString(describe(result) + "\n")
	}
	return out.String()
}

func (p *player) entry(line string) []byte {
	verb, rest, _ := strings.Cut(line, " ")
	fields := strings.Fields(rest)
	switch verb {
	case "create":
		c := Create{Key: p.key(fields[0]), Name: strings.Split(topicOf(fields[0]), "@")[0]}
		c.EpochBase = int32(option(fields, "base", 0))
		c.Config.SegmentBytes = option(fields, "segment", 0)
		return EncodeCreate(c)
	case "delete":
		return EncodeDelete(p.key(fields[0]))
	case "configure":
		return EncodeConfigure(p.key(fields[0]), LogConfig{SegmentBytes: option(fields, "segment", 0)})
	case "start":
		return EncodeStart([]Start{{Key: p.key(fields[0]), Offset: option(fields, "at", -1)}})
	case "append":
		return p.appendEntry(rest)
	case "raw":
		return []byte(rest)
	}
	p.t.Fatalf("unknown entry %q", line)
	return nil
}

func (p *player) appendEntry(text string) []byte {
	var items []Append
	for _, item := range strings.Split(text, ";") {
		var it Append
		for i, b := range strings.Split(item, "+") {
			fields := strings.Fields(b)
			if i == 0 {
				it.Key, fields = p.key(fields[0]), fields[1:]
			}
			it.Batches = append(it.Batches, parseBatch(fields)...)
		}
		items = append(items, it)
	}
	return EncodeAppend(items)
}

func parseBatch(fields []string) []byte {
	b := testBatch{
		producer: option(fields, "pid", -1), epoch: int16(option(fields, "epoch", 0)),
		sequence: int32(option(fields, "seq", -1)), count: int(option(fields, "n", 1)),
		time: option(fields, "time", 1000), value: "value",
	}
	for _, f := range fields {
		switch f {
		case "txn":
			b.txn = true
		case "commit", "abort":
			b.marker, b.txn = f, true
		case "garbage":
			return []byte("these are not batches, and more than a header of bytes long, so that a length is read")
		}
	}
	return b.build()
}

func option(fields []string, name string, otherwise int64) int64 {
	for _, f := range fields {
		if value, ok := strings.CutPrefix(f, name+"="); ok {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				panic(err)
			}
			return n
		}
	}
	return otherwise
}

// topicOf takes `topic@life` from `topic@life-index`: the life tells the topic
// ids of topics of one name apart.
func topicOf(key string) string { return key[:strings.LastIndexByte(key, '-')] }

func (p *player) key(name string) Key {
	index, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		p.t.Fatalf("key %q: %v", name, err)
	}
	return Key{Topic: topicID(topicOf(name)), Index: int32(index)}
}

func (p *player) partition(name string) *Partition {
	part, ok := p.r.set.Get(p.key(name))
	if !ok {
		p.t.Fatalf("no partition %q", name)
	}
	return part
}

func (p *player) epochs(d *datadriven.TestData) string {
	part := p.partition(d.CmdArgs[0].Key)
	var out strings.Builder
	for _, arg := range d.CmdArgs[1:] {
		n, err := strconv.Atoi(arg.Key)
		if err != nil {
			p.t.Fatalf("epoch %q: %v", arg.Key, err)
		}
		found, end := part.EpochEnd(int32(n))
		fmt.Fprintf(&out, "%d: epoch %d ends at %d\n", n, found, end)
	}
	return out.String()
}

func (p *player) state(part *Partition) string {
	var out strings.Builder
	fmt.Fprintf(&out, "start=%d end=%d stable=%d\n", part.Start(), part.End(), part.LastStable())
	for _, row := range part.state.epochs.rows {
		fmt.Fprintf(&out, "epoch %d from %d\n", row.Epoch, row.Start)
	}
	for _, pr := range part.Producers() {
		fmt.Fprintf(&out, "producer %d epoch=%d last=%d offset=%d", pr.ID, pr.Epoch, pr.LastSequence, pr.LastOffset)
		if pr.TxnStart >= 0 {
			fmt.Fprintf(&out, " txn=%d", pr.TxnStart)
		}
		out.WriteString("\n")
	}
	for _, a := range part.Aborted(0, part.End()) {
		fmt.Fprintf(&out, "aborted producer %d from %d to %d\n", a.Producer, a.FirstOffset, a.LastOffset)
	}
	return out.String()
}

// describe prints a result with the sentinel of its error.
func describe(result any) string {
	switch r := result.(type) {
	case nil:
		return "ok"
	case error:
		return sentinel(r)
	case []AppendResult:
		var parts []string
		for _, a := range r {
			if a.Err != nil {
				parts = append(parts, sentinel(a.Err))
			} else {
				parts = append(parts, fmt.Sprintf("base=%d", a.Base))
			}
		}
		return strings.Join(parts, "; ")
	case []StartResult:
		return fmt.Sprintf("start=%d %s", r[0].Start, sentinel(r[0].Err))
	}
	return fmt.Sprintf("%T", result)
}

func sentinel(err error) string {
	all := []error{
		ErrUnknownPartition, ErrDeleted, ErrOutOfOrderSequence, ErrInvalidProducerEpoch, ErrDuplicateSequence,
		ErrInvalidTxnState, ErrOutOfRange, ErrInvalidBatch, ErrInvalidEntry, ErrVersion, ErrStopped,
	}
	for _, s := range all {
		if errors.Is(err, s) {
			return s.Error()
		}
	}
	return fmt.Sprint(err)
}
