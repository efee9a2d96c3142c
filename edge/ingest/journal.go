package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"sluice/core/vfs"
	"sluice/edge/buffer"
)

// checkpointBytes of log are replayed at a start at most, beside what one checkpoint itself holds: about a second's reading.
const checkpointBytes = 64 << 20

// checkpointEvery is how often the log's growth is looked at.
const checkpointEvery = time.Second

// A Ledger is state that lives in the journal: notes beside the messages they are about, in the same batch and so under the same
// sync. Apply takes one note of its kind at a start; Dump puts notes that tell its whole state.
type Ledger interface {
	Apply(note []byte) error
	Dump(put func(note []byte) error) error
}

// Journal replays the ledgers' notes at a start and has the ledgers tell their state anew from time to time, so that the log
// before it may go. A file of one line remembers where the last such telling began.
//
// A note is kind (1 byte), length (uvarint), body.
type Journal struct {
	fs      vfs.FS
	file    string
	buffer  *buffer.Buffer
	logger  *slog.Logger
	ledgers map[byte]Ledger
	start   int64
	floor   *buffer.Floor
}

// OpenJournal finds where the replay begins. Register the ledgers, then call Replay.
func OpenJournal(files vfs.FS, file string, b *buffer.Buffer, logger *slog.Logger) (*Journal, error) {
	j := &Journal{fs: files, file: file, buffer: b, logger: logger, ledgers: map[byte]Ledger{}}
	text, err := vfs.ReadFile(files, file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		j.start = b.Log().Start()
	case err != nil:
		return nil, fmt.Errorf("read journal position: %w", err)
	default:
		if j.start, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return nil, fmt.Errorf("read journal position in %s: %w (delete the file to replay the whole buffer)", file, err)
		}
	}
	j.start = min(max(j.start, b.Log().Start()), b.Log().End())
	j.floor = b.NewFloor(j.start)
	return j, nil
}

// Register names the ledger that kind's notes belong to.
func (j *Journal) Register(kind byte, l Ledger) { j.ledgers[kind] = l }

// AppendNote frames a note.
func AppendNote(dst []byte, kind byte, body []byte) []byte {
	dst = append(dst, kind)
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	return append(dst, body...)
}

// Replay hands all notes since the last telling to their ledgers.
func (j *Journal) Replay() error {
	return j.buffer.Replay(j.start, func(offset int64, key string, value []byte) error {
		if key != buffer.KeyJournal {
			return nil
		}
		if err := j.apply(value); err != nil {
			return fmt.Errorf("journal record at offset %d: %w", offset, err)
		}
		return nil
	})
}

func (j *Journal) apply(notes []byte) error {
	for len(notes) > 0 {
		size, n := binary.Uvarint(notes[1:])
		if n <= 0 || uint64(len(notes)-1-n) < size {
			return errors.New("a note is cut off")
		}
		body := notes[1+n : 1+n+int(size)]
		l := j.ledgers[notes[0]]
		if l == nil {
			return fmt.Errorf("a note of unknown kind %q: a newer release wrote it", notes[0])
		}
		if err := l.Apply(body); err != nil {
			return err
		}
		notes = notes[1+n+int(size):]
	}
	return nil
}

// Run tells the ledgers' state anew whenever the log has grown by checkpointBytes.
func (j *Journal) Run(ctx context.Context) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	told := j.buffer.Log().Bytes()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := j.buffer.Log().Bytes()
		if now < told { // segments went
			told = now
		}
		if now-told < min(checkpointBytes, j.buffer.SegmentBytes()) { // the log goes by segments, and not above the floor
			continue
		}
		if err := j.Checkpoint(ctx); err != nil {
			j.logger.Warn("cannot write the journal's state", "error", err)
			continue
		}
		told = j.buffer.Log().Bytes()
	}
}

// Checkpoint tells the whole state and then moves the replay's begin to where the telling began. Notes that other goroutines put
// meanwhile lie after that begin, too; a ledger's Dump orders its own against them.
func (j *Journal) Checkpoint(ctx context.Context) error {
	begin := j.buffer.Synced()
	for kind, l := range j.ledgers {
		err := l.Dump(func(body []byte) error {
			return j.buffer.Put(&buffer.Entry{Note: AppendNote(nil, kind, body)})
		})
		if err != nil {
			return fmt.Errorf("dump ledger %q: %w", kind, err)
		}
	}
	t, err := j.buffer.PutTicket(ctx, &buffer.Entry{})
	if err != nil {
		return err
	}
	if err := t.Wait(ctx); err != nil {
		return err
	}
	if err := vfs.WriteFile(j.fs, j.file, []byte(strconv.FormatInt(begin, 10)+"\n")); err != nil {
		return fmt.Errorf("write journal position: %w", err)
	}
	j.floor.Set(begin)
	return nil
}
