package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/shard"
)

const (
	// movePoll is how often the leader of a target looks how far the copies are.
	movePoll = 50 * time.Millisecond
	// moveLagMax is how much of a partition may still be to copy when it is frozen: some milliseconds.
	moveLagMax = 1 << 20
	// stragglerPatience is how long a majority that has its copies waits for the other replicas: one that
	// lacks its copy when the partition is adopted is out of sync for the whole shard until it has it.
	stragglerPatience = 10 * time.Second
	// switchesAtOnce is how many partitions of a shard may be frozen at one time.
	switchesAtOnce = 8
	// switchTimeout bounds one try to get from the freeze to the switch. It is begun again where it
	// ended, until the source's leader loses patience.
	switchTimeout = 2 * time.Second
	// sealGrace is how long a sealed majority waits for the others.
	sealGrace = 150 * time.Millisecond
	// frozenMax is how long a partition may be frozen before the move is begun anew.
	frozenMax = 3 * time.Second
	// restartPause is added, for each restart, to how long a move waits before it freezes again.
	restartPause    = 5 * time.Second
	restartPauseMax = time.Minute
	// epochMargin lies between the last leader epoch in the source and the first one in the target:
	// more elections than the source can hold while the partition is frozen.
	epochMargin = 100
)

var (
	// errMissing is returned when a node lacks what a move needs of it.
	errMissing = errors.New("missing for a move")
	// errMoveOver is returned when the metadata no longer have the move.
	errMoveOver = errors.New("the move is over")
)

// moving is what a replica knows of the moves out of and into its shard.
type moving struct {
	// entries is held while an entry of a move is given to Raft, from looking at the metadata on. So
	// the order in the log is the order of the images that were looked at: an adoption that was
	// decided before a cancellation lies before the removal that follows from it.
	entries sync.Mutex

	frozenSince map[partition.FrozenPartition]time.Time // belongs to run

	status struct {
		sync.Mutex
		term   uint64
		copies map[meta.NodeID]map[stageKey]copyState // what the replicas said last
		ready  map[stageKey]time.Time                 // since when a majority has its copy
		began  map[stageKey]time.Time
		errs   map[stageKey]string
	}
}

func (r *replica) at(step string) {
	if hook := r.c.moveStep.Load(); hook != nil {
		(*hook)(step)
	}
}

// propose gives an entry of a move to Raft if the metadata, as this node knows them now, still ask for
// it, and waits until it is applied.
func (r *replica) propose(ctx context.Context, asked func(*meta.Image) bool, entry []byte) error {
	f, err := r.begun(asked, entry)
	if err != nil {
		return err
	}
	result, err := f.Wait(ctx)
	if err != nil {
		return err
	}
	if refused, ok := result.(error); ok {
		return refused
	}
	return nil
}

func (r *replica) begun(asked func(*meta.Image) bool, entry []byte) (shard.Future, error) {
	r.moving.entries.Lock()
	defer r.moving.entries.Unlock()
	if term, ok := r.group.Serving(); !ok || r.doneTerm.Load() != term {
		return nil, shard.ErrNotLeader
	}
	if !asked(r.c.Image()) {
		return nil, errMoveOver
	}
	return r.group.Propose(entry), nil
}

// freeze stops appends to a partition that is to move.
func (r *replica) freeze(ctx context.Context, q *freezeRequest) error {
	return r.propose(ctx, func(image *meta.Image) bool {
		p := image.Partition(q.Topic, q.Index)
		return p != nil && p.Shard == r.id && p.Move != nil && p.Move.ID == q.Move
	}, partition.EncodeFreeze(q.key(), q.Move))
}

// proposeDrop removes what a move has left behind. The record says so, whatever else changes.
func (r *replica) proposeDrop(x meta.Removal) shard.Future {
	r.moving.entries.Lock()
	defer r.moving.entries.Unlock()
	return r.group.Propose(partition.EncodeDrop(partition.Key{Topic: x.Topic, Index: x.Index}, x.Move))
}

