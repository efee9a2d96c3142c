package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/loadtest/history"
)

const (
	// adminTimeout is what a request gives the cluster.
	adminTimeout = 3 * time.Second
	// adminEvery is the mean pause of one client between two operations.
	adminEvery = 200 * time.Millisecond
	// operationsPerTopic is how many operations one name gets: short histories are judged fast.
	operationsPerTopic = 40
	// adminPartitionsMax bounds a topic.
	adminPartitionsMax = 6
	// adminConfig is the key that is set.
	adminConfig = "retention.ms"
)

// admins are clients that create, change, describe and delete the same topics at the same time, each through any broker. A request is sent once: one
// that a client repeated in secret could take effect long after its answer.
type admins struct {
	s    *Set
	done atomic.Int64
	last atomic.Int64 // value of the configuration, so that each is set once
}

func (s *Set) newAdmins() *admins {
	s.c.History.Metadata().Lag(s.c.Lag)
	return &admins{s: s}
}

func (a *admins) Name() string { return "admins" }

func (a *admins) Run(ctx context.Context) error {
	clients := make([]int, a.s.c.Admins)
	for i := range clients {
		clients[i] = i
	}
	return all(ctx, clients, a.work)
}

func (a *admins) work(ctx context.Context, number int) error {
	client, err := a.s.c.client(kgo.RequestRetries(0))
	if err != nil {
		return err
	}
	defer client.Close()
	for sleep(ctx, rand.N(2*adminEvery)) == nil {
		n := a.done.Add(1)
		c := a.pick(fmt.Sprintf("%s-meta-%d", a.s.c.Prefix, n/operationsPerTopic))
		brokers := client.SeedBrokers()
		op := a.s.c.History.Metadata().Call(number, c)
		answer := a.perform(ctx, brokers[rand.IntN(len(brokers))], c)
		op.Return(answer)
		if answer.Outcome == history.Unknown {
			a.s.stats.MetadataUnknown.Add(1) // first: the difference of the two shall not count it for a moment
		}
		a.s.stats.MetadataOperations.Add(1)
	}
	return nil
}

// pick chooses an operation: topics come and go, and are changed and looked at in between.
func (a *admins) pick(topic string) history.MetaCall {
	c := history.MetaCall{Topic: topic}
	switch x := rand.IntN(100); {
	case x < 20:
		c.Operation, c.Partitions = history.CreateTopic, 1+rand.Int32N(3)
	case x < 30:
		c.Operation = history.DeleteTopic
	case x < 42:
		c.Operation, c.Partitions = history.CreatePartitions, 2+rand.Int32N(adminPartitionsMax-1)
	case x < 57:
		c.Operation, c.Config = history.SetConfig, fmt.Sprint(3_600_000+a.last.Add(1))
	case x < 85:
		c.Operation = history.DescribeTopic
	default:
		c.Operation = history.DescribeConfig
	}
	return c
}

// perform sends one request to one broker.
func (a *admins) perform(ctx context.Context, b *kgo.Broker, c history.MetaCall) history.MetaAnswer {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout+2*RequestTimeout)
	defer cancel()
	resp, err := b.Request(ctx, a.request(c))
	if err != nil {
		a.s.stats.Errors.Add(1)
		return history.MetaAnswer{}
	}
	answer := answerOf(resp)
	if answer.Outcome == history.Unknown {
		a.s.stats.Errors.Add(1)
	}
	return answer
}

