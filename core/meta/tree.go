package meta

import (
	"cmp"
	"iter"
)

// tree is an immutable sorted map (an AVL tree): put and drop return a new tree that shares all
// but a path of nodes with the old one. An image of 10,000 topics is thereby changed by copying
// some fourteen nodes, and its readers need no lock. The zero value is empty.
type tree[K cmp.Ordered, V any] struct {
	root *treeNode[K, V]
	size int
}

type treeNode[K cmp.Ordered, V any] struct {
	key         K
	value       V
	left, right *treeNode[K, V]
	height      int8 // an AVL tree of 2^32 keys is less than 50 high
}

func (t tree[K, V]) len() int { return t.size }

func (t tree[K, V]) get(key K) (value V, ok bool) {
	for n := t.root; n != nil; {
		switch c := cmp.Compare(key, n.key); {
		case c == 0:
			return n.value, true
		case c < 0:
			n = n.left
		default:
			n = n.right
		}
	}
	return value, false
}

func (t tree[K, V]) put(key K, value V) tree[K, V] {
	root, added := t.root.put(key, value)
	t.root = root
	if added {
		t.size++
	}
	return t
}

func (t tree[K, V]) drop(key K) tree[K, V] {
	root, dropped := t.root.drop(key)
	t.root = root
	if dropped {
		t.size--
	}
	return t
}

// all walks the tree in the order of its keys.
func (t tree[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { t.root.walk(yield) }
}

// from walks the keys that are not below start, in order.
func (t tree[K, V]) from(start K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { t.root.walkFrom(start, yield) }
}

func (n *treeNode[K, V]) walk(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	return n.left.walk(yield) && yield(n.key, n.value) && n.right.walk(yield)
}

func (n *treeNode[K, V]) walkFrom(start K, yield func(K, V) bool) bool {
	switch {
	case n == nil:
		return true
	case cmp.Less(n.key, start):
		return n.right.walkFrom(start, yield)
	}
	return n.left.walkFrom(start, yield) && yield(n.key, n.value) && n.right.walk(yield)
}

func (n *treeNode[K, V]) put(key K, value V) (root *treeNode[K, V], added bool) {
	if n == nil {
		return &treeNode[K, V]{key: key, value: value, height: 1}, true
	}
	changed := *n
	switch c := cmp.Compare(key, n.key); {
	case c == 0:
		changed.value = value
		return &changed, false
	case c < 0:
		changed.left, added = n.left.put(key, value)
	default:
		changed.right, added = n.right.put(key, value)
	}
	return changed.balanced(), added
}

func (n *treeNode[K, V]) drop(key K) (root *treeNode[K, V], dropped bool) {
	if n == nil {
		return nil, false
	}
	changed := *n
	switch c := cmp.Compare(key, n.key); {
	case c < 0:
		changed.left, dropped = n.left.drop(key)
	case c > 0:
		changed.right, dropped = n.right.drop(key)
	case n.left == nil:
		return n.right, true
	case n.right == nil:
		return n.left, true
	default:
		next := n.right
		for next.left != nil {
			next = next.left
		}
		changed.key, changed.value, dropped = next.key, next.value, true
		changed.right, _ = n.right.drop(next.key)
	}
	if !dropped {
		return n, false
	}
	return changed.balanced(), true
}

func (n *treeNode[K, V]) high() int8 {
	if n == nil {
		return 0
	}
	return n.height
}

// balanced returns the tree below n, whose sides differ in height by at most two, as an AVL tree.
// n itself belongs to the caller and is changed; its children are shared and are not.
func (n *treeNode[K, V]) balanced() *treeNode[K, V] {
	switch n.left.high() - n.right.high() {
	case 2:
		if n.left.left.high() < n.left.right.high() {
			n.left = n.left.rotatedLeft()
		}
		return n.rotatedRight()
	case -2:
		if n.right.right.high() < n.right.left.high() {
			n.right = n.right.rotatedRight()
		}
		return n.rotatedLeft()
	}
	return n.measured()
}

func (n *treeNode[K, V]) measured() *treeNode[K, V] {
	n.height = 1 + max(n.left.high(), n.right.high())
	return n
}

func (n *treeNode[K, V]) rotatedRight() *treeNode[K, V] {
	top, below := *n.left, *n
	below.left = top.right
	top.right = below.measured()
	return top.measured()
}

func (n *treeNode[K, V]) rotatedLeft() *treeNode[K, V] {
	top, below := *n.right, *n
	below.right = top.left
	top.left = below.measured()
	return top.measured()
}
