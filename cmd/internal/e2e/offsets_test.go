//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// A group that has committed far more often than it has partitions leaves a short log behind, and the coordinator that reads it knows every offset.
func TestOffsetsLogIsKeptShort(t *testing.T) {
	c := startCluster(t, t.TempDir())
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	const topic, group, partitions, rounds = "many", "busy", 100, 1100
	adm := kadm.NewClient(newClient(t))
	createTopic(t, adm, partitions, topic)
	for n := range int64(rounds) {
		offsets := kadm.Offsets{}
		for p := range int32(partitions) {
			offsets.AddOffset(topic, p, n, -1)
		}
		wait(t, "the offsets are committed", func() error { return adm.CommitAllOffsets(ctx, group, offsets) })
	}
	// written counts every record that there ever was; left those that are still there.
	length := func() (written, left int64, err error) {
		starts, err := adm.ListStartOffsets(ctx, "__consumer_offsets")
		if err = errors.Join(err, starts.Error()); err != nil {
			return 0, 0, err
		}
		ends, err := adm.ListEndOffsets(ctx, "__consumer_offsets")
		if err = errors.Join(err, ends.Error()); err != nil {
			return 0, 0, err
		}
		ends.Each(func(o kadm.ListedOffset) {
			s, _ := starts.Lookup(o.Topic, o.Partition)
			written, left = written+o.Offset, left+o.Offset-s.Offset
		})
		return written, left, nil
	}
	wait(t, "the log is short", func() error {
		written, left, err := length()
		switch {
		case err != nil:
			return err
		case written < partitions*rounds:
			return fmt.Errorf("%d records were ever written", written)
		case left >= 2*partitions:
			return fmt.Errorf("%d records are left", left)
		}
		t.Logf("%d records are left of %d", left, written)
		return nil
	})
	for _, name := range []string{"core-1", "core-2", "core-3"} {
		c.kill(name)
		wait(t, "offsets without "+name, func() error {
			ask, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			got, err := kadm.NewClient(newClient(t)).FetchOffsets(ask, group)
			if err != nil {
				return err
			}
			for p := range int32(partitions) {
				if o, ok := got.Lookup(topic, p); !ok || o.Err != nil || o.At != rounds-1 {
					return fmt.Errorf("partition %d: %+v", p, o)
				}
			}
			return nil
		})
		c.restart(name)
		c.ready(name)
	}
}
