package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// diskBytes is the size of a node's disk. It is sparse: it takes what is written.
const diskBytes = 4 << 30

// disk is a file that holds an ext4 file system of limited size.
type disk struct{ file, dir string }

// ballast takes the room of a full disk.
func (d disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// data is where the node keeps its files, beside lost+found and the ballast.
func (d disk) data() string { return filepath.Join(d.dir, "data") }

// newDisk makes a node's.
func (c *cluster) newDisk(ctx context.Context, node int) (disk, error) {
	name := fmt.Sprintf("core-%d", node)
	d := disk{file: filepath.Join(c.dir, name+".img"), dir: filepath.Join(c.dir, name)}
	if err := d.mount(ctx); err != nil {
		return d, fmt.Errorf("%w: make a disk: %w", ErrUnfit, err)
	}
	return d, nil
}

func (d disk) mount(ctx context.Context) error {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	f, err := os.Create(d.file)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskBytes), f.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return runAll(ctx, []command{
		{"mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.file},
		{"mount", "-o", "loop", d.file, d.dir},
	})
}

func (d disk) empty() error {
	if err := os.Remove(d.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("empty %s: %w", d.dir, err)
	}
	return nil
}

// lose removes all data of a node that does not run.
func (d disk) lose() error {
	if err := os.RemoveAll(d.data()); err != nil {
		return fmt.Errorf("lose the data in %s: %w", d.dir, err)
	}
	return nil
}
