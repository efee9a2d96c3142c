package partition

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/core/meta"
	"sluice/core/vfs"
)

const (
	metadataFile = "partition.metadata"
	originFile   = "origin.id"
	originBytes  = 16

	straySuffix   = "-stray"
	deletedSuffix = "-deleted"
	moveSuffix    = "-move"

	// nameBytesMax is how much of a topic's name goes into a directory's name
	// beside an index, an id and a suffix, so that it stays below the 255 bytes
	// that file systems take. The id keeps it unique.
	nameBytesMax = 190
	// moveBytesMax is what the number of a move takes with its dot.
	moveBytesMax = 21
)

// Dirs knows where the directories of a node's partitions are. There is one per
// data directory, shared by all sets.
//
// A partition lives in `<name>-<index>`, where Kafka's tools look for it, and
// its file partition.metadata says whose it is. Where another live partition
// still holds that name (a topic was deleted and created again, and the other
// shard has not come to the delete entry), it lives in `<name>-<index>.<id>`.
// What nobody claims is set aside as `<name>-<index>.<id>-stray` (see RemoveStrays);
// deleted partitions wait as `<name>-<index>.<id>-deleted` for the checkpoint
// that no longer names them; `<name>-<index>.<id>.<move>-move` is a copy that is
// being made for another shard. All of these names follow from the key, so that a
// partition is found again under any of them. One that had to take another name than the first gets that when it is free, see GivePlainNames.
//
// What Dirs writes is durable after Sync, which comes before a checkpoint counts.
type Dirs struct {
	fs     vfs.FS
	root   string
	origin []byte

	mu struct {
		sync.Mutex
		claimed map[string]claim     // by directory name
		places  map[string]*place    // by claimed path, where that is not the plain name
		stages  map[claim]*Stage     // copies being made
		strays  map[string]time.Time // since when those are seen that were set aside
		changed bool                 // names changed since the last Sync
		renamed map[string]bool      // names renamed from or to since then
	}
}

// claim says whose a directory is. A partition that is moved to another shard and back lives three
// times; each life has a directory of its own, since a checkpoint may still name an earlier one.
type claim struct {
	key   Key
	shard meta.ShardID
	move  uint64 // that brought the partition into the shard; 0: it was created there
}

// NewDirs opens or makes the data directory.
func NewDirs(fsys vfs.FS, dataDir string) (*Dirs, error) {
	if err := fsys.MkdirAll(dataDir); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	d := &Dirs{fs: fsys, root: dataDir}
	// What the last process renamed may not be durable yet; see settleLocked.
	if err := fsys.SyncDir(dataDir); err != nil {
		return nil, fmt.Errorf("sync data directory: %w", err)
	}
	d.mu.claimed, d.mu.renamed, d.mu.stages = make(map[string]claim), make(map[string]bool), make(map[claim]*Stage)
	d.mu.places = make(map[string]*place)
	if err := d.readOrigin(); err != nil {
		return nil, err
	}
	return d, nil
}

// Origin identifies the data directory among all others. It lies in every
// manifest taken here, so that Restore knows whose disk has synced its data.
func (d *Dirs) Origin() []byte { return d.origin }

func (d *Dirs) readOrigin() error {
	name := filepath.Join(d.root, originFile)
	data, err := vfs.ReadFile(d.fs, name)
	if err == nil && len(data) == originBytes {
		d.origin = data
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read origin: %w", err)
	}
	d.origin = make([]byte, originBytes)
	_, _ = rand.Read(d.origin) // never fails
	if err := vfs.WriteFile(d.fs, name, d.origin); err != nil {
		return fmt.Errorf("write origin: %w", err)
	}
	return nil
}

// Root returns the data directory.
func (d *Dirs) Root() string { return d.root }

// ValidName tells whether a topic's name can be a directory's name.
func ValidName(name string) bool {
	return name != "" && len(name) <= 249 && name != "." && name != ".." && !strings.ContainsAny(name, "/\\\x00")
}

func preferredDir(k Key, name string) string { return name + "-" + strconv.Itoa(int(k.Index)) }

func ownDir(c claim, name string) string {
	limit := nameBytesMax
	if c.move != 0 {
		limit -= moveBytesMax
	}
	if len(name) > limit {
		name = name[:limit]
	}
	own := preferredDir(c.key, name) + "." + hex.EncodeToString(c.key.Topic[:])
	if c.move != 0 {
		own += "." + strconv.FormatUint(c.move, 10)
	}
	return own
}

