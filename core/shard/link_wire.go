package shard

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
)

// A connection of kind `beats` carries the heartbeats of all idle groups that one server leads to one other server, and the answers, in
// frames. Integers are big endian.
//
//	question: 0 length of the rest u32 | 4 round u32 | 8 per group: shard u32, term u64
//	answer:   0 length of the rest u32 | 4 round u32 | 8 per group: shard u32, life u64, term u64, last index u64, verdict u8, completeness u8
//
// The answers to one question come in one frame or in several, in any order. Life is another number each time the replica is started.
const (
	kindBeats = "beats"

	beatsHeadBytes = 8
	questionBytes  = 12
	answerBytes    = 30
	// maxBeats of one frame; more are sent in several. A node leads a few groups.
	maxBeats = 4096
)

// Verdicts of an answer. A later release may add some: another one is no answer.
const (
	beatRefused   byte = iota // the leader's term is over
	beatTaken                 // the follower has heard its leader
	beatNoReplica             // there is no replica of the shard, or it is about to stop
	beatUnderWay              // it is still busy with the heartbeat before
)

var errBadBeats = errors.New("frame of heartbeats is malformed")

// question is a heartbeat.
type question struct {
	shard meta.ShardID
	term  uint64
}

// answer is a follower's.
type answer struct {
	shard   meta.ShardID
	life    uint64
	term    uint64
	last    uint64 // its last index
	verdict byte
	mark    string // see completeness
}

// marks are the values of completeness on the wire. Another one, of a later release, tells nothing.
var marks = []string{"", markComplete, markIncomplete}

func beginFrame(items, bytes int, round uint32) []byte {
	b := make([]byte, 0, beatsHeadBytes+items*bytes)
	b = binary.BigEndian.AppendUint32(b, uint32(4+items*bytes))
	return binary.BigEndian.AppendUint32(b, round)
}

func encodeQuestions(round uint32, all []question) []byte {
	b := beginFrame(len(all), questionBytes, round)
	for _, q := range all {
		b = binary.BigEndian.AppendUint32(b, uint32(q.shard))
		b = binary.BigEndian.AppendUint64(b, q.term)
	}
	return b
}

func encodeAnswers(round uint32, all []answer) []byte {
	b := beginFrame(len(all), answerBytes, round)
	for _, a := range all {
		b = binary.BigEndian.AppendUint32(b, uint32(a.shard))
		b = binary.BigEndian.AppendUint64(b, a.life)
		b = binary.BigEndian.AppendUint64(b, a.term)
		b = binary.BigEndian.AppendUint64(b, a.last)
		b = append(b, a.verdict, markByte(a.mark))
	}
	return b
}

func markByte(mark string) byte {
	for i, m := range marks {
		if m == mark {
			return byte(i)
		}
	}
	return 0
}

// readFrame reads one frame of items of so many bytes each, of which there is one at least.
func readFrame(r *bufio.Reader, bytes int) (round uint32, items []byte, err error) {
	var head [beatsHeadBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read heartbeats: %w", err)
	}
	n := int64(binary.BigEndian.Uint32(head[:])) - 4
	if n <= 0 || n > int64(maxBeats*bytes) || n%int64(bytes) != 0 {
		return 0, nil, errBadBeats
	}
	items = make([]byte, n)
	if _, err := io.ReadFull(r, items); err != nil {
		return 0, nil, fmt.Errorf("read heartbeats: %w", err)
	}
	return binary.BigEndian.Uint32(head[4:]), items, nil
}

func readQuestions(r *bufio.Reader) (round uint32, all []question, err error) {
	round, b, err := readFrame(r, questionBytes)
	if err != nil {
		return 0, nil, err
	}
	for ; len(b) > 0; b = b[questionBytes:] {
		q := question{shard: meta.ShardID(binary.BigEndian.Uint32(b)), term: binary.BigEndian.Uint64(b[4:])}
		if q.term == 0 { // the library would not take it for a heartbeat
			return 0, nil, errBadBeats
		}
		all = append(all, q)
	}
	return round, all, nil
}

func readAnswers(r *bufio.Reader) (round uint32, all []answer, err error) {
	round, b, err := readFrame(r, answerBytes)
	if err != nil {
		return 0, nil, err
	}
	for ; len(b) > 0; b = b[answerBytes:] {
		a := answer{
			shard: meta.ShardID(binary.BigEndian.Uint32(b)), life: binary.BigEndian.Uint64(b[4:]),
			term: binary.BigEndian.Uint64(b[12:]), last: binary.BigEndian.Uint64(b[20:]), verdict: b[28],
		}
		if i := int(b[29]); i < len(marks) {
			a.mark = marks[i]
		}
		all = append(all, a)
	}
	return round, all, nil
}

// response is what the library gets.
func (a answer) response(from raft.ServerAddress) raft.AppendEntriesResponse {
	return raft.AppendEntriesResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from), Addr: []byte(a.mark)},
		Term:      a.term, LastLog: a.last, Success: a.verdict == beatTaken,
	}
}
