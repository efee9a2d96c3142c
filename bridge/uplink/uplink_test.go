package uplink

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"sluice/core/commitlog"
	"sluice/core/record"
	"sluice/core/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits for what must come: only a failure waits so long.
const patience = time.Minute

// buffer is a commitlog that keeps the uplink's view of it.
type buffer struct {
	t         *testing.T
	log       *commitlog.Log
	mu        sync.Mutex
	appended  chan struct{}
	confirmed int64
	held      int64
	wake      chan struct{} // one token after each Confirm
}

func newBuffer(t *testing.T, fs vfs.FS) *buffer {
	t.Helper()
	if err := fs.MkdirAll("/buffer"); err != nil {
		t.Fatal(err)
	}
	log, err := commitlog.Open(fs, "/buffer", commitlog.Config{SegmentBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return &buffer{t: t, log: log, appended: make(chan struct{}), held: -1, wake: make(chan struct{}, 1)}
}

func (b *buffer) Log() *commitlog.Log { return b.log }
func (b *buffer) Synced() int64       { return b.log.Synced() }
func (b *buffer) Hold(offset int64)   { b.mu.Lock(); b.held = offset; b.mu.Unlock() }
func (b *buffer) Appended() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.appended
}

func (b *buffer) Confirm(offset int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if offset < b.confirmed {
		b.t.Errorf("confirmed %d after %d", offset, b.confirmed)
	}
	b.confirmed = offset
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

type message struct{ topic, key, value string }

func (b *buffer) add(messages ...message) {
	b.t.Helper()
	builder := record.NewBuilder(record.BuilderOptions{})
	for _, m := range messages {
		var headers []record.Header
		if m.topic != "" {
			headers = []record.Header{{Key: HeaderTo, Value: []byte(m.topic)}, {Key: "mqtt.topic", Value: []byte(m.key)}}
		}
		builder.Add(1_700_000_000_000, []byte(m.key), []byte(m.value), headers)
	}
	if _, err := b.log.Append(builder.Build(nil), 0); err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.log.Sync(); err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.appended)
	b.appended = make(chan struct{})
}

// until waits for everything up to the end to be confirmed.
func (b *buffer) until(u *Uplink) {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		b.mu.Lock()
		done := b.confirmed >= b.log.End()
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-b.wake:
		case <-deadline:
			b.t.Fatalf("not confirmed: %+v, buffer confirmed %d, retries %d, requests %d", u.Status(), b.confirmed, u.m.retries.Get(), u.m.requests.Get())
		}
	}
}

// either waits for a signal, or for everything up to the end to be confirmed: then it may not come.
func (b *buffer) either(signal <-chan struct{}) {
	b.t.Helper()
	late := time.After(patience)
	for {
		b.mu.Lock()
		done := b.confirmed >= b.log.End()
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-signal:
			return
		case <-b.wake:
		case <-late:
			b.t.Fatal("neither came")
		}
	}
}

func cluster3(t *testing.T) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(3), kfake.SeedTopics(3, "mqtt", "sluice.dead-letter"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

type running struct {
	*Uplink
	stop func() error
}

func start(t *testing.T, b *buffer, fs vfs.FS, c *kfake.Cluster, change func(*Options)) running {
	t.Helper()
	o := Options{FS: fs, Dir: "/uplink", Brokers: c.ListenAddrs(), Linger: time.Millisecond, MachineID: "box-1", Codec: record.Zstd, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&o)
	}
	u, err := Open(b, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	var once sync.Once
	var result error
	stop := func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return running{u, stop}
}

// read returns what a topic holds: key -> values in order, the partitions one after the other.
func read(t *testing.T, c *kfake.Cluster, topic string, n int) map[string][]string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumeTopics(topic), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	all := map[string][]string{}
	for got := 0; got < n; {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%s: read %d of %d records", topic, got, n)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			all[string(r.Key)] = append(all[string(r.Key)], string(r.Value))
			got++
			for _, h := range r.Headers {
				if h.Key == HeaderTo {
					t.Errorf("header %s was sent", HeaderTo)
				}
			}
		})
	}
	more, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if extra := client.PollFetches(more).NumRecords(); extra > 0 {
		t.Errorf("%s: %d records too many", topic, extra)
	}
	return all
}

// wantSeries checks that every key has exactly the values 0..n-1, in order.
func wantSeries(t *testing.T, got map[string][]string, keys, n int) {
	t.Helper()
	if len(got) != keys {
		t.Errorf("%d keys, want %d", len(got), keys)
	}
	for key, values := range got {
		for i, v := range values {
			if v != fmt.Sprint(i) || len(values) != n {
				t.Fatalf("key %s has %d values, at %d is %q: %v", key, len(values), i, v, values)
			}
		}
	}
}

func series(topic string, keys, from, to int) (all []message) {
	for i := from; i < to; i++ {
		for k := range keys {
			all = append(all, message{topic, fmt.Sprint("device-", k), fmt.Sprint(i)})
		}
	}
	return all
}

