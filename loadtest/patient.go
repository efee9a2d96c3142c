package loadtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// patienceMax bounds the questions that a load asks before it begins: a node answers its health check before every partition has a leader, leaders
	// may just be changing, and a node that is slow may be taken for dead for a moment. Elections take a second or two.
	patienceMax = 15 * time.Second
	// patienceStep lies between two questions.
	patienceStep = 250 * time.Millisecond
)

// patiently asks again while the answer is one that Kafka calls retriable, or one that a cluster gives while it lacks a node for a moment. The error
// says what was asked, and how long.
func patiently(ctx context.Context, what string, ask func() error) error {
	began := time.Now()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if !passes(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if time.Since(began) >= patienceMax {
			return fmt.Errorf("%s: still after %v: %w", what, patienceMax, err)
		}
		if stopped := sleep(ctx, patienceStep); stopped != nil {
			return fmt.Errorf("%s: %w, the last answer was: %w", what, stopped, err)
		}
	}
}

func passes(err error) bool {
	return kerr.IsRetriable(err) || errors.Is(err, kerr.InvalidReplicationFactor)
}

// created makes a topic. One that is there already is as good: an earlier try may have been carried out, though its answer did not say so.
func created(ctx context.Context, c *kgo.Client, partitions int32, factor int16, configs map[string]*string, topic string) error {
	return patiently(ctx, "create topic "+topic, func() error {
		_, err := kadm.NewClient(c).CreateTopic(ctx, partitions, factor, configs, topic)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return nil
		}
		return err
	})
}

// bounds are the first and the next offsets of a topic's partitions.
func bounds(ctx context.Context, c *kgo.Client, topic string) (starts, ends kadm.ListedOffsets, err error) {
	adm := kadm.NewClient(c)
	err = patiently(ctx, "list offsets of "+topic, func() error {
		var startsErr, endsErr error
		if starts, startsErr = adm.ListStartOffsets(ctx, topic); startsErr == nil {
			ends, endsErr = adm.ListEndOffsets(ctx, topic)
		}
		return errors.Join(startsErr, endsErr, starts.Error(), ends.Error())
	})
	return starts, ends, err
}
