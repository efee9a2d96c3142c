package chaos

import (
	"fmt"
	"os"
	"syscall"
)

// fill takes all room but leave bytes. The room is allocated, not written.
func (d disk) fill(leave int64) error {
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &s); err != nil {
		return fmt.Errorf("ask for the room of %s: %w", d.dir, err)
	}
	size := int64(s.Bavail)*int64(s.Bsize) - leave
	f, err := os.Create(d.ballast())
	if err != nil {
		return fmt.Errorf("fill %s: %w", d.dir, err)
	}
	defer f.Close()
	// The node writes meanwhile, so there may be a little less than there was; what is left is taken block by block.
	for step := max(size, 0); step >= 4096; {
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("fill %s: %w", d.dir, err)
		}
		if info.Size()+4096 > size {
			break
		}
		step = min(step, size-info.Size())
		if err := syscall.Fallocate(int(f.Fd()), 0, info.Size(), step); err != nil {
			step /= 2
		}
	}
	return nil
}
