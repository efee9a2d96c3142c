package partition

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"sluice/core/commitlog"
)

// Restore makes a checkpoint's manifest the state of the set: every log is cut
// to the position that the manifest gives (what came later was never synced, and
// Raft brings it again), what is not named is dropped, and what is named but not
// here is marked missing, for Run to fetch. It waits for no network and reads no
// records. An error means that the manifest cannot be read or the storage has
// failed.
//
// It may be called on a running set, when the group's leader sends a checkpoint
// because the entries before it are gone.
func (s *Set) Restore(index uint64, r io.Reader) error {
	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrStopped, err)
	}
	h, sections, err := readManifest(r, s.o.Shard)
	if err != nil {
		return fmt.Errorf("restore checkpoint at index %d: %w", index, err)
	}
	if err := s.restore(h, sections); err != nil {
		s.fail(err)
		return fmt.Errorf("restore checkpoint at index %d: %w", index, err)
	}
	s.log.Info("checkpoint restored", "index", index, "partitions", len(sections),
		"missingSegments", s.catchUp.segments(), "missingBytes", s.catchUp.bytes())
	return nil
}

func (s *Set) restore(h manifestHeader, sections []*section) error {
	wanted := make(map[Key]*section, len(sections))
	for _, sec := range sections {
		wanted[sec.key()] = sec
	}
	for _, p := range s.sorted() {
		if sec := wanted[p.key]; sec != nil && sec.arrived == p.arrived {
			continue
		}
		if err := s.drop(p); err != nil {
			return err
		}
	}
	// What this directory's own sets have checkpointed was synced before. What
	// another replica has checkpointed may stand here half written by a crash.
	s.deleted = loadTombstones(h.Deleted)
	trusted := bytes.Equal(h.Origin, s.o.Dirs.Origin())
	for _, sec := range sections {
		if err := s.restorePartition(sec, trusted); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) restorePartition(sec *section, trusted bool) error {
	p := s.partitions[sec.key()]
	if p != nil {
		return s.readopt(p, sec)
	}
	p, missing, err := s.open(sec, false)
	if err != nil {
		return err
	}
	p.listed.Store(true)
	work := incomplete{p: p, missing: missing}
	if !trusted {
		p.named.Store(false)
	}
	synced := p.named.Load() || len(sec.Log.Segments) == 0
	if trusted && synced && len(missing) == 0 && len(sec.encoded) <= savedSectionMax {
		p.saved.Store(&savedSection{version: p.version, bytes: sec.encoded})
	}
	if !trusted {
		work.unverified, work.unsynced = present(sec.Log.Segments, missing), true
	}
	s.catchUp.add(work)
	return nil
}

// readopt makes a section the state of a partition that is in use. The log keeps
// segments by the checksum it believes they have, so what was not verified before
// still is not.
func (s *Set) readopt(p *Partition, sec *section) error {
	missing, err := p.log.Adopt(sec.Log)
	if err != nil {
		return fmt.Errorf("adopt manifest of %s-%d: %w", p.name, p.key.Index, err)
	}
	p.log.Configure(s.logConfig(sec.Config, sec.dirty))
	s.adopt(p, sec)
	p.listed.Store(true)
	doubtful := s.catchUp.unverified(p)
	unverified := slices.DeleteFunc(present(sec.Log.Segments, missing), func(seg commitlog.SegmentInfo) bool {
		return !contains(doubtful, seg.Base)
	})
	s.catchUp.add(incomplete{p: p, missing: missing, unverified: unverified, unsynced: true})
	return nil
}

// present are the segments that are not missing.
func present(all, missing []commitlog.SegmentInfo) []commitlog.SegmentInfo {
	lacks := make(map[int64]bool, len(missing))
	for _, m := range missing {
		lacks[m.Base] = true
	}
	var here []commitlog.SegmentInfo
	for _, seg := range all {
		if !lacks[seg.Base] {
			here = append(here, seg)
		}
	}
	return here
}
