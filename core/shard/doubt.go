package shard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/core/vfs"
)

const (
	// doubtFor is how long after the start of its node a replica whose log may be shorter than what it has acknowledged abstains from
	// elections: as long as an election by the others takes (1.4 s with DefaultHeartbeat). It ends by time because they may all have lost their
	// power at once.
	doubtFor = 1500 * time.Millisecond
	// doubtSpread keeps replicas whose doubt ends at the same time from standing for election at the same time.
	doubtSpread = 200 * time.Millisecond
	// doubtPoll is how often a candidate looks whether its doubt is over.
	doubtPoll = 10 * time.Millisecond
	// doubtVoters is the smallest group in which an abstention protects anything: of less, a majority is everybody, the honest ones too.
	doubtVoters = 3

	bootSuffix = ".boot"
)

// errDoubtful is why a replica takes no part in an election.
var errDoubtful = errors.New("replica may have forgotten what it acknowledged, and has not caught up with a leader yet")

// doubt is about a replica that was started after the memory of its machine was lost. If its disk has lied about syncs it has
// forgotten what it acknowledged and for whom it voted. It must not help to elect a leader who lacks what it has forgotten, before
// those who remember had the time to elect one (see "Disks that lie" in DESIGN.md).
type doubt struct {
	over  atomic.Bool
	since time.Time     // the node's start; zero: there never was any doubt
	late  time.Duration // how much later it stands for election itself
	kept  bool          // the boot is written down; belongs to the watcher
	mu    struct {
		sync.Mutex
		asked time.Time // when somebody asked for a vote the last time
		early bool      // somebody did so in the first half of the doubt
		told  commit    // an entry of a leader's own term that it has, with all that it knows to be committed before
	}
}

// beginInDoubt decides whether there is reason to doubt. What was founded in this process, or has never heard of a term, has nothing to
// forget.
func (g *Group) beginInDoubt() error {
	g.doubt.over.Store(true)
	info := g.log.Info()
	if info.Term == 0 && info.Last == 0 || g.node.hasFounded(g.id) || time.Since(g.node.started) >= g.node.o.doubtFor {
		return nil
	}
	var err error
	if g.doubt.kept, err = g.knowsBoot(); err != nil || g.doubt.kept {
		return err
	}
	g.doubt.since, g.doubt.late = g.node.started, rand.N(doubtSpread)
	g.doubt.over.Store(false)
	return nil
}

// doubtful tells whether this replica takes no part in elections.
func (g *Group) doubtful() bool {
	d := &g.doubt
	if d.over.Load() || g.voters() < doubtVoters {
		return false
	}
	d.mu.Lock()
	told, asked, early := d.mu.told, d.mu.asked, d.mu.early
	d.mu.Unlock()
	now := time.Now()
	lasts := g.node.o.doubtFor
	if early && now.Sub(asked) < 2*g.heartbeat {
		lasts *= 2
	}
	switch {
	case g.holds(told):
		g.slog.Info("caught up after an unclean start")
	case now.Sub(d.since) >= lasts:
		g.slog.Info("no leader was heard after an unclean start, taking part in elections")
	default:
		return true
	}
	d.over.Store(true)
	return false
}

// abstains is doubtful, asked on behalf of a candidate. One that asks has no doubt itself. If it asks early it has not lost its power at
// the same time as this one, and the doubt may last twice as long while it goes on asking: an election that may succeed without this replica. After a power
// cut of all the first ones whose doubt has ended ask the others late.
func (g *Group) abstains() bool {
	if !g.doubtful() {
		return false
	}
	d := &g.doubt
	d.mu.Lock()
	d.mu.asked = time.Now()
	d.mu.early = d.mu.early || d.mu.asked.Sub(d.since) < g.node.o.doubtFor/2
	d.mu.Unlock()
	return true
}

func (g *Group) voters() (n int) {
	for _, s := range g.raft().GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// proof is the entry whose presence shows that a replica has caught up with the leader that sends a request; index 0 where there is
// none. A replica that has an entry of the leader's own term has everything that was committed before that term; when that entry is
// not below the leader's commit index, it has what was committed since.
func proof(a *raft.AppendEntriesRequest) commit {
	last, term := a.PrevLogEntry, a.PrevLogTerm
	if n := len(a.Entries); n > 0 {
		last, term = a.Entries[n-1].Index, a.Entries[n-1].Term
	}
	if term != a.Term || last < a.LeaderCommitIndex {
		return commit{}
	}
	return commit{term: term, index: last}
}

// hearsLeader notes what a leader sends, as it was sent.
func (g *Group) hearsLeader(a *raft.AppendEntriesRequest) {
	d := &g.doubt
	if d.over.Load() || a.Term < g.term() { // it was deposed, and may lack what its successor has committed
		return
	}
	told := proof(a)
	d.mu.Lock()
	// The first of a term is kept: it will be there sooner than the later ones.
	if told.index > 0 && told.term != d.mu.told.term {
		d.mu.told = told
	}
	d.mu.Unlock()
	g.doubtful()
}

// holds tells whether the log has an entry, or had it until a checkpoint took its place.
func (g *Group) holds(c commit) bool {
	if c.index == 0 {
		return false
	}
	var l raft.Log
	_, err := g.log.GetHead(c.index, &l)
	if errors.Is(err, raft.ErrLogNotFound) {
		index, _ := g.points.current()
		return c.index <= index
	}
	return err == nil && l.Term == c.term
}

// mayStand tells whether this replica may stand for election.
func (g *Group) mayStand() bool {
	if g.doubt.since.IsZero() || g.voters() < doubtVoters {
		return true
	}
	return !g.doubtful() && time.Since(g.doubt.since) >= g.node.o.doubtFor+g.doubt.late
}

// awaitCertainty lets a candidate wait for the end of its doubt, no longer than its candidature lasts. It returns errDoubtful when
// there is doubt still, and when there is a leader now.
func (g *Group) awaitCertainty() error {
	if g.mayStand() {
		return nil
	}
	ctx, cancel := context.WithTimeout(g.ctx, 2*g.heartbeat)
	defer cancel()
	for !g.mayStand() {
		pause(ctx, doubtPoll)
		if ctx.Err() != nil {
			return errDoubtful
		}
	}
	if _, _, known := g.Leader(); known {
		return errDoubtful
	}
	return nil
}

// knowsBoot tells whether the machine has had its power ever since this replica took part in elections.
func (g *Group) knowsBoot() (bool, error) {
	boot := vfs.Boot(g.node.o.FS)
	raw, err := vfs.ReadFile(g.node.o.FS, g.bootFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read boot of shard %d: %w", g.id, err)
	}
	return boot != "" && strings.TrimSuffix(string(raw), "\n") == boot, nil
}

func (g *Group) bootFile() string { return g.node.dir(g.id) + bootSuffix }

// keepBoot writes down that the replica has no doubt in this boot of the machine. Earlier would be wrong: a process that is killed
// in doubt is started in doubt.
func (g *Group) keepBoot() {
	if g.doubt.kept || !g.doubt.over.Load() || g.log.Info().Term == 0 {
		return
	}
	boot := vfs.Boot(g.node.o.FS)
	if boot == "" {
		return
	}
	err := vfs.WriteFile(g.node.o.FS, g.bootFile(), []byte(boot+"\n"))
	g.doubt.kept = err == nil // otherwise it is tried again at the next look
}
