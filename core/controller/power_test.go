package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"sluice/core/meta"
	"sluice/core/vfs"
)

var errNoPower = errors.New("the power is gone")

// cutFS loses its power at the n-th sync: before it, with some of what was not synced on the disk, or after it, with nothing more than that.
type cutFS struct {
	vfs.FS
	disk  *vfs.Mem
	after bool
	keep  func() bool
	gone  chan struct{}

	mu   sync.Mutex
	left int
	what string
	rest *vfs.Mem // the disk as the cut left it
}

func newCutFS(n int) *cutFS {
	disk := vfs.NewMem()
	random := rand.New(rand.NewPCG(uint64(n), 0))
	return &cutFS{FS: disk, disk: disk, left: n, after: n%2 == 0, keep: func() bool { return random.IntN(2) == 0 }, gone: make(chan struct{})}
}

func (c *cutFS) sync(what string, do func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		return errNoPower
	}
	if c.left--; c.left > 0 {
		return do()
	}
	if c.what = "before " + what; c.after {
		c.what, c.keep = "after "+what, nil
		if err := do(); err != nil {
			return err
		}
	}
	c.rest = c.disk.CrashClone(c.keep)
	close(c.gone)
	return errNoPower
}

func (c *cutFS) SyncDir(dir string) error {
	return c.sync("sync of directory "+dir, func() error { return c.FS.SyncDir(dir) })
}

func (c *cutFS) MkdirAll(dir string) error {
	if _, err := c.FS.Stat(dir); err == nil {
		return nil
	}
	return c.sync("making of "+dir, func() error { return c.FS.MkdirAll(dir) })
}

func (c *cutFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &fileOfCut{f, c}, nil
}

func (c *cutFS) Open(name string) (vfs.File, error)   { return c.file(c.FS.Open(name)) }
func (c *cutFS) Create(name string) (vfs.File, error) { return c.file(c.FS.Create(name)) }

type fileOfCut struct {
	vfs.File
	fs *cutFS
}

func (f *fileOfCut) Sync() error { return f.fs.sync("sync of "+f.Name(), f.File.Sync) }

// live runs a node on the file system until its power goes, and has it make a topic. It returns the cluster's id when the topic was made, and whether the
// power went at all.
func live(t *testing.T, o Options, fs *cutFS) (clusterID string, cut bool) {
	t.Helper()
	o.FS = fs
	c, err := Open(o)
	if err != nil {
		if !errors.Is(err, errNoPower) {
			t.Fatal(err)
		}
		return "", true
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	go func() {
		select {
		case <-fs.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	select {
	case <-c.Ready():
		if r := c.CreateTopics(ctx, []meta.NewTopic{plain("t")}, false); r[0].Err == nil {
			clusterID = c.id.clusterID()
		}
	case <-fs.gone:
	case <-ctx.Done():
	}
	select {
	case <-fs.gone:
		cut = true
	default:
		if ctx.Err() != nil {
			t.Fatal("the node is neither ready nor without power")
		}
	}
	_ = c.node.Close()
	cancel()
	<-done
	return clusterID, cut
}

// TestPowerCutWhileFounding cuts the power at every sync of a node's first life, from its identity over the cluster's first entry to its first topic. The
// next start goes on: with the topic, when that was answered, and in the same cluster then.
func TestPowerCutWhileFounding(t *testing.T) {
	beside(t)
	const atOnce = 4 // most of the time is spent waiting
	places := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	for n := 1; !t.Failed(); n++ {
		fs := newCutFS(n)
		clusterID, cut := live(t, options(1), fs)
		if !cut {
			if n < 20 {
				t.Errorf("only %d syncs", n)
			}
			t.Logf("%d syncs", n-1)
			return
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			o := options(1)
			o.FS = fs.rest
			if err := again(o, clusterID); err != nil {
				t.Errorf("cut %d, %s: %v", n, fs.what, err)
			}
		})
	}
}

// again starts a node after a cut.
func again(o Options, clusterID string) error {
	c, err := Open(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	select {
	case <-c.Ready():
	case err := <-done:
		done <- err
		return fmt.Errorf("the node stopped: %w", err)
	case <-ctx.Done():
		return fmt.Errorf("the node is not ready: %+v", c.Status())
	}
	if clusterID != "" && (c.id.clusterID() != clusterID || c.Image().Topic("t") == nil) {
		return fmt.Errorf("the cluster was %q and is %q, topic %v", clusterID, c.id.clusterID(), c.Image().Topic("t"))
	}
	return makeTopic(ctx, c, fmt.Sprint("u", c.Self()))
}

// makeTopic has a node that is ready make a topic, and asks again where a busy machine keeps the answer or the other node's pings for too long.
func makeTopic(ctx context.Context, c *Controller, name string) error {
	for {
		err := c.CreateTopics(ctx, []meta.NewTopic{plain(name)}, false)[0].Err
		switch {
		case err == nil, err.Code == meta.CodeTopicAlreadyExists:
			return nil
		case err.Code != meta.CodeRequestTimedOut && err.Code != meta.CodeInvalidReplicationFactor || ctx.Err() != nil:
			return fmt.Errorf("make a topic: %w", err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// TestPowerCutWhileJoining does so with a node that joins another one's cluster, at some of its syncs. It is then let in as if nothing had been.
func TestPowerCutWhileJoining(t *testing.T) {
	beside(t)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for range 6 {
		a := start(t, options(1))
		n := 1 + random.IntN(40)
		fs := newCutFS(n)
		o := options(2, a.Addr())
		if _, cut := live(t, o, fs); !cut {
			fs.rest = fs.disk.CrashClone(nil)
		}
		o.FS = fs.rest
		if err := again(o, ""); err != nil {
			t.Fatalf("cut %d, %s: %v", n, fs.what, err)
		}
		a.crash()
	}
}
