package shard

import "time"

// What is left to chance elsewhere is bounded here; each with its reason.
const (
	// DefaultHeartbeat bounds how long a shard is without a leader: with 500 ms a new one serves
	// 1.4 s after the old one died at most (300 ms: 0.8 s, but more elections on a loaded box).
	DefaultHeartbeat = 500 * time.Millisecond
	// DefaultCheckpointBytes of log are replayed at most after a crash, and kept for followers.
	DefaultCheckpointBytes = 64 << 20
	// MaxEntryBytes is the largest entry the log accepts: a produce request's part of 1 MiB plus
	// one batch of at most 10 MiB, with room.
	MaxEntryBytes = 16 << 20

	// leasePart of the heartbeat timeout is the leader's lease: 400 ms of 500. It is more than twice what lies between two heartbeats of
	// an idle group. Nothing that is answered relies on it.
	leasePart = 0.8
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

	// quietAfter without a new entry a group counts as idle, and its leader sends heartbeats together with the other idle groups', every
	// quietPart of the heartbeat timeout: 150 ms of 500. A follower misses two at least before it stands for election.
	quietAfter = 5 * time.Second
	quietPart  = 0.3
	// repeatAfter a leader says again what a follower has been told already.
	repeatAfter = time.Second

	// commitTimeout is how long a follower may not know what is committed once a shard falls idle.
	// What it costs an idle group is a look, no message: see quiet.go.
	commitTimeout = 150 * time.Millisecond
	// metadataCommitTimeout is the same for the metadata group, where commands wait until every
	// node has applied them.
	metadataCommitTimeout = 40 * time.Millisecond
)
