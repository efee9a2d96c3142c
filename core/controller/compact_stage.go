package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

const (
	// stageAppliedWait is how long a replica may take to apply what its leader had when it compacted.
	stageAppliedWait = 5 * time.Second
	// stageBytesPerSecondMin is what staging is expected to do at least, and stageTimeoutMin what it may take however little there is: then the leader
	// goes on without the replica.
	stageBytesPerSecondMin = 4 << 20
	stageTimeoutMin        = 30 * time.Second
	stagePoll              = 500 * time.Millisecond
	// stageSlice is how long a replica waits before it answers that it is not done yet.
	stageSlice = 3 * time.Second
	// stageJobsMax are asked for and not begun yet: a leader asks for one at a time, and a node has few leaders.
	stageJobsMax = 16
)

// opCompactStage asks a replica to get the segments that its leader has rewritten.
const opCompactStage op = 80

type stageRequest struct {
	Shard    meta.ShardID            `cbor:"1,keyasint"`
	Topic    meta.TopicID            `cbor:"2,keyasint"`
	Index    int32                   `cbor:"3,keyasint"`
	Leader   meta.NodeID             `cbor:"4,keyasint"`
	Applied  uint64                  `cbor:"5,keyasint"` // by the leader when it began
	Segments []commitlog.SegmentInfo `cbor:"6,keyasint,omitempty"`
}

type stageAnswer struct {
	Done bool `cbor:"1,keyasint,omitempty"`
}

// stageJob is what a replica does for such a request, however often it is asked.
type stageJob struct {
	q    *stageRequest
	done chan struct{}
	err  error // once done
}

// stage has the other voters get what was rewritten. It returns nil once this node and a majority have it on disk, and the others are not in sync or have failed.
func (k *compactor) stage(ctx context.Context, c *candidate, applied uint64, segments []commitlog.SegmentInfo) error {
	if len(segments) == 0 {
		return nil
	}
	q := &stageRequest{Shard: c.r.id, Topic: c.key.Topic, Index: c.key.Index, Leader: k.c.Self(), Applied: applied, Segments: segments}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		errs   []error
		voters = 1
		have   = 1
	)
	for _, x := range c.r.group.Replicas() {
		if !x.Voter || x.Server.Node == k.c.Self() {
			continue
		}
		voters++
		wg.Go(func() {
			err := k.stageOn(ctx, c, x.Server, q)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("node %d: %w", x.Server.Node, err))
				return
			}
			have++
		})
	}
	wg.Wait()
	if have <= voters/2 {
		return fmt.Errorf("rewritten segments on disk of %d of %d replicas: %w", have, voters, errors.Join(errs...))
	}
	if len(errs) > 0 {
		k.skipped.Add(len(errs))
		k.c.log.Info("a replica will fetch rewritten segments later", "topic", c.topic, "partition", c.key.Index, "err", errors.Join(errs...))
	}
	return nil
}

// stageOn waits for one replica while it is in sync.
func (k *compactor) stageOn(ctx context.Context, c *candidate, to meta.Server, q *stageRequest) error {
	ctx, cancel := context.WithTimeout(ctx, q.timeout())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			pause(ctx, stagePoll)
			if term, ok := c.r.group.Serving(); !ok || term != c.term || !inSync(c.r.group, to) {
				cancel()
			}
		}
	}()
	if !inSync(c.r.group, to) {
		return errMissing
	}
	for {
		var a stageAnswer
		call, end := context.WithTimeout(ctx, stageSlice+pingTimeout)
		err := k.c.pool.call(call, to.Node, opCompactStage, q, &a)
		end()
		if err != nil || a.Done {
			return err
		}
	}
}

func (q *stageRequest) bytes() (n int64) {
	for _, seg := range q.Segments {
		n += seg.Bytes
	}
	return n
}

// timeout is how long staging may take.
func (q *stageRequest) timeout() time.Duration {
	return stageTimeoutMin + time.Duration(q.bytes()/stageBytesPerSecondMin)*time.Second
}

func (q *stageRequest) key() partition.Key { return partition.Key{Topic: q.Topic, Index: q.Index} }

func (q *stageRequest) same(o *stageRequest) bool {
	return q.Shard == o.Shard && q.Leader == o.Leader && q.Applied == o.Applied && slices.Equal(q.Segments, o.Segments)
}

func inSync(g *shard.Group, s meta.Server) bool {
	for _, x := range g.Replicas() {
		if x.Server == s {
			return x.InSync
		}
	}
	return false
}

// serveStage answers whether this node has what the leader of a shard has rewritten, and begins to get it.
func (k *compactor) serveStage(ctx context.Context, q *stageRequest) (*stageAnswer, error) {
	k.mu.Lock()
	job := k.mu.jobs[q.key()]
	if job == nil || !job.q.same(q) && job.ended() {
		job = &stageJob{q: q, done: make(chan struct{})}
		select {
		case k.asked <- job:
			k.mu.jobs[q.key()] = job
		default:
			k.mu.Unlock()
			return nil, fmt.Errorf("%w: node %d has too much to stage", errMissing, k.c.Self())
		}
	}
	k.mu.Unlock()
	slice := time.NewTimer(stageSlice)
	defer slice.Stop()
	select {
	case <-job.done:
	case <-slice.C:
	case <-ctx.Done():
	}
	switch {
	case !job.ended() || !job.q.same(q):
		return &stageAnswer{}, nil
	case job.err != nil:
		k.forget(job)
		return nil, job.err
	}
	return &stageAnswer{Done: true}, nil
}

func (j *stageJob) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// forget lets a job that has failed be begun anew.
func (k *compactor) forget(j *stageJob) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.jobs[j.q.key()] == j {
		delete(k.mu.jobs, j.q.key())
	}
}

// runJobs stages what is asked for.
func (k *compactor) runJobs(ctx context.Context, jobs *sync.WaitGroup) {
	for {
		select {
		case j := <-k.asked:
			jobs.Go(func() {
				defer close(j.done)
				ctx, cancel := context.WithTimeout(ctx, j.q.timeout())
				defer cancel()
				j.err = k.getStaged(ctx, j.q)
			})
		case <-ctx.Done():
			return
		}
	}
}

func (k *compactor) getStaged(ctx context.Context, q *stageRequest) error {
	r := k.c.replica(q.Shard)
	if r == nil {
		return fmt.Errorf("%w: shard %d is not on node %d", errMissing, q.Shard, k.c.Self())
	}
	for until := time.Now().Add(stageAppliedWait); r.group.AppliedIndex() < q.Applied; pause(ctx, 5*time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(until) {
			return fmt.Errorf("%w: node %d has not applied entry %d", errMissing, k.c.Self(), q.Applied)
		}
	}
	if err := errors.Join(listed(ctx, r, q.key()), k.room(q.bytes())); err != nil {
		return err
	}
	ctx, stop := k.whileRoom(ctx)
	defer stop()
	leader := partition.Peer{
		Name: fmt.Sprintf("node %d", q.Leader),
		Dial: func(ctx context.Context) (net.Conn, error) { return k.c.node.Dial(ctx, q.Leader, kindMoves) },
	}
	return r.set.StageCompacted(ctx, leader, partition.StageRequest{
		Key: q.key(), Segments: q.Segments, Throttle: k.c.stages.in,
	})
}
