package controller

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"sluice/core/meta"
	"sluice/core/vfs"
)

const (
	identityFile    = "node.json"
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
}

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
	raw, err := vfs.ReadFile(id.fs, id.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return id.create(node)
	case err != nil:
		return fmt.Errorf("read %s: %w", id.path(), err)
	}
	var f identityJSON
	if err := json.Unmarshal(raw, &f); err != nil {
		return fmt.Errorf("read %s: %w", id.path(), err)
	}
	switch {
	case f.Version > identityVersion:
		return fmt.Errorf("read %s: version %d: %w", id.path(), f.Version, ErrNewer)
	case f.NodeID != node:
		return fmt.Errorf("open %s as node %d: %w: it was written by node %d", id.dir, node, ErrOtherNode, f.NodeID)
	case f.Incarnation == "":
		return fmt.Errorf("read %s: no incarnation: %w", id.path(), ErrNoIdentity)
	}
	id.mu.file = f
	return nil
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
	raw, err := json.MarshalIndent(id.mu.file, "", "  ")
	if err != nil {
		panic("BUG: encode identity: " + err.Error())
	}
	if err := vfs.WriteFile(id.fs, id.path(), append(raw, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", id.path(), err)
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
