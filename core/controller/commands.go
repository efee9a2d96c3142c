package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/core/meta"
)

const (
	// commandTimeout bounds a command whose caller sets no deadline: Kafka's clients give up after
	// 30 s.
	commandTimeout = 30 * time.Second
	// attemptTimeout bounds one try with one leader, which waits until the other nodes follow. A
	// leader that hangs is given up after it, and the next one knows the command by its id.
	attemptTimeout = 12 * time.Second
	// retryWait separates tries while the metadata group elects a leader.
	retryWait = 50 * time.Millisecond
)

// command numbers the requests that nodes send to the metadata leader.
type command uint8

const (
	cmdCreateTopics command = iota + 1
	cmdDeleteTopics
	cmdCreatePartitions
	cmdAlterConfigs
	cmdAllocateProducerIDs
	cmdRegister
	cmdReport
	cmdConfirmRemovals
	cmdFence
)

// commandRequest is one command on its way to the metadata leader. It keeps its id in all tries.
type commandRequest struct {
	ID      meta.RequestID `cbor:"1,keyasint"`
	Command command        `cbor:"2,keyasint"`

	Create     *createTopicsRequest      `cbor:"3,keyasint,omitempty"`
	Delete     *meta.DeleteTopics        `cbor:"4,keyasint,omitempty"`
	Partitions *createPartitionsRequest  `cbor:"5,keyasint,omitempty"`
	Configs    []meta.ConfigChange       `cbor:"6,keyasint,omitempty"`
	Producers  *meta.AllocateProducerIDs `cbor:"7,keyasint,omitempty"`
	Register   *meta.RegisterNode        `cbor:"8,keyasint,omitempty"`
	Report     *meta.ReportShard         `cbor:"9,keyasint,omitempty"`
	Confirm    *meta.ConfirmRemovals     `cbor:"10,keyasint,omitempty"`
	Fence      *meta.FenceNode           `cbor:"11,keyasint,omitempty"`

	Reassign *reassignRequest  `cbor:"40,keyasint,omitempty"`
	Restart  *meta.RestartMove `cbor:"41,keyasint,omitempty"`
	Finish   *meta.FinishMove  `cbor:"42,keyasint,omitempty"`

	Drain   *meta.DrainNode              `cbor:"20,keyasint,omitempty"`
	Move    *moveRequest                 `cbor:"21,keyasint,omitempty"`
	Remove  *removeRequest               `cbor:"22,keyasint,omitempty"`
	Removed *meta.ReplicasRemoved        `cbor:"23,keyasint,omitempty"`
	Deleted *meta.ConfirmReplicaRemovals `cbor:"24,keyasint,omitempty"`
	Recover *recoverRequest              `cbor:"25,keyasint,omitempty"`
}

type createTopicsRequest struct {
	Topics       []meta.NewTopic `cbor:"1,keyasint"`
	ValidateOnly bool            `cbor:"2,keyasint,omitempty"`
}

type createPartitionsRequest struct {
	Name         string          `cbor:"1,keyasint"`
	Count        int32           `cbor:"2,keyasint"`
	Assignments  [][]meta.NodeID `cbor:"3,keyasint,omitempty"`
	ValidateOnly bool            `cbor:"4,keyasint,omitempty"`
}

// asError turns any error into the Error that a Kafka client can be told.
func asError(err error) *meta.Error {
	var e *meta.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errNotLeader):
		return meta.Errorf(meta.CodeRequestTimedOut, "The metadata leader did not answer in time: %s", err)
	}
	return meta.Errorf(meta.CodeUnknownServerError, "%s", err)
}

// CreateTopics creates topics, each for itself, and answers when every live node knows them and
// their leaders serve them. The results are in the order of the request; their Err is nil for what
// was created, or would be with validateOnly.
func (c *Controller) CreateTopics(ctx context.Context, topics []meta.NewTopic, validateOnly bool) []meta.TopicResult {
	r := &commandRequest{Command: cmdCreateTopics, Create: &createTopicsRequest{Topics: topics, ValidateOnly: validateOnly}}
	res, err := c.submit(ctx, r)
	byName := make(map[string]meta.TopicResult, len(res.Topics))
	for _, t := range res.Topics {
		byName[t.Name] = t
	}
	out := make([]meta.TopicResult, len(topics))
	for i := range topics {
		t, ok := byName[topics[i].Name]
		if !ok {
			t = meta.TopicResult{Name: topics[i].Name, Partitions: topics[i].Partitions, ReplicationFactor: topics[i].ReplicationFactor}
			t.Err = asError(err)
		}
		if t.Err == nil && !ok {
			t.Err = meta.Errorf(meta.CodeUnknownServerError, "The metadata leader gave no answer for this topic.")
		}
		out[i] = t
	}
	return out
}