// claim finds or makes the directory of a partition and returns its path, and
// whether it was marked as the partition's already. fresh means that nothing that
// lies there counts: the partition is being created; otherwise a checkpoint names
// it.
func (d *Dirs) claim(c claim, name string, fresh bool) (path string, marked bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if stage := d.mu.stages[c]; stage != nil {
		stage.take()
		delete(d.mu.stages, c)
	}
	dir, err := d.findLocked(c, name, fresh)
	if err != nil {
		return "", false, err
	}
	path = filepath.Join(d.root, dir)
	if have, err := d.readMetadata(path); err == nil && have == c {
		d.mu.claimed[dir] = c
		d.settleAtLocked(c, name, path)
		return path, true, nil
	}
	if err := d.settleLocked(dir); err != nil {
		return "", false, err
	}
	// Its name is durable with the next Sync: until then the entry that creates the partition is not behind any checkpoint.
	if err := vfs.Mkdir(d.fs, path); err != nil {
		return "", false, fmt.Errorf("make partition directory: %w", err)
	}
	if err := d.writeMetadata(path, c); err != nil {
		return "", false, err
	}
	d.mu.claimed[dir] = c
	d.settleAtLocked(c, name, path)
	return path, false, nil
}

// findLocked returns the name under which the partition is to live, moved there
// from an earlier name and free of anything that belongs to somebody else.
func (d *Dirs) findLocked(c claim, name string, fresh bool) (string, error) {
	earlier, err := d.earlierLocked(c, name)
	if err != nil {
		return "", err
	}
	target := preferredDir(c.key, name)
	if holder, held := d.mu.claimed[target]; held && holder != c {
		target = ownDir(c, name)
	}
	if earlier == target {
		return target, nil
	}
	if err := d.clearLocked(c, name, target, fresh || earlier != ""); err != nil {
		return "", err
	}
	if earlier == "" {
		return target, nil
	}
	if there, err := d.exists(target); err != nil || there {
		return target, err
	}
	return target, d.renameLocked(earlier, target)
}

// earlierLocked finds a directory of c under one of its other names.
func (d *Dirs) earlierLocked(c claim, name string) (string, error) {
	own := ownDir(c, name)
	for _, dir := range []string{own, own + straySuffix, own + deletedSuffix, own + moveSuffix} {
		if holder, held := d.mu.claimed[dir]; held && holder != c {
			continue
		}
		owner, err := d.readMetadata(filepath.Join(d.root, dir))
		if err == nil && owner == c {
			return dir, nil
		}
		if err != nil && !errors.Is(err, errNoMetadata) {
			return "", err
		}
	}
	return "", nil
}

// clearLocked sets aside what stands where c is to live and belongs to another
// partition. What has no readable owner is c's, if a checkpoint names c and
// nothing else is found: metadata is synced before a checkpoint counts.
func (d *Dirs) clearLocked(c claim, name, target string, found bool) error {
	if there, err := d.exists(target); err != nil || !there {
		return err
	}
	owner, err := d.readMetadata(filepath.Join(d.root, target))
	switch {
	case err == nil && owner == c:
		return nil
	case err == nil:
		return d.renameLocked(target, ownDir(owner, name)+straySuffix)
	case !errors.Is(err, errNoMetadata):
		return err
	case found:
		return d.renameLocked(target, target+".unknown"+straySuffix)
	}
	return nil
}

// setAside renames a deleted partition's directory out of the way and gives its
// name free. It returns the new path.
func (d *Dirs) setAside(c claim, name, path string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, aside := d.leaveLocked(path), ownDir(c, name)+deletedSuffix
	delete(d.mu.claimed, dir)
	if there, err := d.exists(dir); err != nil || !there {
		return filepath.Join(d.root, aside), err
	}
	if err := d.renameLocked(dir, aside); err != nil {
		return "", err
	}
	return filepath.Join(d.root, aside), nil
}

// release gives a directory up without touching it.
func (d *Dirs) release(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.claimed, d.leaveLocked(path))
}

// settleLocked makes an earlier renaming from or to a name durable before the
// name is used again. Nothing promises that a crash keeps the earlier of two
// changes when it keeps the later one: a directory made or moved there could take
// the place of the one that was to be elsewhere by then.
func (d *Dirs) settleLocked(names ...string) error {
	for _, name := range names {
		if d.mu.renamed[name] {
			return d.syncLocked()
		}
	}
	return nil
}

// renameLocked moves a directory; what stands at the new name from an earlier
// life of the same partition goes.
func (d *Dirs) renameLocked(from, to string) error {
	if err := d.settleLocked(from, to); err != nil {
		return err
	}
	if err := d.fs.RemoveAll(filepath.Join(d.root, to)); err != nil {
		return fmt.Errorf("remove old %s: %w", to, err)
	}
	d.mu.changed, d.mu.renamed[from], d.mu.renamed[to] = true, true, true
	if err := d.fs.Rename(filepath.Join(d.root, from), filepath.Join(d.root, to)); err != nil {
		return fmt.Errorf("set partition directory aside: %w", err)
	}
	return nil
}

