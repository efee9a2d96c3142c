package broker

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func fetchRequest(partitions ...int32) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version = 12
	t := kmsg.NewFetchRequestTopic()
	t.Topic = "t"
	for _, i := range partitions {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset = i, int64(10*i)
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return req
}

func indexes(s *fetchSession) []int32 {
	var out []int32
	for _, p := range s.list() {
		out = append(out, p.key.index)
	}
	return out
}

func TestSessionUpdate(t *testing.T) {
	s := newFetchSession(fetchRequest(0, 1, 2))
	req := fetchRequest(1, 3)
	req.Topics[0].Partitions[0].FetchOffset = 99
	forgotten := kmsg.NewFetchRequestForgottenTopic()
	forgotten.Topic, forgotten.Partitions = "t", []int32{2, 7}
	req.ForgottenTopics = append(req.ForgottenTopics, forgotten)
	s.update(req)
	list := s.list()
	if len(list) != 3 || list[0].key.index != 0 || list[1].offset != 99 || list[2].key.index != 3 {
		t.Fatalf("partitions %v, offset %d", indexes(s), list[1].offset)
	}
	s.gave(list[0])
	if got := indexes(s); got[0] != 1 || got[2] != 0 {
		t.Errorf("a partition that gave records stays in front: %v", got)
	}
}

func TestSessionCacheIsBounded(t *testing.T) {
	c, now := newSessionCache(), time.Now()
	first := newFetchSession(fetchRequest(0))
	for i := range sessionsMax {
		s := first
		if i > 0 {
			s = newFetchSession(fetchRequest(0))
		}
		if _, ok := c.add(s, now); !ok {
			t.Fatalf("session %d has no place", i)
		}
	}
	if _, ok := c.add(newFetchSession(fetchRequest(0)), now.Add(sessionEvictAge/2)); ok || c.len() != sessionsMax {
		t.Errorf("one more than allowed has a place: %d", c.len())
	}
	later := now.Add(sessionEvictAge)
	c.get(first.id, later)
	evicted, ok := c.add(newFetchSession(fetchRequest(0)), later)
	if !ok || evicted != 1 || c.get(first.id, later) == nil {
		t.Errorf("evicted %d, %v; the one in use must stay", evicted, ok)
	}
}

func TestSessionCacheCountsPartitions(t *testing.T) {
	c, now := newSessionCache(), time.Now()
	many := make([]int32, sessionPartitionsMax-1)
	for i := range many {
		many[i] = int32(i)
	}
	s := newFetchSession(fetchRequest(many...))
	if _, ok := c.add(s, now); !ok {
		t.Fatal("no place")
	}
	if _, ok := c.add(newFetchSession(fetchRequest(0, 1)), now); ok {
		t.Error("more partitions than allowed")
	}
	s.update(fetchRequest(sessionPartitionsMax, sessionPartitionsMax+1))
	if c.resize(s) || c.get(s.id, now) != nil {
		t.Error("a session may grow over the bound")
	}
	if _, ok := c.add(newFetchSession(fetchRequest(0, 1)), now); !ok {
		t.Error("the forgotten session's partitions still count")
	}
}

func TestNextEpoch(t *testing.T) {
	for epoch, want := range map[int32]int32{1: 2, 1<<31 - 1: 1} {
		if got := nextEpoch(epoch); got != want {
			t.Errorf("after %d comes %d", epoch, got)
		}
	}
}
