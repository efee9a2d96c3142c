package workload

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/loadtest/history"
)

// watchEvery is the pause between two looks at all partitions.
const watchEvery = 100 * time.Millisecond

// watcher asks leaders for ends and starts, and fetches the records at the ends, with requests whose beginning it knows: it is who notices that an answer
// does not show what was acknowledged before it was asked for.
type watcher struct {
	s       *Set
	client  *kgo.Client
	session *history.Session
	leaders map[string]kmsg.MetadataResponseTopic
}

func (s *Set) newWatcher() (*watcher, error) {
	client, err := s.c.client(kgo.RetryTimeout(3 * time.Second))
	if err != nil {
		return nil, err
	}
	return &watcher{s: s, client: client, session: s.c.History.Session("watcher"), leaders: map[string]kmsg.MetadataResponseTopic{}}, nil
}

func (w *watcher) Name() string { return "watcher" }

func (w *watcher) Run(ctx context.Context) error {
	for sleep(ctx, watchEvery) == nil {
		for _, t := range w.s.logs() {
			w.look(ctx, t)
		}
	}
	return nil
}

// Finish has nothing to bring to an end: readers read everything.
func (w *watcher) Finish(context.Context) error {
	w.client.Close()
	return nil
}

// look asks each partition's leader in turn. A leader that is not known, or no leader any more, is looked up for the next time.
func (w *watcher) look(ctx context.Context, t *history.Topic) {
	if w.leaders[t.Name()].Topic == nil {
		w.findLeaders(ctx, t)
	}
	for p, leader := range leadersOf(w.leaders[t.Name()]) {
		if p >= t.Partitions() || leader < 0 {
			continue
		}
		at, err := w.ends(ctx, t, p, leader)
		if err == nil {
			err = w.fetch(ctx, t, p, leader, at)
		}
		if err != nil && ctx.Err() == nil {
			w.s.stats.Errors.Add(1)
			delete(w.leaders, t.Name())
			return
		}
	}
}

func leadersOf(t kmsg.MetadataResponseTopic) map[int32]int32 {
	out := map[int32]int32{}
	for _, p := range t.Partitions {
		out[p.Partition] = p.Leader
	}
	return out
}

func (w *watcher) findLeaders(ctx context.Context, t *history.Topic) {
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(t.Name())
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, w.client)
	if err == nil && len(resp.Topics) == 1 && resp.Topics[0].ErrorCode == 0 {
		w.leaders[t.Name()] = resp.Topics[0]
	}
}

// ask sends a request once, to one broker. A broker that says nothing is given up after RequestTimeout.
func ask[T kmsg.Response](ctx context.Context, c *kgo.Client, broker int32, req kmsg.Request) (resp T, err error) {
	answer, err := c.Broker(int(broker)).Request(ctx, req)
	if err != nil {
		return resp, err
	}
	return answer.(T), nil
}

// ends asks for latest and earliest and returns latest.
func (w *watcher) ends(ctx context.Context, t *history.Topic, p, leader int32) (int64, error) {
	call := t.Begin("watcher", p)
	end, err := w.list(ctx, t, p, leader, -1)
	if err != nil {
		return 0, err
	}
	call.End(end)
	call = t.Begin("watcher", p)
	start, err := w.list(ctx, t, p, leader, -2)
	if err != nil {
		return 0, err
	}
	call.Start(start)
	w.s.stats.Asked.Add(2)
	return end, nil
}

func (w *watcher) list(ctx context.Context, t *history.Topic, p, leader int32, timestamp int64) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	topic, part := kmsg.NewListOffsetsRequestTopic(), kmsg.NewListOffsetsRequestTopicPartition()
	part.Partition, part.Timestamp = p, timestamp
	topic.Topic, topic.Partitions = t.Name(), append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	resp, err := ask[*kmsg.ListOffsetsResponse](ctx, w.client, leader, req)
	switch {
	case err != nil:
		return 0, err
	case len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1:
		return 0, errors.New("an answer for one partition was expected")
	}
	a := resp.Topics[0].Partitions[0]
	return a.Offset, kerr.ErrorForCode(a.ErrorCode)
}

// fetch reads the last record before the end, which has to be there.
func (w *watcher) fetch(ctx context.Context, t *history.Topic, p, leader int32, end int64) error {
	if end == 0 {
		return nil
	}
	from := end - 1
	req := kmsg.NewPtrFetchRequest()
	req.MaxBytes, req.MinBytes, req.SessionEpoch = 1<<20, 0, -1
	topic, part := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	part.Partition, part.FetchOffset, part.PartitionMaxBytes, part.CurrentLeaderEpoch = p, from, 1<<20, -1
	topic.Topic, topic.TopicID, topic.Partitions = t.Name(), w.leaders[t.Name()].TopicID, append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	call := t.Begin("watcher", p)
	resp, err := ask[*kmsg.FetchResponse](ctx, w.client, leader, req)
	switch {
	case err != nil:
		return err
	case resp.ErrorCode != 0:
		return kerr.ErrorForCode(resp.ErrorCode)
	case len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1:
		return errors.New("an answer for one partition was expected")
	}
	w.s.stats.Asked.Add(1)
	return w.fetched(call, t, from, &resp.Topics[0].Partitions[0])
}

func (w *watcher) fetched(call history.Call, t *history.Topic, from int64, a *kmsg.FetchResponseTopicPartition) error {
	switch err := kerr.ErrorForCode(a.ErrorCode); {
	case errors.Is(err, kerr.OffsetOutOfRange):
		call.OutOfRange(from)
		return nil
	case err != nil:
		return err
	}
	got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: from, Topic: t.Name(), Partition: a.Partition}, a, kgo.DefaultDecompressor(), nil)
	if got.Err != nil {
		return got.Err
	}
	call.Fetched(from, len(got.Records), a.HighWatermark)
	w.session.Seek(t, a.Partition, -1)
	for _, r := range got.Records {
		w.session.Read(t, a.Partition, w.s.record(r))
	}
	return nil
}
