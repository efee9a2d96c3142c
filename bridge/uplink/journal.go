package uplink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"sluice/core/vfs"
)

// The journal is one file of frames, each appended with one write and synced before the next:
//
//	 0        4        8                   8+length
//	+--------+--------+-------------------+
//	| length | CRC32C | CBOR of entries   |   integers little endian
//	+--------+--------+-------------------+
//
// The first frame holds the whole state (entry.State). See FORMAT.md.
const (
	journalFile     = "journal"
	journalVersion  = 1
	frameHeader     = 8
	frameBytesMax   = 16 << 20 // a plan is some hundred bytes per batch; more is damage
	journalBytesMax = 4 << 20  // rewritten as one state when it has grown beyond
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// target is one partition of one topic of the cluster.
type target struct {
	Topic     string `cbor:"1,keyasint"`
	Partition int32  `cbor:"2,keyasint"`
}

// batchPlan says all that a batch needs to be built again: which records of the round, for whom, under which numbers.
type batchPlan struct {
	Target     target  `cbor:"1,keyasint"`
	ProducerID int64   `cbor:"2,keyasint"`
	Epoch      int16   `cbor:"3,keyasint"`
	Sequence   int32   `cbor:"4,keyasint"` // of the first record
	First      int32   `cbor:"5,keyasint"` // index among the round's records for Source
	Count      int32   `cbor:"6,keyasint"`
	CRC        uint32  `cbor:"7,keyasint"`           // CRC32C of the records as they are sent, before compression
	Source     *target `cbor:"8,keyasint,omitempty"` // a dead letter: the partition that refused it
	Reason     string  `cbor:"9,keyasint,omitempty"` // a dead letter: why
	// Order grows with every batch that is given a sequence, over all rounds: batches of a partition are sent in it. Their order in the rounds
	// can differ, for dead letters and halves come late into old rounds.
	Order  uint64 `cbor:"10,keyasint,omitempty"`
	NoTime bool   `cbor:"11,keyasint,omitempty"` // a dead letter that was refused for its timestamp: it has none
}

// roundPlan is journaled and synced before any of its batches is sent. A later plan with the same id replaces it.
type roundPlan struct {
	ID         uint64           `cbor:"1,keyasint"`
	From       int64            `cbor:"2,keyasint"` // buffer offsets
	To         int64            `cbor:"3,keyasint"`
	Partitions map[string]int32 `cbor:"4,keyasint"` // how many each topic had; -1: it cannot exist, all is dead letter
	Batches    []batchPlan      `cbor:"5,keyasint"`
}

// partitionState is what survives of a partition between rounds.
type partitionState struct {
	Target     target   `cbor:"1,keyasint"`
	TopicID    [16]byte `cbor:"2,keyasint"`
	ProducerID int64    `cbor:"3,keyasint"`
	Epoch      int16    `cbor:"4,keyasint"`
	Sequence   int32    `cbor:"5,keyasint"` // next to be given out, after all batches up to Order
	Acked      int64    `cbor:"6,keyasint"` // offset in the core below which nothing of an open round lies
	Order      uint64   `cbor:"7,keyasint,omitempty"`
}

// confirmation ends all rounds up to and including Round.
type confirmation struct {
	Round      uint64           `cbor:"1,keyasint"`
	Offset     int64            `cbor:"2,keyasint"` // of the buffer: everything below is in the core
	Partitions []partitionState `cbor:"3,keyasint"`
}

// journalState is the whole, as the first frame of a journal has it.
type journalState struct {
	Version    int              `cbor:"1,keyasint"`
	MachineID  string           `cbor:"2,keyasint"`
	ProducerID int64            `cbor:"3,keyasint"` // for partitions that have none yet; -1 = none taken
	Offset     int64            `cbor:"4,keyasint"` // confirmed
	Round      uint64           `cbor:"5,keyasint"` // the last id given out
	Partitions []partitionState `cbor:"6,keyasint"`
	Rounds     []roundPlan      `cbor:"7,keyasint"`
	Started    bool             `cbor:"8,keyasint"` // Offset is meaningful
}

// entry is one thing noted: exactly one field is set.
type entry struct {
	State        *journalState `cbor:"1,keyasint,omitempty"`
	Round        *roundPlan    `cbor:"2,keyasint,omitempty"`
	Confirmation *confirmation `cbor:"3,keyasint,omitempty"`
}

// journal appends entries and keeps the state they amount to. After a failed write or sync it refuses everything.
type journal struct {
	fs     vfs.FS
	dir    string
	f      vfs.File
	end    int64
	noted  []byte // entries that go out with the next frame
	state  journalState
	failed error
}

func openJournal(fsys vfs.FS, dir string) (*journal, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	j := &journal{fs: fsys, dir: dir, state: journalState{Version: journalVersion, ProducerID: -1}}
	data, err := vfs.ReadFile(fsys, j.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		err = j.replay(data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return j, j.rewrite() // a torn tail is gone for good, and the file is known to be writable
}

func (j *journal) path() string { return filepath.Join(j.dir, journalFile) }

// replay applies every whole frame. Only the last one can have been cut by a power cut, and then it was never acted upon. The first never is:
// the file got its name when that was on disk.
func (j *journal) replay(data []byte) error {
	for offset := 0; offset < len(data) || offset == 0; {
		body, torn := frameAt(data[offset:])
		if body == nil && torn && offset > 0 {
			return nil
		}
		if body == nil {
			return fmt.Errorf("%s: damaged at byte %d, not by a cut at its end; move the file away to begin anew under a new producer id (records in flight may then come twice)", j.path(), offset)
		}
		offset += frameHeader + len(body)
		for len(body) > 0 {
			var e entry
			rest, err := cbor.UnmarshalFirst(body, &e)
			if err == nil {
				err = j.state.apply(e)
			}
			if err != nil {
				return fmt.Errorf("%s: entry before byte %d: %w", j.path(), offset, err)
			}
			body = rest
		}
	}
	return nil
}

// frameAt returns the body of the frame that data begins with; nil when it is not whole. torn tells that a cut can have done this: the frame is the
// file's last, or of its first page nothing reached the disk.
func frameAt(data []byte) (body []byte, torn bool) {
	if len(data) < frameHeader {
		return nil, true
	}
	length, sum := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
	data = data[frameHeader:]
	if length == 0 || length > frameBytesMax {
		return nil, length == 0 && sum == 0
	}
	if int(length) > len(data) {
		return nil, true
	}
	if crc32.Checksum(data[:length], castagnoli) != sum {
		return nil, int(length) == len(data)
	}
	return data[:length], false
}

// apply adds an entry to the state.
func (s *journalState) apply(e entry) error {
	switch {
	case e.State != nil:
		if e.State.Version > journalVersion {
			return fmt.Errorf("written by a newer release (version %d, this one knows %d)", e.State.Version, journalVersion)
		}
		*s = *e.State
	case e.Round != nil:
		s.Round = max(s.Round, e.Round.ID)
		if i := slices.IndexFunc(s.Rounds, func(r roundPlan) bool { return r.ID == e.Round.ID }); i >= 0 {
			s.Rounds[i] = *e.Round
		} else {
			s.Rounds = append(s.Rounds, *e.Round)
		}
	case e.Confirmation != nil:
		c := e.Confirmation
		s.Offset, s.Started = c.Offset, true
		s.Rounds = slices.DeleteFunc(s.Rounds, func(r roundPlan) bool { return r.ID <= c.Round })
		for _, p := range c.Partitions {
			s.set(p)
		}
	default:
		return errors.New("empty entry")
	}
	return nil
}

func (s *journalState) set(p partitionState) {
	if i := slices.IndexFunc(s.Partitions, func(q partitionState) bool { return q.Target == p.Target }); i >= 0 {
		s.Partitions[i] = p
	} else {
		s.Partitions = append(s.Partitions, p)
	}
}

// note takes entries that need not be on disk yet: they go with the next commit.
func (j *journal) note(entries ...entry) error {
	if j.failed != nil {
		return j.failed
	}
	for _, e := range entries {
		if err := j.state.apply(e); err != nil {
			panic("BUG: " + err.Error())
		}
		j.noted = append(j.noted, encode(e)...)
	}
	return nil
}

// commit returns when entries, and what was noted before, are on disk: one frame, one write, one sync.
func (j *journal) commit(entries ...entry) error {
	if err := j.note(entries...); err != nil || len(j.noted) == 0 {
		return err
	}
	frame := appendFrame(nil, j.noted)
	if j.end+int64(len(frame)) > journalBytesMax {
		return j.rewrite()
	}
	if _, err := j.f.WriteAt(frame, j.end); err != nil {
		return j.fail("write", err)
	}
	if err := j.f.Sync(); err != nil {
		return j.fail("sync", err)
	}
	j.end += int64(len(frame))
	j.noted = nil
	return nil
}

func (j *journal) fail(what string, err error) error {
	j.failed = fmt.Errorf("%s uplink journal %s: %w", what, j.path(), err)
	return j.failed
}

// rewrite replaces the file by one frame with the whole state, synced.
func (j *journal) rewrite() error {
	frame := appendFrame(nil, encode(entry{State: &j.state}))
	if len(frame) > frameHeader+frameBytesMax {
		return j.fail("rewrite", fmt.Errorf("its state has %d bytes, more than can be read again", len(frame)))
	}
	if err := j.close(); err != nil {
		return j.fail("close", err)
	}
	if err := vfs.WriteFile(j.fs, j.path(), frame); err != nil {
		return j.fail("rewrite", err)
	}
	f, err := j.fs.Open(j.path())
	if err != nil {
		return j.fail("open", err)
	}
	j.f, j.end, j.noted = f, int64(len(frame)), nil
	return nil
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

func encode(e entry) []byte {
	body, err := cbor.Marshal(e)
	if err != nil {
		panic("BUG: encode journal entry: " + err.Error())
	}
	return body
}

func appendFrame(dst, body []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(body, castagnoli))
	return append(dst, body...)
}
