package loadtest

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestPatiently(t *testing.T) {
	electing := &kadm.ShardErrors{Name: "ListOffsets", Errs: []kadm.ShardError{{Err: kerr.LeaderNotAvailable}}}
	for name, c := range map[string]struct {
		err   error // of the first two answers
		asked int
		want  error
	}{
		"whole":       {nil, 1, nil},
		"electing":    {electing, 3, nil},
		"moved":       {errors.Join(nil, kerr.NotLeaderForPartition), 3, nil},
		"lacks nodes": {kerr.InvalidReplicationFactor, 3, nil},
		"refused":     {kerr.TopicAuthorizationFailed, 1, kerr.TopicAuthorizationFailed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				err := patiently(t.Context(), "ask", func() error {
					if asked++; asked < 3 {
						return c.err
					}
					return nil
				})
				if asked != c.asked || !errors.Is(err, c.want) {
					t.Errorf("asked %d times: %v", asked, err)
				}
			})
		})
	}
}

// The last answer is told, and what was asked: when there never is another, and when the load is told to stop.
func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := func() error { return kerr.LeaderNotAvailable }
		began := time.Now()
		err := patiently(t.Context(), "list offsets of load", never)
		if took := time.Since(began); took < patienceMax || took > patienceMax+patienceStep || !errors.Is(err, kerr.LeaderNotAvailable) || !strings.Contains(err.Error(), "list offsets of load: still after 15s") {
			t.Errorf("after %v: %v", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := patiently(ctx, "ask", never); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kerr.LeaderNotAvailable) {
			t.Error(err)
		}
	})
}

// A cluster that has just started answers before its partitions have leaders.
func TestConsumeWaitsForLeaders(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "load"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	k := Kafka{Brokers: c.ListenAddrs(), Topic: "load", Partitions: 2, ReplicationFactor: 1}
	p := Produce{Kafka: k, Size: 100, Records: 100, Acks: "all", Idempotent: true, Compression: "none", BatchBytes: 1 << 20}
	if _, err := p.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	c.ControlKey(int16(kmsg.ListOffsets), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if refused.Add(1) == 5 {
			c.DropControl()
		}
		return electing(kreq.(*kmsg.ListOffsetsRequest)), nil, true
	})
	r, err := Consume{Kafka: k}.Run(t.Context())
	if err != nil || r.Operations != 100 || r.Errors != 0 || refused.Load() < 5 {
		t.Errorf("%+v, %v, %d refusals", r, err, refused.Load())
	}
}

// Members of a group read some partitions each, and come to their end when all are read.
func TestMembersOfAGroupEnd(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "load"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	k := Kafka{Brokers: c.ListenAddrs(), Topic: "load", Partitions: 4, ReplicationFactor: 1}
	p := Produce{Kafka: k, Size: 100, Records: 1000, Keys: 100, Acks: "all", Idempotent: true, Compression: "none", BatchBytes: 1 << 20}
	if _, err := p.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var read, failed atomic.Int64
	err = workers(t.Context(), 2, func(ctx context.Context, _ int) error {
		r, err := Consume{Kafka: k, Group: "readers"}.Run(ctx)
		read.Add(r.Operations)
		failed.Add(r.Errors)
		return err
	})
	if err != nil || read.Load() < 1000 || failed.Load() > 0 {
		t.Errorf("%d records were read, %d errors: %v", read.Load(), failed.Load(), err)
	}
}

// electing answers that no partition has a leader.
func electing(req *kmsg.ListOffsetsRequest) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	for _, t := range req.Topics {
		rt := kmsg.NewListOffsetsResponseTopic()
		rt.Topic = t.Topic
		for _, p := range t.Partitions {
			rp := kmsg.NewListOffsetsResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, kerr.LeaderNotAvailable.Code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}
