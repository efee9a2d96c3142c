//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// A group that has committed far more often than it has partitions leaves a short log behind, and the coordinator that reads it knows every offset.
func TestOffsetsLogIsKeptShort(t *testing.T) {
	c := startCluster(t, t.TempDir())
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	const topic, group, partitions, rounds = "many", "busy", 100, 1100
	adm := kadm.NewClient(newClient(t))
	if _, err := adm.CreateTopic(ctx, partitions, 3, nil, topic); err != nil {
		t.Fatal(err)
	}
	for n := range int64(rounds) {
		offsets := kadm.Offsets{}
		for p := range int32(partitions) {
			offsets.AddOffset(topic, p, n, -1)
		}
		if err := adm.CommitAllOffsets(ctx, group, offsets); err != nil {
			t.Fatal(err)
		}
	}
	length := func() (int64, error) {
		starts, err := adm.ListStartOffsets(ctx, "__consumer_offsets")
		if err != nil {
			return 0, err
		}
		ends, err := adm.ListEndOffsets(ctx, "__consumer_offsets")
		if err != nil {
			return 0, err
		}
		var n int64
		ends.Each(func(o kadm.ListedOffset) {
			s, _ := starts.Lookup(o.Topic, o.Partition)
			n += o.Offset - s.Offset
		})
		return n, nil
	}
	if n, err := length(); err != nil || n < partitions*rounds {
		t.Fatalf("%d records before, %v", n, err)
	}
	for end := time.Now().Add(2 * time.Minute); ; {
		n, err := length()
		if err == nil && n < 2*partitions {
			t.Logf("%d records are left", n)
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d records after two minutes, %v", n, err)
		}
		<-time.After(time.Second)
	}
	for _, name := range []string{"core-1", "core-2", "core-3"} {
		c.kill(name)
		wait(t, "offsets without "+name, func() error {
			ask, cancel := context.WithTimeout(ctx, 3*time.Second)
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