func (a *admins) request(c history.MetaCall) kmsg.Request {
	timeout := int32(adminTimeout.Milliseconds())
	switch c.Operation {
	case history.CreateTopic:
		req, t := kmsg.NewPtrCreateTopicsRequest(), kmsg.NewCreateTopicsRequestTopic()
		t.Topic, t.NumPartitions, t.ReplicationFactor = c.Topic, c.Partitions, a.s.c.ReplicationFactor
		req.TimeoutMillis, req.Topics = timeout, append(req.Topics, t)
		return req
	case history.DeleteTopic:
		req, t := kmsg.NewPtrDeleteTopicsRequest(), kmsg.NewDeleteTopicsRequestTopic()
		t.Topic = kmsg.StringPtr(c.Topic)
		req.TimeoutMillis, req.Topics, req.TopicNames = timeout, append(req.Topics, t), []string{c.Topic}
		return req
	case history.CreatePartitions:
		req, t := kmsg.NewPtrCreatePartitionsRequest(), kmsg.NewCreatePartitionsRequestTopic()
		t.Topic, t.Count = c.Topic, c.Partitions
		req.TimeoutMillis, req.Topics = timeout, append(req.Topics, t)
		return req
	case history.SetConfig:
		req, r, v := kmsg.NewPtrIncrementalAlterConfigsRequest(), kmsg.NewIncrementalAlterConfigsRequestResource(), kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		v.Name, v.Value, v.Op = adminConfig, kmsg.StringPtr(c.Config), kmsg.IncrementalAlterConfigOpSet
		r.ResourceType, r.ResourceName, r.Configs = kmsg.ConfigResourceTypeTopic, c.Topic, append(r.Configs, v)
		req.Resources = append(req.Resources, r)
		return req
	case history.DescribeTopic:
		req, t := kmsg.NewPtrMetadataRequest(), kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(c.Topic)
		req.Topics = append(req.Topics, t)
		return req
	default:
		req, r := kmsg.NewPtrDescribeConfigsRequest(), kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.ConfigNames = kmsg.ConfigResourceTypeTopic, c.Topic, []string{adminConfig}
		req.Resources = append(req.Resources, r)
		return req
	}
}

// answerOf reads an answer to a request for one topic.
func answerOf(resp kmsg.Response) history.MetaAnswer {
	switch r := resp.(type) {
	case *kmsg.CreateTopicsResponse:
		if len(r.Topics) == 1 {
			return history.MetaAnswer{Outcome: outcome(r.Topics[0].ErrorCode), ID: hexID(r.Topics[0].TopicID)}
		}
	case *kmsg.DeleteTopicsResponse:
		if len(r.Topics) == 1 {
			return history.MetaAnswer{Outcome: outcome(r.Topics[0].ErrorCode)}
		}
	case *kmsg.CreatePartitionsResponse:
		if len(r.Topics) == 1 {
			return history.MetaAnswer{Outcome: outcome(r.Topics[0].ErrorCode)}
		}
	case *kmsg.IncrementalAlterConfigsResponse:
		if len(r.Resources) == 1 {
			return history.MetaAnswer{Outcome: outcome(r.Resources[0].ErrorCode)}
		}
	case *kmsg.MetadataResponse:
		if len(r.Topics) == 1 {
			t := r.Topics[0]
			return history.MetaAnswer{Outcome: outcome(t.ErrorCode), ID: hexID(t.TopicID), Partitions: int32(len(t.Partitions))}
		}
	case *kmsg.DescribeConfigsResponse:
		if len(r.Resources) == 1 {
			return configAnswer(r.Resources[0])
		}
	}
	return history.MetaAnswer{}
}

func configAnswer(r kmsg.DescribeConfigsResponseResource) history.MetaAnswer {
	a := history.MetaAnswer{Outcome: outcome(r.ErrorCode)}
	for _, c := range r.Configs {
		if c.Name == adminConfig && c.Source == kmsg.ConfigSourceDynamicTopicConfig && c.Value != nil {
			a.Config = *c.Value
		}
	}
	return a
}

func hexID(id [16]byte) string {
	if id == ([16]byte{}) {
		return ""
	}
	return fmt.Sprintf("%x", id)
}

// outcome sorts error codes by what they say of the effect.
func outcome(code int16) history.Outcome {
	switch code {
	case 0:
		return history.Done
	case kerr.TopicAlreadyExists.Code:
		return history.Exists
	case kerr.UnknownTopicOrPartition.Code:
		return history.Missing
	case kerr.InvalidPartitions.Code:
		return history.TooFew
	case kerr.InvalidReplicationFactor.Code, kerr.InvalidConfig.Code, kerr.PolicyViolation.Code:
		return history.Ineffective
	}
	return history.Unknown
}

// Finish has nothing to bring to an end.
func (a *admins) Finish(context.Context) error { return nil }
