package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// A tool that is started beside a node waits for the node's leaders, and not for a topic that is not there.
func TestOffsetsWaitForLeaders(t *testing.T) {
	electing := &kadm.ShardErrors{Name: "ListOffsets", Errs: []kadm.ShardError{{Err: kerr.LeaderNotAvailable}}}
	for name, test := range map[string]struct {
		err   error // of the first two answers
		asked int
		want  error
	}{
		"whole":    {nil, 1, nil},
		"electing": {electing, 3, nil},
		"moved":    {kerr.NotLeaderForPartition, 3, nil},
		"no topic": {kerr.UnknownTopicOrPartition, 1, kerr.UnknownTopicOrPartition},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				_, err := listed(t.Context(), func() (kadm.ListedOffsets, error) {
					if asked++; asked < 3 {
						return nil, test.err
					}
					return nil, nil
				})
				if asked != test.asked || !errors.Is(err, test.want) {
					t.Errorf("asked %d times: %v", asked, err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := listed(t.Context(), func() (kadm.ListedOffsets, error) { return nil, electing })
		if took := time.Since(began); !errors.Is(err, kerr.LeaderNotAvailable) || took < offsetsPatience || took > offsetsPatience+time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := listed(ctx, func() (kadm.ListedOffsets, error) { return nil, electing }); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