// thaw looks after frozen partitions of a shard that this node leads: one whose move was called off is
// taken back into service, and a move that takes too long is begun anew. What was moved or deleted goes
// by its removal.
func (r *replica) thaw(ctx context.Context, image *meta.Image) error {
	frozen := r.set.AllFrozen()
	if len(frozen) == 0 {
		r.moving.frozenSince = nil
		return nil
	}
	since := make(map[partition.FrozenPartition]time.Time, len(frozen))
	var errs []error
	for _, f := range frozen {
		p := image.Partition(f.Key.Topic, f.Key.Index)
		if p == nil || p.Shard != r.id || image.Index() < f.Move {
			continue
		}
		if p.Move == nil || p.Move.ID != f.Move {
			errs = append(errs, r.unfreeze(ctx, f))
			continue
		}
		began, ok := r.moving.frozenSince[f]
		if !ok {
			began = time.Now()
		}
		since[f] = began
		if time.Since(began) > frozenMax {
			errs = append(errs, r.restartMove(ctx, f))
		}
	}
	r.moving.frozenSince = since
	return errors.Join(errs...)
}

func (r *replica) unfreeze(ctx context.Context, f partition.FrozenPartition) error {
	err := r.propose(ctx, func(image *meta.Image) bool {
		p := image.Partition(f.Key.Topic, f.Key.Index)
		return p != nil && p.Shard == r.id && image.Index() >= f.Move && (p.Move == nil || p.Move.ID != f.Move)
	}, partition.EncodeUnfreeze(f.Key, f.Move))
	if err != nil && !errors.Is(err, errMoveOver) {
		return fmt.Errorf("take partition %s back into service: %w", f.Key, err)
	}
	r.c.log.Info("took a partition back into service: its move was called off", "shard", r.id, "partition", f.Key, "move", f.Move)
	return nil
}

func (r *replica) restartMove(ctx context.Context, f partition.FrozenPartition) error {
	cmd := &meta.RestartMove{Topic: f.Key.Topic, Index: f.Key.Index, Move: f.Move}
	res, err := r.c.submit(ctx, &commandRequest{Command: cmdRestartMove, Restart: cmd})
	if err != nil {
		return fmt.Errorf("begin the move of partition %s anew: %w", f.Key, err)
	}
	if res.Err == nil {
		r.c.log.Warn("a move is begun anew: it did not come from the freeze to the switch in time", "shard", r.id, "partition", f.Key)
	}
	return nil
}

// runMoves brings the moves into a shard forward while this node leads it.
func (r *replica) runMoves(ctx context.Context) {
	for ctx.Err() == nil {
		group, image := r.group.Changed(), r.c.Changed()
		if !r.moves(ctx) {
			select {
			case <-group:
			case <-image:
			case <-ctx.Done():
			}
			continue
		}
		pause(ctx, movePoll)
	}
}

// moves makes one pass and tells whether there is anything to do for this node.
func (r *replica) moves(ctx context.Context) bool {
	image := r.c.Image()
	if image.MoveCount() == 0 {
		return false
	}
	moves := slices.Collect(image.MovesTo(r.id))
	term, ok := r.group.Serving()
	if len(moves) == 0 || !ok {
		return false
	}
	if r.doneTerm.Load() != term {
		return true // soon
	}
	s := image.Shard(r.id)
	r.look(ctx, term, s, moves)
	var wg sync.WaitGroup
	started := 0
	for _, m := range r.inOrder(moves) {
		if started < switchesAtOnce && r.due(s, m) {
			started++
			wg.Go(func() { r.switchOver(ctx, s, m) })
		}
	}
	wg.Wait()
	return true
}

// inOrder puts the moves that began first at the front.
func (r *replica) inOrder(moves []meta.Moving) []meta.Moving {
	slices.SortStableFunc(moves, func(a, b meta.Moving) int {
		return int(min(1, max(-1, int64(a.Partition.Move.ID)-int64(b.Partition.Move.ID))))
	})
	return moves
}

func keyOf(m meta.Moving) stageKey {
	return stageKey{partition.Key{Topic: m.Topic.ID, Index: m.Partition.Index}, m.Partition.Move.ID}
}

