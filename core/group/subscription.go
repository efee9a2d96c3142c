package group

import "github.com/twmb/franz-go/pkg/kbin"

// subscribe notes which topics the members of a consumer group read. What cannot be understood
// makes all of it unknown, which is treated as if every topic was read.
func (g *group) subscribe() {
	g.subscribed = nil
	if g.protocolType != ConsumerProtocol {
		return
	}
	topics := map[string]struct{}{}
	for _, m := range g.members {
		metadata, _ := m.metadata(g.protocol)
		if !readTopics(metadata, topics) {
			return
		}
	}
	g.subscribed = topics
}

// readTopics adds the topics of a ConsumerProtocolSubscription. Every version begins as version 0
// does: the version, then the topics; what follows is not the coordinator's business.
func readTopics(metadata []byte, topics map[string]struct{}) bool {
	r := kbin.Reader{Src: metadata}
	if r.Int16() < 0 {
		return false
	}
	for n := r.ArrayLen(); n > 0 && r.Ok(); n-- {
		topics[r.String()] = struct{}{}
	}
	return r.Ok()
}

// subscribes tells whether a member of the group reads the topic, as far as the coordinator can know.
func (g *group) subscribes(topic string) bool {
	if g.subscribed == nil {
		return g.protocolType == ConsumerProtocol
	}
	_, ok := g.subscribed[topic]
	return ok
}
