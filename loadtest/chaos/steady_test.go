package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/loadtest/history"
)

// fakeCluster is brokers that share one log of one partition. They answer as their test says.
type fakeCluster struct {
	t       *testing.T
	brokers map[int32]string
	mu      sync.Mutex
	leader  int32
	epoch   int32
	silent  map[int32]bool // reads and answers nothing
	// answer decides what becomes of a batch that is not stored yet: stored or not, and the code that is answered.
	answer func(node int32, n int) (store bool, code int16)
	tries  int
	log    []*kgo.Record
	seen   map[int32]int64 // where the sequences are that are stored
}

func newFakeCluster(t *testing.T, nodes int32) *fakeCluster {
	c := &fakeCluster{
		t: t, brokers: map[int32]string{}, leader: 1, silent: map[int32]bool{}, seen: map[int32]int64{},
		answer: func(int32, int) (bool, int16) { return true, 0 },
	}
	var all sync.WaitGroup
	var listeners []net.Listener
	for node := int32(1); node <= nodes; node++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		c.brokers[node] = l.Addr().String()
		all.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				all.Go(func() { c.serve(node, conn) })
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			l.Close()
		}
		all.Wait()
	})
	return c
}

func (c *fakeCluster) serve(node int32, conn net.Conn) {
	defer conn.Close()
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(conn, body); err != nil {
			return
		}
		r := kbin.Reader{Src: body}
		key, version, correlation := r.Int16(), r.Int16(), r.Int32()
		r.NullableString()
		req := kmsg.RequestForKey(key)
		req.SetVersion(version)
		if req.IsFlexible() {
			kmsg.SkipTags(&r)
		}
		if err := req.ReadFrom(r.Src); err != nil {
			c.t.Errorf("request %d: %v", key, err)
			return
		}
		resp := c.reply(node, req)
		if resp == nil {
			continue
		}
		out := binary.BigEndian.AppendUint32(nil, uint32(correlation))
		if resp.IsFlexible() {
			out = append(out, 0)
		}
		out = resp.AppendTo(out)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(out))), out...)); err != nil {
			return
		}
	}
}

func (c *fakeCluster) reply(node int32, req kmsg.Request) kmsg.Response {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent[node] {
		return nil
	}
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	switch resp := resp.(type) {
	case *kmsg.InitProducerIDResponse:
		resp.ProducerID = 7
	case *kmsg.MetadataResponse:
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Leader, p.LeaderEpoch = c.leader, c.epoch
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic, topic.Partitions = kmsg.StringPtr("t"), append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
	case *kmsg.ProduceResponse:
		in := req.(*kmsg.ProduceRequest).Topics[0].Partitions[0]
		p := kmsg.NewProduceResponseTopicPartition()
		p.BaseOffset, p.ErrorCode = c.produce(node, in.Records)
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.Partitions = "t", append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
		if p.ErrorCode < -1 {
			return nil
		}
	}
	return resp
}

// noAnswer is a code that is not answered.
const noAnswer = -2

func (c *fakeCluster) produce(node int32, raw []byte) (int64, int16) {
	if node != c.leader {
		return -1, kerr.NotLeaderForPartition.Code
	}
	if got, want := crc32.Checksum(raw[21:], castagnoli), binary.BigEndian.Uint32(raw[17:]); got != want {
		c.t.Errorf("checksum %08x, the batch says %08x", got, want)
	}
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		c.t.Errorf("batch: %v", err)
	}
	if offset, ok := c.seen[b.FirstSequence]; ok {
		return offset, 0 // sent again, as on a busy machine: it is where it was
	}
	c.tries++
	offset := int64(len(c.log))
	store, code := c.answer(node, c.tries)
	if store {
		c.seen[b.FirstSequence] = offset
		c.store(raw)
	}
	return offset, code
}

func (c *fakeCluster) store(raw []byte) {
	p := kmsg.NewFetchResponseTopicPartition()
	p.RecordBatches = raw
	got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t"}, &p, kgo.DefaultDecompressor(), nil)
	if got.Err != nil || len(got.Records) == 0 {
		c.t.Errorf("%d records, %v", len(got.Records), got.Err)
	}
	for _, r := range got.Records {
		r.Offset = int64(len(c.log))
		c.log = append(c.log, r)
	}
}

func (c *fakeCluster) set(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
}

// work lets a steady writer write until there are n records, and checks that the log has each of them once and in order.
func (c *fakeCluster) work(n int) (*steady, *history.Verdict) {
	c.t.Helper()
	s := &steady{topic: "t", partitions: 1, brokers: c.brokers, timeline: newTimeline(time.Now()), size: 60}
	until, done := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() { defer close(done); s.run(ctx, until) }()
	err := await(ctx, patience, "the records are written", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.log) < n {
			return errors.New("not yet")
		}
		return nil
	})
	close(until)
	<-done
	if err != nil {
		c.t.Fatal(err)
	}
	var reads []history.Read
	for _, r := range c.log {
		reads = append(reads, readOf(r))
	}
	return s, s.judge(reads)
}

