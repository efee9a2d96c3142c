package controller

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"sluice/core/meta"
	"sluice/core/vfs"
)

const (
	identityFile    = "node.json"
	identityCopy    = "node.json.copy" // the same, for when a bit of the other has flipped
	lockFile        = "node.lock"
	identityVersion = 1
)

var (
	// ErrInUse is returned when another process holds the data directory.
	ErrInUse = errors.New("data directory is in use by another process")
	// ErrOtherNode is returned when the data directory belongs to another node id.
	ErrOtherNode = errors.New("data directory belongs to another node")
	// ErrNoIdentity is returned when a data directory holds shards but no identity file.
	ErrNoIdentity = errors.New("data directory has shards but no " + identityFile + ": restore the file, or start with an empty directory")
	// ErrNewer is returned when a file was written by a newer release.
	ErrNewer = errors.New("written by a newer release: upgrade this node")
)

// identity is who the data directory is: `<data>/node.json` (FORMAT.md).
type identity struct {
	fs   vfs.FS
	dir  string
	lock io.Closer

	mu struct {
		sync.Mutex
		file identityJSON
	}
}

// identityJSON is the file. ClusterID is empty until the node has founded or joined a cluster.
type identityJSON struct {
	Version     int         `json:"version"`
	ClusterID   string      `json:"clusterId,omitempty"`
	NodeID      meta.NodeID `json:"nodeId"`
	Incarnation string      `json:"incarnation"`
	Peers       []peer      `json:"peers,omitempty"`
	// Sum is the CRC32C of the file with an empty sum, in hexadecimal; a file of an early release has none.
	Sum string `json:"crc32c,omitempty"`
}

// encode returns the file's bytes.
func (f identityJSON) encode() []byte {
	f.Sum = ""
	f.Sum = f.sum()
	return f.marshal()
}

func (f identityJSON) marshal() []byte {
	raw, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		panic("BUG: encode identity: " + err.Error())
	}
	return append(raw, '\n')
}

func (f identityJSON) sum() string {
	f.Sum = ""
	return fmt.Sprintf("%08x", crc32.Checksum(f.marshal(), crc32.MakeTable(crc32.Castagnoli)))
}

// readIdentity reads one of the two files. The error wraps fs.ErrNotExist when there is none, and errIdentity when it is not
// what was written.
func readIdentity(fsys vfs.FS, name string) (f identityJSON, err error) {
	raw, err := vfs.ReadFile(fsys, name)
	if err != nil {
		return f, fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, fmt.Errorf("read %s: %w: %w", name, errIdentity, err)
	}
	if f.Version <= identityVersion && f.Sum != "" && f.Sum != f.sum() {
		return f, fmt.Errorf("read %s: %w: its sum is %s, want %s", name, errIdentity, f.Sum, f.sum())
	}
	return f, nil
}

// errIdentity is returned for an identity file that is damaged.
var errIdentity = errors.New("damaged")

// peer is where another node was last. A voter that restarts must find the others before it has
// any metadata: it learns what is committed from them.
type peer struct {
	_    struct{}    `cbor:",toarray"`
	ID   meta.NodeID `json:"id"`
	Addr string      `json:"addr"`
}

// openIdentity locks the data directory and reads who it is; an empty directory becomes a new
// incarnation of the node.
func openIdentity(fsys vfs.FS, dir string, node meta.NodeID) (*identity, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	lock, err := fsys.Lock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w: %w", dir, ErrInUse, err)
	}
	id := &identity{fs: fsys, dir: dir, lock: lock}
	if err := id.load(node); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return id, nil
}

func (id *identity) path() string { return filepath.Join(id.dir, identityFile) }

func (id *identity) load(node meta.NodeID) error {
	f, err := readIdentity(id.fs, id.path())
	second, copyErr := readIdentity(id.fs, filepath.Join(id.dir, identityCopy))
	gone := errors.Is(err, fs.ErrNotExist)
	whole := err == nil && copyErr == nil && f.Sum != "" && second.Sum != ""
	switch {
	case gone && errors.Is(copyErr, fs.ErrNotExist):
		return id.create(node)
	case copyErr == nil && (gone || errors.Is(err, errIdentity) || err == nil && f.Sum == "" && f.ClusterID == second.ClusterID):
		f = second // with a sum, which one that says it has none may only have lost
	case err != nil:
		return err
	}
	switch {
	case f.Version > identityVersion:
		return fmt.Errorf("read %s: version %d: %w", id.path(), f.Version, ErrNewer)
	case f.NodeID != node:
		return fmt.Errorf("open %s as node %d: %w: it was written by node %d", id.dir, node, ErrOtherNode, f.NodeID)
	case f.Incarnation == "":
		return fmt.Errorf("read %s: no incarnation: %w", id.path(), ErrNoIdentity)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.mu.file = f
	if whole {
		return nil
	}
	return id.writeLocked()
}

func (id *identity) create(node meta.NodeID) error {
	if names, err := id.fs.List(filepath.Join(id.dir, "shards")); err == nil && len(names) > 0 {
		return fmt.Errorf("open %s: %w", id.dir, ErrNoIdentity)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.mu.file = identityJSON{Version: identityVersion, NodeID: node, Incarnation: newIncarnation()}
	return id.writeLocked()
}

func (id *identity) writeLocked() error {
	raw := id.mu.file.encode()
	for _, name := range []string{identityFile, identityCopy} {
		if err := vfs.WriteFile(id.fs, filepath.Join(id.dir, name), raw); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// change edits the file and makes the edit durable.
func (id *identity) change(edit func(*identityJSON)) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	edit(&id.mu.file)
	return id.writeLocked()
}

func (id *identity) read() identityJSON {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.mu.file
}

func (id *identity) clusterID() string { return id.read().ClusterID }

func (id *identity) server() meta.Server {
	f := id.read()
	return meta.Server{Node: f.NodeID, Incarnation: f.Incarnation}
}

// close releases the data directory.
func (id *identity) close() error {
	if err := id.lock.Close(); err != nil {
		return fmt.Errorf("release %s: %w", id.dir, err)
	}
	return nil
}

func randomBytes[T ~[16]byte]() (b T) {
	raw := [16]byte(b)
	_, _ = rand.Read(raw[:]) // never fails since Go 1.24
	return T(raw)
}

// newUUID returns a random uuid as Kafka prints it. Kafka gives out none that begins with a dash,
// since tools take such an argument for an option.
func newUUID() string {
	for {
		b := randomBytes[[16]byte]()
		if s := base64.RawURLEncoding.EncodeToString(b[:]); s[0] != '-' {
			return s
		}
	}
}

func newTopicID() meta.TopicID {
	for {
		if id := randomBytes[meta.TopicID](); !id.IsZero() && id.String()[0] != '-' {
			return id
		}
	}
}

// newIncarnation needs to differ between the directories that one node id ever had.
func newIncarnation() string { return newUUID()[:12] }
