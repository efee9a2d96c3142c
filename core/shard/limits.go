package shard

import "time"

// What is left to chance elsewhere is bounded here; each with its reason.
const (
	// DefaultHeartbeat bounds how long a shard is without a leader: with 500 ms a new one serves
	// 1.4 s after the old one died at most (300 ms: 0.8 s, but more elections on a loaded box).
	DefaultHeartbeat = 500 * time.Millisecond
	// DefaultCheckpointBytes of log are replayed at most after a crash, and kept for followers.
	DefaultCheckpointBytes = 64 << 20
	// MaxEntryBytes is the largest entry the log accepts: a produce request's part of 4 MiB plus
	// one batch of at most 10 MiB, with room.
	MaxEntryBytes = 16 << 20

	// leaseBeats is the leader's lease in intervals of the heartbeats of idle groups: 399 ms of a heartbeat timeout of 500. The library looks when the
	// lease after an answer has passed, which is then, within a millisecond, when the next answers come and the process is awake.
	// Nothing that is answered relies on it.
	leaseBeats = 3
	// maxAppendEntries is the number of entries of one AppendEntries and of one group commit.
	maxAppendEntries = 128
	// maxAppendBytes cuts a request before it is sent: 128 entries of 16 MiB would be 2 GiB.
	maxAppendBytes = 8 << 20
	// maxUnappliedBytes of committed entries may wait for the state machine of a follower; beyond
	// it stops reading from the leader. They may all be in memory, in every group of the node.
	maxUnappliedBytes = 32 << 20
	// maxRPCsInFlight is the depth of a replication pipeline: 2 (the default) halves throughput of
	// small entries, more than 16 gains little.
	maxRPCsInFlight = 16
	// maxPooledConns per peer and transport: heartbeats, appends and votes rarely overlap more.
	maxPooledConns = 3
	// maxInFlightBytes of proposals may wait for their commit in one group, and what a leader can have
	// written that is never committed: several times what the fastest disk takes within a commit.
	// How much of it is used is decided by how long commits take (see admission).
	maxInFlightBytes = 16 << 20
	// ReplicaInFlightBytes is the most that a replica still writes after its leader has taken the last proposal: all that may be in
	// flight, once in the log and once where it is applied, and the log's next file.
	ReplicaInFlightBytes = 2*maxInFlightBytes + 32<<20
	// maxInFlightEntries bounds the futures that wait in one group.
	maxInFlightEntries = 8192
	// maxCheckpointBytes is what a follower accepts as a checkpoint: it names segments, a few
	// hundred bytes per partition, and holds no records.
	maxCheckpointBytes = 1 << 30
	// maxPrefaceConns may be connected without having said who they are.
	maxPrefaceConns = 256

	// bulkTimeout is the deadline of one AppendEntries with entries: it contains a follower's sync.
	bulkTimeout = 10 * time.Second
	// quickTimeout is the deadline of votes, heartbeats and TimeoutNow.
	quickTimeout = time.Second
	// userTimeout closes a socket whose peer does not acknowledge for so long.
	userTimeout = 2 * time.Second
	// prefaceTimeout is the time a dialled connection has to say who it is.
	prefaceTimeout = 2 * time.Second
	// verifyInterval separates two leadership checks, each shared by all that wait.
	verifyInterval = 2 * time.Millisecond
	// appliedPoll is how often a check looks whether what it has to show is applied, which is the
	// case at once unless the state machine is behind.
	appliedPoll = time.Millisecond
	// inSyncWindow is how long a member stays in sync without having been seen caught up.
	inSyncWindow = time.Second
	// electPoll is how often the preferred leader of a new shard looks for the other replicas.
	electPoll = 10 * time.Millisecond
	// stopTimeout bounds each step of a clean stop; what is not done then is done after the start.
	stopTimeout = 5 * time.Second
	// trailingFactor times the checkpoint interval is kept of the log at most while a member is
	// behind; after that it gets the checkpoint.
	trailingFactor = 4

	// quietAfter without a new entry a group counts as idle, and its leader sends heartbeats together with the other idle groups', at each
	// moment of its node.
	quietAfter = 5 * time.Second
	// Moment lies between two of those, where the heartbeat timeout is DefaultHeartbeat; with another one it is the same part of that. A follower
	// misses three heartbeats at least before it stands for election. What else is done regularly in a node is done at whole multiples of it.
	Moment = 133 * time.Millisecond
	// repeatAfter a leader says again what a follower has been told already.
	repeatAfter = time.Second
	// restMost times in a row it does so without the library, which sees only then that the follower has refused it.
	restMost = 4

	// commitTimeout is how long a follower may not know what is committed once a shard falls idle.
	// What it costs an idle group is a look, no message: see quiet.go.
	commitTimeout = 150 * time.Millisecond
	// metadataCommitTimeout is the same for the metadata group, where commands wait until every
	// node has applied them.
	metadataCommitTimeout = 40 * time.Millisecond
)

// momentFor is Moment for another heartbeat timeout.
func momentFor(heartbeat time.Duration) time.Duration {
	return heartbeat / time.Millisecond * Moment / (DefaultHeartbeat / time.Millisecond)
}