func TestForwardsInOrder(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	b.add(series("mqtt", 7, 0, 50)...)
	u := start(t, b, fs, c, nil)
	b.add(message{"", "own", "the gateway's own record"})
	for i := range 20 {
		b.add(series("mqtt", 7, 50+i, 51+i)...)
		b.add(series("fresh", 2, i, i+1)...) // a topic that has to be created
	}
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 7*70), 7, 70)
	wantSeries(t, read(t, c, "fresh", 2*20), 2, 20)
	if err := u.stop(); err != nil {
		t.Fatal(err)
	}
	if s := u.Status(); s.Backlog != 0 || s.OpenRounds != 0 || s.Alarm != "" {
		t.Errorf("status = %+v", s)
	}
}

// An uplink that is stopped at any request, with the answer lost, must neither lose nor double anything.
func TestAnswersLostAndRestarts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	for i := range 15 {
		b.add(series("mqtt", 5, 10*i, 10*i+10)...)
		hit := make(chan struct{}, 1)
		after := r.IntN(3)
		c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			if after--; after >= 0 {
				c.KeepControl()
				return nil, nil, false
			}
			select {
			case hit <- struct{}{}:
			default:
			}
			return nil, nil, false // it is carried out; the uplink ends before it hears of it
		})
		u := start(t, b, fs, c, nil)
		b.either(hit)
		if err := u.stop(); err != nil {
			t.Fatal(err)
		}
	}
	u := start(t, b, fs, c, nil)
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 5*150), 5, 150)
	if s := u.Status(); s.Alarm != "" {
		t.Errorf("alarm: %s", s.Alarm)
	}
}

// fail answers the next n produce requests with an error for every partition.
func fail(c *kfake.Cluster, n int, code *kerr.Error) {
	c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if n--; n <= 0 {
			c.DropControl()
		}
		return refuse(req.(*kmsg.ProduceRequest), func(record.Batch) bool { return true }, code), nil, true
	})
}

// refuse answers with an error where match says so; it must match all or nothing is right for the rest.
func refuse(req *kmsg.ProduceRequest, match func(record.Batch) bool, code *kerr.Error) *kmsg.ProduceResponse {
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition = p.Partition
			if match(record.Batch(p.Records)) {
				rp.ErrorCode = code.Code
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

func TestRetriesWhatCanBeRetried(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	fail(c, 3, kerr.NotLeaderForPartition)
	u := start(t, b, fs, c, nil)
	b.add(series("mqtt", 5, 0, 20)...)
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 100), 5, 20)
	if u.m.retries.Get() == 0 {
		t.Error("no retry was counted")
	}
}

func TestLostProducerStateBeginsANewEpoch(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	b.add(series("mqtt", 5, 0, 5)...)
	u := start(t, b, fs, c, nil)
	b.until(u.Uplink)
	fail(c, 1, kerr.UnknownProducerID)
	b.add(series("mqtt", 5, 5, 10)...)
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 50), 5, 10)
	if s := u.Status(); !strings.Contains(s.Alarm, "no longer knows") {
		t.Errorf("alarm = %q", s.Alarm)
	}
}

// A record that the cluster refuses for good goes to the dead-letter topic; its neighbours, before and after, do not.
func TestRefusedRecordBecomesADeadLetter(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	bad := func(batch record.Batch) (found bool) {
		if err := batch.Each(func(r record.Record) error { found = found || string(r.Value) == "bad"; return nil }); err != nil {
			t.Error(err)
		}
		return found
	}
	c.ControlKey(int16(kmsg.Produce), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := kreq.(*kmsg.ProduceRequest)
		deadLetters := c.TopicInfo("sluice.dead-letter")
		for _, topic := range req.Topics {
			if deadLetters != nil && (topic.Topic == "sluice.dead-letter" || topic.TopicID == deadLetters.TopicID) {
				return nil, nil, false
			}
			for _, p := range topic.Partitions {
				if bad(record.Batch(p.Records)) {
					resp := refuse(req, bad, kerr.InvalidRecord)
					for i := range resp.Topics { // the others have to be sent again
						for k := range resp.Topics[i].Partitions {
							if rp := &resp.Topics[i].Partitions[k]; rp.ErrorCode == 0 {
								rp.ErrorCode = kerr.NotLeaderForPartition.Code
							}
						}
					}
					return resp, nil, true
				}
			}
		}
		return nil, nil, false
	})
	b.add(series("mqtt", 3, 0, 10)...)
	b.add(message{"mqtt", "device-1", "bad"})
	b.add(series("mqtt", 3, 10, 20)...)
	u := start(t, b, fs, c, nil)
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 60), 3, 20)
	if got := read(t, c, "sluice.dead-letter", 1); got["device-1"][0] != "bad" {
		t.Errorf("dead letters: %v", got)
	}
	if u.m.deadLetters.Get() != 1 {
		t.Errorf("%d dead letters counted", u.m.deadLetters.Get())
	}
}

