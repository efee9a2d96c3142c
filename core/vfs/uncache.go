package vfs

// Uncache asks the system to forget what it holds of a part of the file in memory, as far as that is on the disk already,
// so that the next read comes from the disk. Where the system cannot, nothing happens.
func Uncache(f File, off, n int64) {
	if u, ok := f.(interface{ uncache(off, n int64) }); ok {
		u.uncache(off, n)
	}
}

// uncache is found by Uncache.
func (f *faultFile) uncache(off, n int64) { Uncache(f.File, off, n) }
