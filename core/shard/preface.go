package shard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// A connection between nodes begins with a preface of the one that dialled, answered by one byte.
//
//	0 magic "SLPN" | 4 version u8 | 5 zero u8 | 6 length of the rest u16 | 8 shard u32
//	12 kind, cluster id, from, to: each a u16 length and that many bytes
//
// From and to are `<node>.<incarnation>`. To is only a node for kinds other than raft, and empty,
// like the cluster id, for a node that has not joined yet. Integers are big endian.
const (
	prefaceMagic    = "SLPN"
	prefaceVersion  = 1
	prefaceBytes    = 12
	maxPrefaceBytes = 1 << 10

	kindRaft = "raft"
	// KindJoin is the only kind that may be dialled by address, before the cluster's id is known.
	KindJoin = "join"
)

// The answers to a preface.
const (
	answerWelcome byte = iota
	answerVersion
	answerCluster
	answerTarget
	answerShard
	answerKind
)

var answerText = map[byte]string{
	answerVersion: "it speaks another version",
	answerCluster: "it belongs to another cluster",
	answerTarget:  "it is another server",
	answerShard:   "it has no replica of the shard",
	answerKind:    "it does not serve the kind",
}

var errBadPreface = errors.New("connection does not begin with a preface")

type preface struct {
	shard                   meta.ShardID
	kind, cluster, from, to string
}

func (p preface) encode() ([]byte, error) {
	b := make([]byte, prefaceBytes, 128)
	copy(b, prefaceMagic)
	b[4] = prefaceVersion
	binary.BigEndian.PutUint32(b[8:], uint32(p.shard))
	for _, s := range []string{p.kind, p.cluster, p.from, p.to} {
		if len(s) > maxPrefaceBytes {
			return nil, errBadPreface
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	if len(b) > maxPrefaceBytes {
		return nil, errBadPreface
	}
	binary.BigEndian.PutUint16(b[6:], uint16(len(b)-8))
	return b, nil
}

// readPreface reads exactly the preface.
func readPreface(r io.Reader) (p preface, version byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return p, 0, fmt.Errorf("read preface: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[6:]))
	if string(head[:4]) != prefaceMagic || n < 4 || n+8 > maxPrefaceBytes {
		return p, 0, errBadPreface
	}
	if head[4] != prefaceVersion {
		return p, head[4], nil
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return p, 0, fmt.Errorf("read preface: %w", err)
	}
	p.shard = meta.ShardID(binary.BigEndian.Uint32(body))
	rest := body[4:]
	for _, s := range []*string{&p.kind, &p.cluster, &p.from, &p.to} {
		if len(rest) < 2 {
			return p, 0, errBadPreface
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n > len(rest) {
			return p, 0, errBadPreface
		}
		*s, rest = string(rest[:n]), rest[n:]
	}
	return p, prefaceVersion, nil
}

// parseServer reads `<node>.<incarnation>`; the incarnation may be missing.
func parseServer(s string) (meta.Server, bool) {
	node, incarnation, _ := strings.Cut(s, ".")
	id, err := strconv.ParseInt(node, 10, 32)
	if err != nil || id < 0 {
		return meta.Server{Node: meta.NoNode}, false
	}
	return meta.Server{Node: meta.NodeID(id), Incarnation: incarnation}, true
}

func serverID(s meta.Server) raft.ServerID           { return raft.ServerID(s.String()) }
func serverAddress(s meta.Server) raft.ServerAddress { return raft.ServerAddress(s.String()) }