// look asks all replicas how far they are.
func (r *replica) look(ctx context.Context, term uint64, s *meta.Shard, moves []meta.Moving) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	answers := make([]*copiesAnswer, len(s.Voters))
	var wg sync.WaitGroup
	for i, v := range s.Voters {
		if v.Node == r.c.Self() || r.usable(v) {
			wg.Go(func() {
				if a, err := r.c.copiesOn(ctx, v.Node, &copiesRequest{Shard: r.id}); err == nil {
					answers[i] = a
				}
			})
		}
	}
	wg.Wait()
	st := &r.moving.status
	st.Lock()
	defer st.Unlock()
	if st.term != term || st.copies == nil {
		st.term, st.ready, st.began, st.errs = term, make(map[stageKey]time.Time), make(map[stageKey]time.Time), make(map[stageKey]string)
	}
	st.copies = make(map[meta.NodeID]map[stageKey]copyState)
	for i, v := range s.Voters {
		st.copies[v.Node] = make(map[stageKey]copyState)
		if answers[i] == nil {
			continue
		}
		for _, c := range answers[i].Copies {
			st.copies[v.Node][stageKey{partition.Key{Topic: c.Topic, Index: c.Index}, c.Move}] = c
		}
	}
	r.forgetLocked(moves)
	for _, m := range moves {
		r.noteReadyLocked(s, keyOf(m))
	}
}

// forgetLocked drops what is known of moves that are over.
func (r *replica) forgetLocked(moves []meta.Moving) {
	current := make(map[stageKey]bool, len(moves))
	for _, m := range moves {
		current[keyOf(m)] = true
	}
	st := &r.moving.status
	for k := range st.began {
		if !current[k] {
			delete(st.began, k)
			delete(st.ready, k)
			delete(st.errs, k)
		}
	}
}

// lagMax is how much may be left to copy when a partition is frozen. With a low throttle it is less:
// the rest is copied without.
func (r *replica) lagMax() int64 { return r.c.stages.in.Piece(moveLagMax) }

// readyLocked counts the replicas that have all but the last of a partition.
func (r *replica) readyLocked(s *meta.Shard, key stageKey) (n int, self bool) {
	for _, v := range s.Voters {
		c, ok := r.moving.status.copies[v.Node][key]
		if ok && c.Known && c.Left <= r.lagMax() {
			n++
			self = self || v.Node == r.c.Self()
		}
	}
	return n, self
}

func (r *replica) noteReadyLocked(s *meta.Shard, key stageKey) {
	st := &r.moving.status
	if _, ok := st.began[key]; !ok {
		st.began[key] = time.Now()
	}
	n, self := r.readyLocked(s, key)
	if !self || n <= len(s.Voters)/2 {
		delete(st.ready, key)
	} else if _, ok := st.ready[key]; !ok {
		st.ready[key] = time.Now()
	}
}

// due tells whether a partition can be switched over now.
func (r *replica) due(s *meta.Shard, m meta.Moving) bool {
	key := keyOf(m)
	if p, ok := r.set.Get(key.key); ok && p.Arrived() == key.move {
		return true // adopted: the switch is left
	}
	st := &r.moving.status
	st.Lock()
	defer st.Unlock()
	wait := min(time.Duration(m.Partition.Move.Restarts)*restartPause, restartPauseMax)
	ready, ok := st.ready[key]
	if !ok || time.Since(st.began[key]) < wait {
		return false
	}
	want := 0
	for _, v := range s.Voters {
		want += boolToInt(v.Node == r.c.Self() || r.usable(v))
	}
	n, _ := r.readyLocked(s, key)
	return n >= want || time.Since(ready) > stragglerPatience
}

