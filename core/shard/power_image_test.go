package shard

import (
	"bytes"
	"fmt"
	"hash/crc64"
	"io"
	"log/slog"
	"slices"

	"github.com/hashicorp/raft"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/vfs"
)

// image is what a replica has after a power cut, read as it reads it when it starts, with its whole log applied: as it would be had it been
// elected.
type image struct {
	server      meta.Server
	voters      []raft.ServerID // of its newest configuration
	term        uint64          // of its last entry
	last        uint64
	complete    bool // lacks no segments: others only vote, they cannot be elected
	partitions  map[partition.Key]*contents
	currentTerm uint64
	votedTerm   uint64
	votedFor    string
}

// contents are the records of a partition.
type contents struct {
	start, end int64
	at         map[string]int64 // value to offset
	sum        uint64           // of all bytes
}

// recoverImage starts a replica's files without its group. Nil: there is no replica on the disk. An error is one that would keep it from starting.
func recoverImage(disk vfs.FS, self meta.Server) (_ *image, err error) {
	n := &Node{o: Options{FS: disk, Dir: "data", Self: self}, log: slog.New(slog.DiscardHandler)}
	if _, err := disk.Stat("data/shards"); err != nil {
		return nil, nil
	}
	if err := n.sweep(); err != nil {
		return nil, err
	}
	if used, err := n.hasState(n.dir(testShard)); err != nil || !used {
		return nil, err
	}
	d, err := n.openDisk(testShard, logOptions)
	if err != nil {
		return nil, err
	}
	defer d.log.Close()
	dirs, err := partition.NewDirs(disk, "data")
	if err != nil {
		return nil, err
	}
	set, err := partition.Open(partition.Options{FS: disk, Dirs: dirs, Shard: testShard})
	if err != nil {
		return nil, err
	}
	defer set.Close()
	i := &image{server: self}
	if err := i.replay(d, set); err != nil {
		return nil, err
	}
	return i, i.read(set)
}

func (i *image) replay(d disk, set *partition.Set) error {
	var configuration raft.Configuration
	if d.points.meta != nil {
		r, err := d.points.read()
		if err != nil {
			return err
		}
		defer r.Close()
		i.last, i.term, configuration = r.meta.Index, r.meta.Term, r.meta.Configuration
		if err := set.Restore(i.last, r); err != nil {
			return err
		}
	}
	var logs []*raft.Log
	for at := i.last + 1; at <= d.log.Info().Last; at++ {
		l := new(raft.Log)
		if err := d.log.GetLog(at, l); err != nil {
			return fmt.Errorf("entry %d of %d: %w", at, d.log.Info().Last, err)
		}
		switch l.Type {
		case raft.LogConfiguration:
			configuration = raft.DecodeConfiguration(l.Data)
			logs = append(logs, l)
		case raft.LogCommand:
			logs = append(logs, l)
		}
		i.last, i.term = l.Index, l.Term
	}
	if len(logs) > 0 {
		set.ApplyBatch(logs)
	}
	for _, s := range configuration.Servers {
		if s.Suffrage == raft.Voter {
			i.voters = append(i.voters, s.ID)
		}
	}
	i.complete = set.Complete()
	i.currentTerm, _ = d.log.GetUint64([]byte("CurrentTerm"))
	i.votedTerm, _ = d.log.GetUint64([]byte("LastVoteTerm"))
	candidate, _ := d.log.Get([]byte("LastVoteCand"))
	i.votedFor = string(candidate)
	return set.Err()
}

func (i *image) read(set *partition.Set) error {
	i.partitions = map[partition.Key]*contents{}
	for p := range set.All() {
		c, err := readContents(p)
		if err != nil && i.complete {
			return fmt.Errorf("read %s-%d: %w", p.Name(), p.Key().Index, err)
		}
		i.partitions[p.Key()] = c
	}
	return nil
}

// readContents reads a partition from its start to its end. A value that is there twice is an error.
func readContents(p *partition.Partition) (*contents, error) {
	c := &contents{start: p.Start(), end: p.End(), at: map[string]int64{}}
	for offset := c.start; offset < c.end; {
		chunk, err := p.Read(offset, 1<<20, false)
		if err != nil {
			return c, err
		}
		data, err := chunk.Bytes()
		if err == nil {
			err = c.add(bytes.Clone(data), offset)
		}
		offset = chunk.Next()
		chunk.Release()
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

var crcTable = crc64.MakeTable(crc64.ECMA)

func (c *contents) add(data []byte, offset int64) error {
	if c.sum = crc64.Update(c.sum, crcTable, data); len(data) == 0 {
		return fmt.Errorf("at %d: %w", offset, io.ErrUnexpectedEOF)
	}
	for len(data) > 0 {
		b, rest, err := record.Next(data)
		if err != nil {
			return err
		}
		if err := b.Each(func(r record.Record) error { return c.addRecord(string(r.Value), b.BaseOffset()+int64(r.OffsetDelta)) }); err != nil {
			return err
		}
		data = rest
	}
	return nil
}

func (c *contents) addRecord(value string, offset int64) error {
	if before, twice := c.at[value]; twice {
		return fmt.Errorf("%q is at %d and again at %d", value, before, offset)
	}
	c.at[value] = offset
	return nil
}

// upToDate says whether i may be elected by o, as Raft compares logs.
func (i *image) upToDate(o *image) bool {
	return i.term > o.term || i.term == o.term && i.last >= o.last
}

// electable says whether the voters among the images could make i their leader.
func (i *image) electable(all map[meta.NodeID]*image) bool {
	votes := 0
	for _, o := range all {
		if o != nil && slices.Contains(i.voters, serverID(o.server)) && i.upToDate(o) {
			votes++
		}
	}
	return i.complete && 2*votes > len(i.voters) && slices.Contains(i.voters, serverID(i.server))
}

// sameAs compares two replicas that end with the same entry.
func (i *image) sameAs(o *image) error {
	if i.last != o.last || i.term != o.term || !i.complete || !o.complete {
		return nil
	}
	for k, c := range i.partitions {
		d := o.partitions[k]
		if d == nil || c.start != d.start || c.end != d.end || c.sum != d.sum {
			return fmt.Errorf("%s and %s both end with entry %d of term %d and differ in %v", i.server, o.server, i.last, i.term, k)
		}
	}
	if len(i.partitions) != len(o.partitions) {
		return fmt.Errorf("%s has %d partitions, %s %d", i.server, len(i.partitions), o.server, len(o.partitions))
	}
	return nil
}
