package workload

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/loadtest/history"
)

// prepare makes the workloads, in the order in which they are brought to their end.
func (s *Set) prepare(ctx context.Context, client *kgo.Client) error {
	for i := range s.c.Writers {
		p, err := s.newProducer(i)
		if err != nil {
			return err
		}
		s.list = append(s.list, p)
	}
	if len(s.c.Gateways) > 0 && s.c.Devices > 0 {
		if err := s.prepareDevices(ctx, client); err != nil {
			return err
		}
	}
	if s.c.Admins > 0 {
		s.list = append(s.list, s.newAdmins())
	}
	for i := range s.c.Readers {
		r := &reader{s: s, name: fmt.Sprintf("r%d", i)}
		if i%2 == 1 {
			r.rack = fmt.Sprintf("rack%d", i/2%3+1)
		}
		s.list = append(s.list, r)
	}
	w, err := s.newWatcher()
	if err != nil {
		return err
	}
	s.list = append(s.list, w)
	if s.c.Members > 0 {
		s.list = append(s.list, s.newGroup())
	}
	return nil
}

// prepareDevices declares the gateways' topic as it is, or creates it.
func (s *Set) prepareDevices(ctx context.Context, client *kgo.Client) error {
	if err := s.create(ctx, client, -1, s.c.GatewayTopic); err != nil {
		return err
	}
	var topics kadm.TopicDetails
	err := patiently(ctx, "describe topic "+s.c.GatewayTopic, func() (err error) {
		if topics, err = kadm.NewClient(client).ListTopics(ctx, s.c.GatewayTopic); err == nil {
			err = topics[s.c.GatewayTopic].Err
		}
		return err
	})
	if err != nil {
		return err
	}
	s.ingested = s.c.History.Topic(s.c.GatewayTopic, history.TopicOptions{Partitions: int32(len(topics[s.c.GatewayTopic].Partitions)), Contiguous: true, Shared: true})
	for i := range s.c.Devices {
		s.list = append(s.list, s.newDevice(i))
	}
	return nil
}

// logs are the topics that are read.
func (s *Set) logs() []*history.Topic {
	if s.ingested == nil {
		return []*history.Topic{s.topic}
	}
	return []*history.Topic{s.topic, s.ingested}
}

func (s *Set) log(name string) *history.Topic {
	if name == s.topic.Name() {
		return s.topic
	}
	return s.ingested
}