// deletedOf lists the paths of deleted partitions' directories of one shard, and
// those without a readable owner: their removal was cut short, or they were
// deleted before a checkpoint named them.
func (d *Dirs) deletedOf(shard meta.ShardID) ([]string, error) {
	names, err := d.fs.List(d.root)
	if err != nil {
		return nil, fmt.Errorf("list data directory: %w", err)
	}
	var paths []string
	for _, name := range names {
		if !strings.HasSuffix(name, deletedSuffix) {
			continue
		}
		path := filepath.Join(d.root, name)
		c, err := d.readMetadata(path)
		if err != nil && !errors.Is(err, errNoMetadata) {
			return nil, err
		}
		if err != nil || c.shard == shard {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

func (d *Dirs) remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, held := d.mu.claimed[filepath.Base(path)]; held {
		return nil
	}
	d.mu.changed = true
	if err := d.fs.RemoveAll(path); err != nil {
		return fmt.Errorf("remove deleted partition: %w", err)
	}
	return nil
}

// Sync makes the names of all partitions' directories durable.
func (d *Dirs) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncLocked()
}

func (d *Dirs) syncLocked() error {
	if !d.mu.changed {
		return nil
	}
	if err := d.fs.SyncDir(d.root); err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	d.mu.changed = false
	clear(d.mu.renamed)
	return nil
}

func (d *Dirs) exists(name string) (bool, error) {
	_, err := d.fs.Stat(filepath.Join(d.root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", name, err)
	}
	return true, nil
}

// errNoMetadata is returned when a directory has no readable partition.metadata:
// it was made by others, or its power went before the first checkpoint.
var errNoMetadata = errors.New("no readable " + metadataFile)

// writeMetadata writes the file. Its first two lines are Kafka's own (KIP-516).
func (d *Dirs) writeMetadata(path string, c claim) error {
	d.mu.changed = true
	f, err := d.fs.Create(filepath.Join(path, metadataFile))
	if err != nil {
		return fmt.Errorf("create %s: %w", metadataFile, err)
	}
	text := fmt.Sprintf("version: 0\ntopic_id: %s\nindex: %d\nshard: %d\n", c.key.Topic, c.key.Index, c.shard)
	if c.move != 0 {
		text += fmt.Sprintf("move: %d\n", c.move)
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", metadataFile, err), f.Close())
	}
	return f.Close()
}

func (d *Dirs) readMetadata(path string) (claim, error) {
	data, err := vfs.ReadFile(d.fs, filepath.Join(path, metadataFile))
	if errors.Is(err, fs.ErrNotExist) {
		return claim{}, errNoMetadata
	}
	if err != nil {
		return claim{}, fmt.Errorf("read %s: %w", metadataFile, err)
	}
	return parseMetadata(string(data))
}

func parseMetadata(text string) (c claim, err error) {
	seen := 0
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok || !strings.HasSuffix(line, "\n") {
			return claim{}, errNoMetadata
		}
		var n uint64
		switch key {
		case "version":
			continue
		case "topic_id":
			c.key.Topic, err = meta.ParseTopicID(value)
		case "index":
			n, err = strconv.ParseUint(value, 10, 31)
			c.key.Index = int32(n)
		case "shard":
			n, err = strconv.ParseUint(value, 10, 32)
			c.shard = meta.ShardID(n)
		case "move":
			if c.move, err = strconv.ParseUint(value, 10, 64); err == nil && c.move > 0 {
				continue
			}
			return claim{}, errNoMetadata
		}
		if err != nil {
			return claim{}, errNoMetadata
		}
		seen++
	}
	if seen != 3 {
		return claim{}, errNoMetadata
	}
	return c, nil
}

// syncMetadata makes a partition's metadata file and its name durable.
func (d *Dirs) syncMetadata(path string) error { return syncMetadata(d.at(path), path) }

func syncMetadata(fsys vfs.FS, path string) error {
	f, err := fsys.Open(filepath.Join(path, metadataFile))
	if err != nil {
		return fmt.Errorf("open %s: %w", metadataFile, err)
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", metadataFile, err), f.Close())
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", metadataFile, err)
	}
	if err := fsys.SyncDir(path); err != nil {
		return fmt.Errorf("sync partition directory: %w", err)
	}
	return nil
}

// RemoveShard removes the directories of a shard's partitions that nobody has claimed: this node is no longer a member of the shard.
func (d *Dirs) RemoveShard(shard meta.ShardID) error {
	names, err := d.fs.List(d.root)
	if err != nil {
		return fmt.Errorf("list data directory: %w", err)
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(d.root, name)
		if c, err := d.readMetadata(path); err == nil && c.shard == shard {
			errs = append(errs, d.remove(path))
		}
	}
	return errors.Join(append(errs, d.Sync())...)
}
