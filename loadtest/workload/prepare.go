package workload

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

func (s *Set) prepare(_ context.Context, _ *kgo.Client) error { return nil }