func TestSteadyWrites(t *testing.T) {
	c := newFakeCluster(t, 3)
	s, v := c.work(5)
	if !v.OK() || v.Acked < 5 || int64(s.timeline.count()) > v.Acked {
		t.Errorf("%+v, %d acknowledgements", v, s.timeline.count())
	}
}

// A batch whose answer is lost is sent again as it was, to whoever leads then, and is there once.
func TestSteadyFollowsTheLeader(t *testing.T) {
	c := newFakeCluster(t, 3)
	c.answer = func(_ int32, n int) (bool, int16) {
		switch n {
		case 3: // stored, and the node falls silent before it answers; another one leads
			c.leader, c.epoch, c.silent[1] = 2, 1, true
			return true, noAnswer
		case 6:
			return false, kerr.KafkaStorageError.Code
		case 8:
			c.leader, c.epoch = 3, 2
			return false, kerr.NotLeaderForPartition.Code
		}
		return true, 0
	}
	_, v := c.work(12)
	if !v.OK() || v.Unknown != 0 {
		t.Errorf("%+v", v)
	}
}

// A leader that is cut off from the others and does not know it has an older epoch.
func TestSteadyBelievesTheNewestAnswer(t *testing.T) {
	c := newFakeCluster(t, 3)
	s := &steady{topic: "t", partitions: 1, brokers: c.brokers, timeline: newTimeline(time.Now())}
	c.set(func() { c.leader, c.epoch = 2, 5 })
	s.believes(t, 2, true)
	c.set(func() { c.silent[2] = true })
	s.believes(t, 2, false)
	c.set(func() { c.silent = map[int32]bool{1: true, 2: true, 3: true} })
	s.believes(t, -1, false)
}

// believes asks until the answer is what it has to be: on a busy machine some do not answer in time.
func (s *steady) believes(t *testing.T, leader int32, alive bool) {
	t.Helper()
	err := await(context.Background(), patience, "the leader is known", func() error {
		if l, a := s.askLeader(context.Background(), 0); l != leader || a != alive {
			return fmt.Errorf("leader %d, alive %v, want %d, %v", l, a, leader, alive)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSteadyTellsWhatMustNotBe(t *testing.T) {
	c := newFakeCluster(t, 3)
	c.answer = func(_ int32, n int) (bool, int16) {
		if n == 2 {
			c.seen = map[int32]int64{} // a new producer begins at 0
			return false, kerr.OutOfOrderSequenceNumber.Code
		}
		return true, 0
	}
	if _, v := c.work(4); v.Counts[Refused] != 1 || len(v.Counts) != 1 || v.Acked < 4 {
		t.Errorf("%+v", v)
	}
}

// What the log lost, doubled or changed is found.
func TestSteadyJudges(t *testing.T) {
	for name, c := range map[string]struct {
		bad  func(reads []history.Read) []history.Read
		want history.Kind
	}{
		"lost":    {func(r []history.Read) []history.Read { return r[:2] }, history.Lost},
		"doubled": {func(r []history.Read) []history.Read { return append(r, r[0]) }, history.Doubled},
		"foreign": {func(r []history.Read) []history.Read { r[1].Writer = "?"; return r }, history.Invented},
	} {
		s := &steady{topic: "t"}
		var reads []history.Read
		for i := range int64(3) {
			place := history.Place{Offset: i}
			s.mu.writes = append(s.mu.writes, history.Write{Writer: "steady-0", Number: i, Acked: true, Place: &place})
			reads = append(reads, history.Read{Place: place, Writer: "steady-0", Number: i})
		}
		if v := s.judge(c.bad(reads)); v.Counts[c.want] == 0 {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestProduceOutcome(t *testing.T) {
	for code, want := range map[int16]error{
		0: nil, kerr.DuplicateSequenceNumber.Code: nil, kerr.NotLeaderForPartition.Code: kerr.NotLeaderForPartition, kerr.KafkaStorageError.Code: kerr.KafkaStorageError,
		kerr.OutOfOrderSequenceNumber.Code: errRefused, kerr.CorruptMessage.Code: kerr.CorruptMessage, kerr.InvalidProducerEpoch.Code: errRefused,
	} {
		if _, err := produceOutcome(code, 3); !errors.Is(err, want) {
			t.Errorf("code %d: %v, want %v", code, err, want)
		}
	}
	if offset, _ := produceOutcome(kerr.DuplicateSequenceNumber.Code, 3); offset != -1 {
		t.Errorf("a duplicate without an offset is at %d", offset)
	}
}

func TestReadOf(t *testing.T) {
	good := numbered("steady-3", 17, 80)
	if r := readOf(&kgo.Record{Value: good}); r.Writer != "steady-3" || r.Number != 17 {
		t.Errorf("%+v", r)
	}
	bad := append([]byte{}, good...)
	bad[60] ^= 1
	for _, value := range [][]byte{bad, good[:len(good)-1][:10], nil, []byte("a b c")} {
		if r := readOf(&kgo.Record{Value: value}); r.Writer != "?" {
			t.Errorf("%q is taken for %+v", value, r)
		}
	}
}
