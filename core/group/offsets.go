package group

import (
	"cmp"
	"slices"
	"time"
	"unicode/utf8"
)

func (e Commit) apply(c *Coordinator, now time.Time) {
	g, code := c.committer(e, now)
	r := CommitResponse{Code: code}
	if code != None {
		c.answer(e.Ticket, e.Group, r)
		return
	}
	r.Codes = make([]Code, len(e.Offsets))
	for i, o := range e.Offsets {
		if utf16Len(o.Metadata) > c.config.MetadataBytes {
			r.Codes[i] = OffsetMetadataTooLarge
			continue
		}
		offset := Offset{
			Offset: o.Offset, LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata, TopicID: o.TopicID,
			CommitMs: now.UnixMilli(), ExpireMs: -1,
		}
		if e.Retention >= 0 {
			offset.ExpireMs = now.Add(e.Retention).UnixMilli()
		}
		c.putOffset(g, o.Partition, offset)
		c.writeOffset(g.id, o.Partition, offset)
		c.stats.Commits++
	}
	c.answer(e.Ticket, e.Group, r)
}

// utf16Len is the length of a string as Kafka's broker counts it.
func utf16Len(s string) int {
	n := utf8.RuneCountInString(s)
	for _, r := range s {
		if r > 0xffff {
			n++
		}
	}
	return n
}

// committer decides whether these offsets may be committed. Who names no generation is an
// administrator or a consumer without membership: it may as long as the group has no members.
func (c *Coordinator) committer(e Commit, now time.Time) (*group, Code) {
	g := c.groups[e.Group]
	if g == nil {
		if e.Generation >= 0 {
			return nil, e.NotFoundCode
		}
		return c.create(e.Group, now), None
	}
	if e.Generation < 0 && g.state == Empty {
		return g, None
	}
	if e.Generation < 0 && e.MemberID == "" && e.InstanceID == "" {
		return nil, UnknownMemberID
	}
	m, code := g.identify(e.MemberID, e.InstanceID)
	switch {
	case code != None:
		return nil, code
	case e.Generation != g.generation:
		return nil, IllegalGeneration
	case g.state == CompletingRebalance:
		// It has the new generation's number but no assignment yet: what it commits may be another's already.
		return nil, RebalanceInProgress
	}
	c.alive(g, m, now)
	return g, None
}

func (c *Coordinator) putOffset(g *group, p Partition, o Offset) {
	of := g.offsets[p.Topic]
	if of == nil {
		of = map[int32]Offset{}
		g.offsets[p.Topic] = of
	}
	if _, ok := of[p.Index]; !ok {
		c.stats.Offsets++
	}
	of[p.Index] = o
}

func (c *Coordinator) dropOffset(g *group, p Partition) bool {
	of := g.offsets[p.Topic]
	if _, ok := of[p.Index]; !ok {
		return false
	}
	delete(of, p.Index)
	if len(of) == 0 {
		delete(g.offsets, p.Topic)
	}
	c.stats.Offsets--
	return true
}

// noOffset is the answer where nothing is committed.
var noOffset = Offset{Offset: -1, LeaderEpoch: -1, CommitMs: -1, ExpireMs: -1}

func (e FetchOffsets) apply(c *Coordinator, _ time.Time) {
	g := c.groups[e.Group]
	r := FetchOffsetsResponse{Partitions: e.Partitions}
	if e.All {
		r.Partitions = nil
		if g != nil {
			r.Partitions = g.partitions()
		}
	}
	r.Offsets = make([]Offset, len(r.Partitions))
	for i, p := range r.Partitions {
		r.Offsets[i] = noOffset
		if g == nil {
			continue
		}
		if o, ok := g.offsets[p.Topic][p.Index]; ok {
			r.Offsets[i] = o
		}
	}
	c.answer(e.Ticket, e.Group, r)
}

// partitions returns all partitions with an offset, in order.
func (g *group) partitions() []Partition {
	var all []Partition
	for topic, of := range g.offsets {
		for index := range of {
			all = append(all, Partition{topic, index})
		}
	}
	slices.SortFunc(all, func(a, b Partition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Index, b.Index))
	})
	return all
}

func (e DeleteOffsets) apply(c *Coordinator, _ time.Time) {
	g := c.groups[e.Group]
	if g == nil {
		c.answer(e.Ticket, e.Group, DeleteOffsetsResponse{Code: GroupIDNotFound})
		return
	}
	if g.state != Empty && g.protocolType != ConsumerProtocol {
		c.answer(e.Ticket, e.Group, DeleteOffsetsResponse{Code: NonEmptyGroup})
		return
	}
	r := DeleteOffsetsResponse{Codes: make([]Code, len(e.Partitions))}
	for i, p := range e.Partitions {
		if g.subscribes(p.Topic) {
			r.Codes[i] = GroupSubscribedToTopic
			continue
		}
		if c.dropOffset(g, p) {
			c.buryOffset(g.id, p)
		}
	}
	c.answer(e.Ticket, e.Group, r)
}

// Clean follows KIP-211: the offsets of a group without members expire some time after it lost the
// last one, those of a simple group after their commit, and those of a consumer group with members
// only for topics that none of them reads any more.
func (Clean) apply(c *Coordinator, now time.Time) {
	for _, id := range c.ids() {
		g := c.groups[id]
		c.expireOffsets(g, now)
		if g.idle() {
			c.bury(g)
		}
	}
}

func (c *Coordinator) expireOffsets(g *group, now time.Time) {
	base, ok := g.expiryBase()
	if !ok {
		return
	}
	nowMs := now.UnixMilli()
	for _, p := range g.partitions() {
		o := g.offsets[p.Topic][p.Index]
		expires := base(o) + c.config.OffsetRetention.Milliseconds()
		if o.ExpireMs >= 0 {
			expires = o.ExpireMs
		}
		if nowMs < expires || g.subscribes(p.Topic) {
			continue
		}
		c.dropOffset(g, p)
		c.buryOffset(g.id, p)
		c.stats.Expired++
	}
}

// expiryBase returns from when an offset's retention counts; false: the group's offsets do not expire now.
func (g *group) expiryBase() (func(Offset) int64, bool) {
	commit := func(o Offset) int64 { return o.CommitMs }
	switch {
	case g.protocolType == "":
		return commit, true
	case g.state == Empty:
		sinceMs := g.since.UnixMilli()
		return func(Offset) int64 { return sinceMs }, true
	case g.state == Stable && g.protocolType == ConsumerProtocol && g.subscribed != nil:
		return commit, true
	}
	return nil, false
}

// AnyTopic tells whether some group has offsets of a topic for which match is true.
func (c *Coordinator) AnyTopic(match func(topic string, id TopicID) bool) bool {
	for _, g := range c.groups {
		for topic, of := range g.offsets {
			for _, o := range of {
				if match(topic, o.TopicID) {
					return true
				}
			}
		}
	}
	return false
}

func (e ForgetTopics) apply(c *Coordinator, _ time.Time) {
	for _, id := range c.ids() {
		g := c.groups[id]
		for _, p := range g.partitions() {
			if e.Gone(p.Topic, g.offsets[p.Topic][p.Index].TopicID) {
				c.dropOffset(g, p)
				c.buryOffset(id, p)
			}
		}
	}
}
