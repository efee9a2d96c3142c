package group

import (
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// ErrRecord is returned when a record of the log is not one of a coordinator.
var ErrRecord = errors.New("not a record of a group coordinator")

// Versions of keys and values that are written, those of Kafka 4.2.
const (
	offsetKeyVersion      = 1
	groupKeyVersion       = 2
	groupValueVersion     = 3
	offsetValueVersion    = 3
	offsetValueWithID     = 4 // KAFKA-19141
	offsetValueWithExpiry = 1
)

func offsetKey(group string, p Partition) []byte {
	k := kmsg.OffsetCommitKey{Version: offsetKeyVersion, Group: group, Topic: p.Topic, Partition: p.Index}
	return k.AppendTo(nil)
}

func groupKey(group string) []byte {
	k := kmsg.GroupMetadataKey{Version: groupKeyVersion, Group: group}
	return k.AppendTo(nil)
}

func (c *Coordinator) writeOffset(group string, p Partition, o Offset) {
	v := kmsg.OffsetCommitValue{
		Version: offsetValueVersion, Offset: o.Offset, LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata,
		CommitTimestamp: o.CommitMs, ExpireTimestamp: o.ExpireMs, TopicID: o.TopicID,
	}
	switch {
	case o.ExpireMs >= 0:
		v.Version = offsetValueWithExpiry
	case o.TopicID != TopicID{}:
		v.Version = offsetValueWithID
	}
	c.write(Record{Group: group, Key: offsetKey(group, p), Value: v.AppendTo(nil)})
}

func (c *Coordinator) buryOffset(group string, p Partition) {
	c.write(Record{Group: group, Key: offsetKey(group, p)})
}

func (c *Coordinator) buryGroup(group string) {
	c.write(Record{Group: group, Key: groupKey(group)})
}

func (c *Coordinator) write(r Record) { c.out.Records = append(c.out.Records, r) }

// writeGroup records the group's generation with its members and assignments.
func (c *Coordinator) writeGroup(g *group) {
	v := kmsg.GroupMetadataValue{
		Version: groupValueVersion, ProtocolType: g.protocolType, Generation: g.generation,
		Protocol: nullable(g.protocol), Leader: nullable(g.leader), CurrentStateTimestamp: g.since.UnixMilli(),
	}
	for _, m := range g.members {
		metadata, _ := m.metadata(g.protocol)
		v.Members = append(v.Members, kmsg.GroupMetadataValueMember{
			MemberID: m.id, InstanceID: nullable(m.instanceID), ClientID: m.clientID, ClientHost: m.clientHost,
			RebalanceTimeoutMillis: int32(m.rebalance.Milliseconds()), SessionTimeoutMillis: int32(m.session.Milliseconds()),
			Subscription: metadata, Assignment: m.assignment,
		})
	}
	g.recorded = true
	c.write(Record{Group: g.id, Key: groupKey(g.id), Value: v.AppendTo(nil), Joining: g.state == CompletingRebalance})
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func fromNullable(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Replay takes one record of the log, in order. A nil value is a tombstone. Keys of kinds that
// this release does not know are skipped, as Kafka does when it was downgraded. Key and value are
// not kept. The error wraps ErrRecord.
func (c *Coordinator) Replay(key, value []byte, joining bool) error {
	if len(key) < 2 {
		return fmt.Errorf("%w: key of %d bytes", ErrRecord, len(key))
	}
	switch version := int16(key[0])<<8 | int16(key[1]); version {
	case 0, 1:
		return c.replayOffset(key, value)
	case 2:
		return c.replayGroup(key, value, joining)
	default:
		return nil
	}
}

func (c *Coordinator) replayOffset(key, value []byte) error {
	var k kmsg.OffsetCommitKey
	if err := k.ReadFrom(key); err != nil {
		return fmt.Errorf("%w: offset key: %w", ErrRecord, err)
	}
	p := Partition{k.Topic, k.Partition}
	g := c.groups[k.Group]
	if value == nil {
		if g != nil {
			c.dropOffset(g, p)
			c.forgetUnrecorded(g)
		}
		return nil
	}
	v := kmsg.NewOffsetCommitValue()
	if err := v.ReadFrom(value); err != nil {
		return fmt.Errorf("%w: offset of group %q: %w", ErrRecord, k.Group, err)
	}
	o := Offset{
		Offset: v.Offset, LeaderEpoch: v.LeaderEpoch, Metadata: v.Metadata, TopicID: v.TopicID,
		CommitMs: v.CommitTimestamp, ExpireMs: -1,
	}
	if v.Version < 3 {
		o.LeaderEpoch = -1
	}
	if v.Version == offsetValueWithExpiry {
		o.ExpireMs = v.ExpireTimestamp
	}
	if g == nil {
		g = c.create(k.Group, time.UnixMilli(o.CommitMs))
	}
	c.putOffset(g, p, o)
	return nil
}

// forgetUnrecorded forgets a group of which the log holds nothing any more.
func (c *Coordinator) forgetUnrecorded(g *group) {
	if c.groups[g.id] == g && !g.recorded && g.idle() {
		c.forget(g)
	}
}

func (c *Coordinator) replayGroup(key, value []byte, joining bool) error {
	var k kmsg.GroupMetadataKey
	if err := k.ReadFrom(key); err != nil {
		return fmt.Errorf("%w: group key: %w", ErrRecord, err)
	}
	v := kmsg.NewGroupMetadataValue()
	if value != nil {
		if err := v.ReadFrom(value); err != nil {
			return fmt.Errorf("%w: group %q: %w", ErrRecord, k.Group, err)
		}
	}
	old := c.groups[k.Group]
	if old == nil && value == nil {
		return nil
	}
	if old == nil {
		old = c.create(k.Group, time.Time{})
	}
	g := newGroup(k.Group, time.Time{})
	g.offsets = old.offsets
	c.stats.Groups[old.state]--
	c.stats.Members -= len(old.members)
	for _, m := range old.members {
		c.weight -= m.weight
	}
	c.groups[k.Group] = g
	if value != nil {
		c.fill(g, &v, joining)
	}
	c.stats.Groups[g.state]++
	c.forgetUnrecorded(g)
	return nil
}

// fill gives a fresh group what its record says. Timers begin with Loaded.
func (c *Coordinator) fill(g *group, v *kmsg.GroupMetadataValue, joining bool) {
	g.recorded = true
	g.generation = v.Generation
	g.protocol = fromNullable(v.Protocol)
	g.since = time.UnixMilli(max(v.CurrentStateTimestamp, 0))
	for _, m := range v.Members {
		if _, ok := g.byID[m.MemberID]; ok {
			continue
		}
		rebalance := m.RebalanceTimeoutMillis
		if rebalance <= 0 {
			rebalance = m.SessionTimeoutMillis
		}
		g.insert(&member{
			id: m.MemberID, instanceID: fromNullable(m.InstanceID), clientID: m.ClientID, clientHost: m.ClientHost,
			session:    time.Duration(m.SessionTimeoutMillis) * time.Millisecond,
			rebalance:  time.Duration(rebalance) * time.Millisecond,
			protocols:  []Protocol{{g.protocol, append([]byte(nil), m.Subscription...)}},
			assignment: append([]byte(nil), m.Assignment...),
		}, v.ProtocolType)
		c.weigh(g.members[len(g.members)-1])
		c.stats.Members++
	}
	g.protocolType = v.ProtocolType
	if len(g.members) > 0 {
		g.leader = fromNullable(v.Leader)
		g.state = Stable
	}
	if len(g.members) > 0 && joining {
		g.state = CompletingRebalance
	}
	g.subscribe()
}

// Loaded begins the sessions of all members, as if they had just been heard of. A group whose
// leader had not brought the assignments yet waits for them; one that is over its size rebalances.
func (Loaded) apply(c *Coordinator, now time.Time) {
	for _, id := range c.ids() {
		g := c.groups[id]
		for _, m := range g.members {
			c.extend(g, m, now.Add(m.session))
		}
		if g.state == CompletingRebalance {
			for _, m := range g.members {
				g.syncPending[m.id] = struct{}{}
			}
			c.awaitSyncs(g, now)
		}
		if c.config.MaxSize > 0 && len(g.members) > c.config.MaxSize {
			c.rebalance(g, now)
		}
	}
}
