package shard

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"sluice/core/vfs"
)

// A checkpoint is one file. It is described in FORMAT.md; integers are little endian.
//
//	payload | meta: index u64, term u64, configuration index u64, configuration (msgpack)
//	footer: 0 payload length u64 | 8 payload CRC32C u32 | 12 meta length u32 | 16 meta CRC32C u32
//	        20 version u32 | 24 magic "SLUICECP"
const (
	checkpointName    = "checkpoint"
	checkpointMagic   = "SLUICECP"
	checkpointVersion = 1
	footerBytes       = 32
	metaHeaderBytes   = 24
	maxMetaBytes      = 1 << 20
	sinkBufferBytes   = 64 << 10
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	// errStale is returned when a newer checkpoint was installed while one was being written.
	errStale = errors.New("a newer checkpoint is there already")
	// errInstalling is returned to Raft when a checkpoint that is to be installed covers no more
	// than what has been applied.
	errInstalling = errors.New("checkpoint is older than what is applied")
)

// checkpoints is a raft.SnapshotStore that keeps one checkpoint. A second, older one would be of no
// use: the log that continues it is gone.
type checkpoints struct {
	fs  vfs.FS
	dir string
	// refuse tells whether a checkpoint about to be installed must not be; nil refuses nothing.
	refuse func(index, term uint64) bool
	// broken is told when the directory is in an unknown state.
	broken func(error)
	// written is told the size of every new checkpoint.
	written func(bytes int64)

	mu    sync.Mutex
	meta  *raft.SnapshotMeta // nil: there is none
	count int
}

// openCheckpoints reads the checkpoint's meta data and checks all of it. It returns an error
// wrapping ErrDamaged when there is one that cannot be read.
func openCheckpoints(fsys vfs.FS, dir string) (*checkpoints, error) {
	c := &checkpoints{fs: fsys, dir: dir, broken: func(error) {}, written: func(int64) {}}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, checkpointName) && strings.HasSuffix(name, ".tmp") {
			if err := fsys.Remove(path.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("remove unfinished checkpoint: %w", err)
			}
		}
	}
	r, err := c.read()
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	c.meta = r.meta
	return c, r.Close()
}

func (c *checkpoints) file() string { return path.Join(c.dir, checkpointName) }

// current returns the index and term of the checkpoint, 0 if there is none.
func (c *checkpoints) current() (index, term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.meta == nil {
		return 0, 0
	}
	return c.meta.Index, c.meta.Term
}

// List implements raft.SnapshotStore.
func (c *checkpoints) List() ([]*raft.SnapshotMeta, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.meta == nil {
		return nil, nil
	}
	m := *c.meta
	return []*raft.SnapshotMeta{&m}, nil
}

// Open implements raft.SnapshotStore. Whatever id is asked for, the newest is given: an older one
// was replaced by it and no log continues it.
func (c *checkpoints) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	r, err := c.read()
	if err != nil {
		return nil, nil, err
	}
	m := *r.meta
	return &m, r, nil
}

// checkpointReader gives a checkpoint's payload.
type checkpointReader struct {
	io.Reader
	file vfs.File
	meta *raft.SnapshotMeta
}

func (r *checkpointReader) Close() error { return r.file.Close() }

// read opens the file and checks all of it.
func (c *checkpoints) read() (*checkpointReader, error) {
	f, err := c.fs.Open(c.file())
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	meta, err := checkFile(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read checkpoint %s: %w", c.file(), err)
	}
	return &checkpointReader{Reader: io.NewSectionReader(f, 0, meta.Size), file: f, meta: meta}, nil
}

func checkFile(f vfs.File) (*raft.SnapshotMeta, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	var foot [footerBytes]byte
	if size < footerBytes {
		return nil, io.ErrUnexpectedEOF
	}
	if n, err := f.ReadAt(foot[:], size-footerBytes); n < footerBytes {
		return nil, err
	}
	if string(foot[24:]) != checkpointMagic {
		return nil, errors.New("no footer")
	}
	if v := binary.LittleEndian.Uint32(foot[20:]); v != checkpointVersion {
		return nil, fmt.Errorf("format version %d, this release reads %d", v, checkpointVersion)
	}
	length := int64(binary.LittleEndian.Uint64(foot[:]))
	metaLength := int64(binary.LittleEndian.Uint32(foot[12:]))
	if length < 0 || metaLength < metaHeaderBytes || metaLength > maxMetaBytes || size != length+metaLength+footerBytes {
		return nil, errors.New("lengths do not add up")
	}
	b := make([]byte, metaLength)
	if n, err := f.ReadAt(b, length); int64(n) < metaLength {
		return nil, err
	}
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(foot[16:]) {
		return nil, errors.New("checksum of the meta data does not match")
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, length)); err != nil {
		return nil, err
	}
	if sum.Sum32() != binary.LittleEndian.Uint32(foot[8:]) {
		return nil, errors.New("checksum does not match")
	}
	return decodeMeta(b, length), nil
}

