package broker

import (
	"context"
	"slices"
	"strings"

	"sluice/core/meta"
)

// autoCreates says whether topics are created on first use (auto.create.topics.enable of the cluster's defaults).
func (b *Broker) autoCreates(image *meta.Image) bool {
	return !strings.EqualFold(image.Config(meta.ResourceBroker, "")["auto.create.topics.enable"], "false")
}

// autoCreate creates topics with the cluster's defaults and waits until their leaders serve them. It returns the codes of those that did not come to be. Several
// clients may ask for the same topic at once: that it exists already is a success.
func (b *Broker) autoCreate(ctx context.Context, names []string) map[string]int16 {
	ctx, cancel := context.WithTimeout(ctx, autoCreateTimeout)
	defer cancel()
	refused := make(map[string]int16)
	var topics []meta.NewTopic
	for _, name := range names {
		switch name {
		case meta.OffsetsTopic: // has settings of its own
			if _, err := b.groups().ensureTopic(ctx); err != nil {
				refused[name] = codeLeaderNotAvailable
			}
		case meta.TransactionTopic: // belongs to what this release does not have
			refused[name] = codeUnknownTopicOrPartition
		default:
			topics = append(topics, meta.NewTopic{Name: name, Partitions: -1, ReplicationFactor: -1})
			refused[name] = codeLeaderNotAvailable // until it is known better: the client asks again
		}
	}
	for _, r := range b.ctl.CreateTopics(ctx, topics, false) {
		switch {
		case r.Err == nil || r.Err.Code == meta.CodeTopicAlreadyExists:
			delete(refused, r.Name)
		case r.Err.Code != meta.CodeRequestTimedOut:
			refused[r.Name] = r.Err.Code
		}
	}
	b.awaitTopics(ctx, slices.DeleteFunc(names, func(name string) bool { _, no := refused[name]; return no }))
	return refused
}

// awaitTopics waits until this node's image has topics that exist somewhere already.
func (b *Broker) awaitTopics(ctx context.Context, names []string) {
	for {
		changed := b.ctl.Changed()
		image, missing := b.ctl.Image(), false
		for _, name := range names {
			missing = missing || image.Topic(name) == nil
		}
		if !missing {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
