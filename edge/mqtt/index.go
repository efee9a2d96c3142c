package mqtt

import (
	"strings"
	"sync"
	"sync/atomic"
)

// index finds the subscriptions that match a topic. It is our own and not mochi's, which copies a map per publication, folds
// the case of $share, and does not let +/# match the level above.
type index struct {
	count atomic.Int64 // of subscriptions: most gateways have none, and then nobody looks
	mu    struct {
		sync.RWMutex
		root node
	}
}

type node struct {
	children map[string]*node
	plain    map[*session]*subscription
	shared   map[string]*group // by share name
}

// A group is the members of one shared subscription, in the order in which they came.
type group struct {
	members []member
	next    atomic.Uint32
}

type member struct {
	session *session
	sub     *subscription
}

// add replaces what the session had under the same filter and share name; it reports whether that was so.
func (x *index) add(s *session, sub *subscription) (existed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.mu.root.make(sub.Filter)
	if sub.Share != "" {
		existed = n.group(sub.Share).set(s, sub)
	} else {
		if n.plain == nil {
			n.plain = map[*session]*subscription{}
		}
		_, existed = n.plain[s]
		n.plain[s] = sub
	}
	if !existed {
		x.count.Add(1)
	}
	return existed
}

func (n *node) make(filter string) *node {
	for {
		level, rest, more := strings.Cut(filter, "/")
		child := n.children[level]
		if child == nil {
			child = &node{}
			if n.children == nil {
				n.children = map[string]*node{}
			}
			n.children[level] = child
		}
		if n = child; !more {
			return n
		}
		filter = rest
	}
}

func (n *node) group(name string) *group {
	if n.shared == nil {
		n.shared = map[string]*group{}
	}
	if n.shared[name] == nil {
		n.shared[name] = &group{}
	}
	return n.shared[name]
}

func (g *group) set(s *session, sub *subscription) (existed bool) {
	for i := range g.members {
		if g.members[i].session == s {
			g.members[i].sub = sub
			return true
		}
	}
	g.members = append(g.members, member{s, sub})
	return false
}

func (g *group) remove(s *session) bool {
	for i := range g.members {
		if g.members[i].session == s {
			g.members = append(g.members[:i:i], g.members[i+1:]...)
			return true
		}
	}
	return false
}

// remove reports whether the session had the subscription.
func (x *index) remove(s *session, sub *subscription) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	removed := x.mu.root.remove(sub.Filter, s, sub.Share)
	if removed {
		x.count.Add(-1)
	}
	return removed
}

// remove also unlinks the nodes that became empty.
func (n *node) remove(filter string, s *session, share string) (removed bool) {
	level, rest, more := strings.Cut(filter, "/")
	child := n.children[level]
	if child == nil {
		return false
	}
	switch {
	case more:
		removed = child.remove(rest, s, share)
	case share == "":
		_, removed = child.plain[s]
		delete(child.plain, s)
	case child.shared[share] != nil:
		g := child.shared[share]
		if removed = g.remove(s); len(g.members) == 0 {
			delete(child.shared, share)
		}
	}
	if len(child.children)+len(child.plain)+len(child.shared) == 0 {
		delete(n.children, level)
	}
	return removed
}

// match calls plain for every subscription and shared for every group that topic matches. Neither may call the index.
func (x *index) match(topic string, plain func(*session, *subscription), shared func(*group)) {
	if x.count.Load() == 0 {
		return
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.mu.root.match(topic, true, plain, shared)
}

func (n *node) match(topic string, first bool, plain func(*session, *subscription), shared func(*group)) {
	hidden := first && topic != "" && topic[0] == '$' // MQTT-4.7.2-1
	if child := n.children["#"]; child != nil && !hidden {
		child.visit(plain, shared)
	}
	level, rest, more := strings.Cut(topic, "/")
	for i, name := range [2]string{level, "+"} {
		child := n.children[name]
		if child == nil || i == 1 && hidden {
			continue
		}
		if more {
			child.match(rest, false, plain, shared)
			continue
		}
		child.visit(plain, shared)
		if parent := child.children["#"]; parent != nil { // a/# matches a
			parent.visit(plain, shared)
		}
	}
}

func (n *node) visit(plain func(*session, *subscription), shared func(*group)) {
	for s, sub := range n.plain {
		plain(s, sub)
	}
	for _, g := range n.shared {
		shared(g)
	}
}

// pick takes the members in turn, those with a connection first.
func (g *group) pick() (member, bool) {
	n := len(g.members)
	if n == 0 {
		return member{}, false
	}
	from := int(g.next.Add(1)) % n
	for i := range n {
		if m := g.members[(from+i)%n]; m.session.online() {
			return m, true
		}
	}
	return g.members[from], true
}