// switchOver freezes a partition in its source, adopts it here and puts it here in the metadata. Each
// step does nothing when it was done before; where it ends, the next pass goes on.
func (r *replica) switchOver(ctx context.Context, s *meta.Shard, m meta.Moving) {
	ctx, cancel := context.WithTimeout(ctx, switchTimeout)
	defer cancel()
	begun := time.Now()
	err := r.trySwitch(ctx, s, m)
	st := &r.moving.status
	st.Lock()
	defer st.Unlock()
	key := keyOf(m)
	if err == nil {
		delete(st.errs, key)
		r.c.log.Info("moved a partition", "topic", m.Topic.Name, "partition", m.Partition.Index, "from", m.Partition.Shard, "to", r.id,
			"move", key.move, "took", time.Since(begun).Round(time.Millisecond))
		return
	}
	if errors.Is(err, errMoveOver) {
		return
	}
	st.errs[key] = err.Error()
	r.c.log.Info("a partition could not be switched over yet", "topic", m.Topic.Name, "partition", m.Partition.Index, "move", key.move, "err", err)
}

func (r *replica) trySwitch(ctx context.Context, s *meta.Shard, m meta.Moving) error {
	key := keyOf(m)
	p, ok := r.set.Get(key.key)
	if !ok || p.Arrived() != key.move {
		if err := r.adopt(ctx, s, m, key); err != nil {
			return err
		}
		if p, ok = r.set.Get(key.key); !ok || p.Arrived() != key.move {
			return errMoveOver
		}
	}
	if !r.set.Complete() {
		return fmt.Errorf("%w: node %d lacks part of what it has adopted", errMissing, r.c.Self()) // the source goes when this is finished
	}
	cmd := &meta.FinishMove{Topic: key.key.Topic, Index: key.key.Index, Move: key.move, EpochBase: p.EpochBase()}
	r.at("finish")
	res, err := r.c.submit(ctx, &commandRequest{Command: cmdFinishMove, Finish: cmd})
	r.at("finished")
	if err == nil && res.Err != nil && res.Err.Code == meta.CodeNoReassignment {
		return errMoveOver // finished by the last pass, or called off, which this node's image will tell
	}
	return oneError(res, err)
}

func (r *replica) adopt(ctx context.Context, s *meta.Shard, m meta.Moving, key stageKey) error {
	q := &freezeRequest{Shard: m.Partition.Shard, Topic: key.key.Topic, Index: key.key.Index, Move: key.move}
	r.at("freeze")
	frozen, err := r.c.freeze(ctx, q)
	if err != nil {
		return err
	}
	r.at("seal")
	if err := r.sealAll(ctx, s, key, frozen.Section); err != nil {
		return err
	}
	r.at("adopt")
	term, ok := r.group.Serving()
	if !ok {
		return shard.ErrNotLeader
	}
	entry := partition.EncodeAdopt(partition.Adopt{
		Move: key.move, Section: frozen.Section,
		EpochBase: int32(max(0, int64(frozen.LeaderEpoch)+epochMargin-int64(term))),
	})
	return r.propose(ctx, func(image *meta.Image) bool {
		p := image.Partition(key.key.Topic, key.key.Index)
		return p != nil && p.Move != nil && p.Move.ID == key.move
	}, entry)
}

// sealAll has all replicas bring their copies to the frozen state. It returns nil once this node and a
// majority have it on disk, after a moment for the others.
func (r *replica) sealAll(ctx context.Context, s *meta.Shard, key stageKey, section []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	type outcome struct {
		self bool
		err  error
	}
	outcomes := make(chan outcome, len(s.Voters))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	q := &sealRequest{Topic: key.key.Topic, Index: key.key.Index, Move: key.move, Section: section}
	for _, v := range s.Voters {
		wg.Go(func() { outcomes <- outcome{v.Node == r.c.Self(), r.c.sealOn(ctx, v.Node, q)} })
	}
	sealed, self := 0, false
	var errs []error
	var grace <-chan time.Time
	for range s.Voters {
		select {
		case o := <-outcomes:
			if o.err != nil {
				errs = append(errs, o.err)
				continue
			}
			sealed, self = sealed+1, self || o.self
		case <-grace:
			return nil
		}
		if grace == nil && self && sealed > len(s.Voters)/2 {
			grace = time.After(sealGrace)
		}
	}
	if grace == nil {
		return fmt.Errorf("copies on disk of %d of %d replicas: %w", sealed, len(s.Voters), errors.Join(errs...))
	}
	return nil
}