func decodeMeta(b []byte, size int64) *raft.SnapshotMeta {
	m := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, Size: size,
		Index:              binary.LittleEndian.Uint64(b),
		Term:               binary.LittleEndian.Uint64(b[8:]),
		ConfigurationIndex: binary.LittleEndian.Uint64(b[16:]),
		Configuration:      raft.DecodeConfiguration(b[metaHeaderBytes:]),
	}
	m.ID = checkpointID(m.Index, m.Term)
	return m
}

func checkpointID(index, term uint64) string { return fmt.Sprintf("%d-%d", term, index) }

// Create implements raft.SnapshotStore.
func (c *checkpoints) Create(_ raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if c.refuse != nil && c.refuse(index, term) {
		return nil, errInstalling
	}
	c.mu.Lock()
	c.count++
	name := fmt.Sprintf("%s.%d.tmp", c.file(), c.count)
	c.mu.Unlock()
	f, err := c.fs.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create checkpoint: %w", err)
	}
	s := &sink{store: c, file: f, name: name, meta: &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: checkpointID(index, term), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}
	s.buf = bufio.NewWriterSize(s.pen(), sinkBufferBytes)
	return s, nil
}

// sink writes one checkpoint beside the current one and replaces it when it is whole and synced.
type sink struct {
	store *checkpoints
	file  vfs.File
	name  string
	meta  *raft.SnapshotMeta
	buf   *bufio.Writer
	off   int64
	crc   uint32
	done  bool
}

func (s *sink) pen() io.Writer { return io.NewOffsetWriter(s.file, 0) }

// ID implements raft.SnapshotSink.
func (s *sink) ID() string { return s.meta.ID }

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	n, err := s.buf.Write(p)
	s.off += int64(n)
	s.crc = crc32.Update(s.crc, castagnoli, p[:n])
	if err != nil {
		return n, fmt.Errorf("write checkpoint: %w", err)
	}
	return n, nil
}

// Close makes the checkpoint the current one. After an error the one before is still it.
func (s *sink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	err := s.finish()
	if closeErr := s.file.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("close checkpoint: %w", closeErr)
	}
	if err == nil {
		err = s.store.install(s)
	}
	if err != nil {
		return errors.Join(err, s.remove())
	}
	s.store.written(s.off)
	return nil
}

func (s *sink) finish() error {
	m := make([]byte, metaHeaderBytes)
	binary.LittleEndian.PutUint64(m, s.meta.Index)
	binary.LittleEndian.PutUint64(m[8:], s.meta.Term)
	binary.LittleEndian.PutUint64(m[16:], s.meta.ConfigurationIndex)
	m = append(m, raft.EncodeConfiguration(s.meta.Configuration)...)
	var foot [footerBytes]byte
	binary.LittleEndian.PutUint64(foot[:], uint64(s.off))
	binary.LittleEndian.PutUint32(foot[8:], s.crc)
	binary.LittleEndian.PutUint32(foot[12:], uint32(len(m)))
	binary.LittleEndian.PutUint32(foot[16:], crc32.Checksum(m, castagnoli))
	binary.LittleEndian.PutUint32(foot[20:], checkpointVersion)
	copy(foot[24:], checkpointMagic)
	s.meta.Size = s.off
	s.buf.Write(m) // an error stays in the writer until Flush
	s.buf.Write(foot[:])
	if err := s.buf.Flush(); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync checkpoint: %w", err)
	}
	return nil
}

// Cancel implements raft.SnapshotSink.
func (s *sink) Cancel() error {
	if s.done {
		return nil
	}
	s.done = true
	return errors.Join(s.file.Close(), s.remove())
}

func (s *sink) remove() error {
	if err := s.store.fs.Remove(s.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove unfinished checkpoint: %w", err)
	}
	return nil
}

// install renames a whole checkpoint. One that was captured before a newer one came from the leader
// must not replace it: the log before that one is gone.
func (c *checkpoints) install(s *sink) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.meta != nil && c.meta.Index > s.meta.Index {
		return errStale
	}
	err := c.fs.Rename(s.name, c.file())
	if err == nil {
		err = c.fs.SyncDir(c.dir)
	}
	if err != nil {
		err = fmt.Errorf("name checkpoint: %w", err)
		c.broken(err)
		return err
	}
	c.meta = s.meta
	return nil
}