// invalidTopic answers metadata requests as a cluster does that does not like one topic's name.
func invalidTopic(c *kfake.Cluster, bad string) {
	addrs := c.ListenAddrs()
	c.ControlKey(int16(kmsg.Metadata), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := kreq.(*kmsg.MetadataRequest)
		if !slices.ContainsFunc(req.Topics, func(t kmsg.MetadataRequestTopic) bool { return t.Topic != nil && *t.Topic == bad }) {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		for i, addr := range addrs {
			b := kmsg.NewMetadataResponseBroker()
			host, port, _ := net.SplitHostPort(addr)
			n, _ := strconv.Atoi(port)
			b.NodeID, b.Host, b.Port = int32(i), host, int32(n)
			resp.Brokers = append(resp.Brokers, b)
		}
		for _, t := range req.Topics {
			resp.Topics = append(resp.Topics, describe(c, *t.Topic, *t.Topic == bad))
		}
		return resp, nil, true
	})
}

func describe(c *kfake.Cluster, name string, bad bool) kmsg.MetadataResponseTopic {
	t := kmsg.NewMetadataResponseTopic()
	t.Topic = &name
	if bad {
		t.ErrorCode = kerr.InvalidTopicException.Code
		return t
	}
	t.TopicID = c.TopicInfo(name).TopicID
	for _, i := range c.PartitionInfos(name) {
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Partition, p.Leader = i.Partition, i.Leader
		t.Partitions = append(t.Partitions, p)
	}
	return t
}

func TestTopicThatCannotExist(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	invalidTopic(c, "no such/topic")
	b.add(message{"mqtt", "a", "0"}, message{"no such/topic", "b", "x"}, message{"mqtt", "a", "1"})
	u := start(t, b, fs, c, nil)
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 2), 1, 2)
	if got := read(t, c, "sluice.dead-letter", 1); len(got["b"]) != 1 {
		t.Errorf("dead letters: %v", got)
	}
}

// A disk that is started in another box must not write under the first one's producer id.
func TestClonedDisk(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	b.add(series("mqtt", 2, 0, 5)...)
	u := start(t, b, fs, c, nil)
	b.until(u.Uplink)
	first := u.Status().ProducerID
	if err := u.stop(); err != nil {
		t.Fatal(err)
	}
	b.add(series("mqtt", 2, 5, 10)...)
	u = start(t, b, fs, c, func(o *Options) { o.MachineID = "box-2" })
	b.until(u.Uplink)
	wantSeries(t, read(t, c, "mqtt", 20), 2, 10)
	if s := u.Status(); s.ProducerID == first || !strings.Contains(s.Alarm, "another machine") {
		t.Errorf("producer %d after %d, alarm %q", s.ProducerID, first, s.Alarm)
	}
}

// The journal was set back (an older copy of the disk): the cluster knows more than it does.
func TestRolledBackJournal(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	b.add(series("mqtt", 1, 0, 5)...)
	u := start(t, b, fs, c, nil)
	b.until(u.Uplink)
	if err := u.stop(); err != nil {
		t.Fatal(err)
	}
	old, err := vfs.ReadFile(fs, "/uplink/"+journalFile)
	if err != nil {
		t.Fatal(err)
	}
	b.add(series("mqtt", 1, 5, 8)...)
	u = start(t, b, fs, c, nil)
	b.until(u.Uplink)
	if err := u.stop(); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fs, "/uplink/"+journalFile, old); err != nil {
		t.Fatal(err)
	}
	b.confirmed = 0
	b.add(series("mqtt", 1, 8, 10)...)
	u = start(t, b, fs, c, nil)
	b.until(u.Uplink)
	if s := u.Status(); !strings.Contains(s.Alarm, "ahead of this gateway's journal") {
		t.Errorf("alarm = %q", s.Alarm)
	}
	got := read(t, c, "mqtt", 13)["device-0"] // 5, 3 and the 5 that the old journal did not know of
	if strings.Join(got, " ") != "0 1 2 3 4 5 6 7 5 6 7 8 9" {
		t.Errorf("values %v", got)
	}
}

func TestRebuiltDiffers(t *testing.T) {
	fs, c := vfs.NewMem(), cluster3(t)
	b := newBuffer(t, fs)
	b.add(series("mqtt", 2, 0, 5)...)
	fail(c, 1000, kerr.NotLeaderForPartition)
	u := start(t, b, fs, c, nil)
	deadline := time.After(patience)
	for u.m.retries.Get() == 0 {
		select {
		case <-deadline:
			t.Fatal("nothing was sent")
		case <-time.After(time.Millisecond):
		}
	}
	if err := u.stop(); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(fs, "/uplink")
	if err != nil {
		t.Fatal(err)
	}
	j.state.Rounds[0].Batches[0].CRC++
	if err := j.rewrite(); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	u = start(t, b, fs, c, nil)
	deadline = time.After(patience)
	for u.Status().Alarm == "" {
		select {
		case <-deadline:
			t.Fatal("no alarm")
		case <-time.After(time.Millisecond):
		}
	}
	if err := u.stop(); err == nil || !strings.Contains(err.Error(), ErrRebuiltDiffers.Error()) {
		t.Errorf("Run returned %v", err)
	}
}