// DeleteTopics deletes topics by id and answers when no live node serves them any more. The errors
// are *meta.Error, nil for what was deleted.
func (c *Controller) DeleteTopics(ctx context.Context, ids []meta.TopicID) []error {
	res, err := c.submit(ctx, &commandRequest{Command: cmdDeleteTopics, Delete: &meta.DeleteTopics{IDs: ids}})
	return perItem(len(ids), res.Errors, err)
}

// perItem spreads the answers over the items of a request; an error of the whole is everybody's.
func perItem(n int, errs []*meta.Error, err error) []error {
	out := make([]error, n)
	for i := range out {
		switch {
		case err != nil:
			out[i] = asError(err)
		case i >= len(errs):
			out[i] = meta.Errorf(meta.CodeUnknownServerError, "The metadata leader gave no answer for this item.")
		case errs[i] != nil:
			out[i] = errs[i]
		}
	}
	return out
}

// CreatePartitions adds partitions to a topic until it has count. Assignments are nil, or the
// replicas of each new partition. The error is a *meta.Error.
func (c *Controller) CreatePartitions(ctx context.Context, name string, count int32, assignments [][]meta.NodeID, validateOnly bool) error {
	r := &createPartitionsRequest{Name: name, Count: count, Assignments: assignments, ValidateOnly: validateOnly}
	res, err := c.submit(ctx, &commandRequest{Command: cmdCreatePartitions, Partitions: r})
	return oneError(res, err)
}

// oneError avoids the nil *meta.Error in a non-nil error.
func oneError(res meta.Result, err error) error {
	if err != nil {
		return asError(err)
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}

// AlterConfigs changes dynamic settings, each change for itself. The errors are *meta.Error, nil
// for what was changed.
func (c *Controller) AlterConfigs(ctx context.Context, changes []meta.ConfigChange) []error {
	res, err := c.submit(ctx, &commandRequest{Command: cmdAlterConfigs, Configs: changes})
	return perItem(len(changes), res.Errors, err)
}

// AllocateProducerIDs returns the first of count producer ids that nobody else gets.
func (c *Controller) AllocateProducerIDs(ctx context.Context, count int) (first int64, err error) {
	res, err := c.submit(ctx, &commandRequest{Command: cmdAllocateProducerIDs, Producers: &meta.AllocateProducerIDs{Count: int64(count)}})
	if err := oneError(res, err); err != nil {
		return 0, err
	}
	return res.First, nil
}

// submit brings a command to the metadata leader, whoever that is by then, and returns its answer.
func (c *Controller) submit(ctx context.Context, r *commandRequest) (meta.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	r.ID = randomBytes[meta.RequestID]()
	c.metrics.commands.Inc()
	for {
		res, err := c.attempt(ctx, r)
		if err == nil {
			return res, nil
		}
		if ctx.Err() != nil {
			c.metrics.commandErrors.Inc()
			return meta.Result{}, fmt.Errorf("reach the metadata leader: %w", err)
		}
		c.metrics.retries.Inc()
		if err := c.waitLeader(ctx); err != nil {
			c.metrics.commandErrors.Inc()
			return meta.Result{}, err
		}
	}
}

// waitLeader waits a moment, or until the metadata group changes.
func (c *Controller) waitLeader(ctx context.Context) error {
	t := time.NewTimer(retryWait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("reach the metadata leader: %w", ctx.Err())
	}
}

func (c *Controller) attempt(ctx context.Context, r *commandRequest) (meta.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	leader, ok := c.Leader()
	switch {
	case !ok:
		return meta.Result{}, errNotLeader
	case leader == c.Self():
		return c.lead.execute(ctx, r)
	}
	var res meta.Result
	err := c.pool.command(ctx, leader, r, &res)
	return res, err
}

// catchUp waits until this node's image holds everything that was committed before the call: the
// metadata leader is asked, after it has confirmed that it leads, how far it is.
func (c *Controller) catchUp(ctx context.Context) error {
	index, err := c.readIndex(ctx)
	if err != nil {
		return err
	}
	return c.waitIndex(ctx, index)
}

func (c *Controller) readIndex(ctx context.Context) (uint64, error) {
	leader, ok := c.Leader()
	switch {
	case !ok:
		return 0, errNotLeader
	case leader == c.Self():
		return c.lead.readIndex(ctx)
	}
	var index uint64
	err := c.pool.call(ctx, leader, opIndex, nil, &index)
	return index, err
}

func (c *Controller) waitIndex(ctx context.Context, index uint64) error {
	for {
		changed := c.Changed()
		if c.Image().Index() >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for metadata index %d: %w", index, ctx.Err())
		}
	}
}
