package partition

import (
	"errors"

	"sluice/core/commitlog"
)

var (
	// ErrOutOfRange is returned when an offset outside of the log is read, or the
	// log is asked to start above its end.
	ErrOutOfRange = commitlog.ErrOutOfRange
	// ErrMissing is returned when a segment is read that this replica has yet to
	// fetch from a peer: the offset is valid, but not available here.
	ErrMissing = commitlog.ErrMissing
)

var (
	// ErrUnknownPartition is returned when an entry or a peer names a partition
	// that this shard does not hold (not yet created, or deleted).
	ErrUnknownPartition = errors.New("unknown partition")
	// ErrDeleted is returned when a create entry names a partition that this shard
	// had and deleted: a key is never used again.
	ErrDeleted = errors.New("partition was deleted")
	// ErrFrozen is returned for an append to a partition that is being handed to another shard: the
	// same batch will be accepted there, or here again when the move is called off.
	ErrFrozen = errors.New("partition is frozen for a move")
	// ErrNotFrozen is returned when the state of a frozen partition is asked for and it is not.
	ErrNotFrozen = errors.New("partition is not frozen for that move")
	// ErrConflict is returned when a partition is to be adopted whose earlier life in the shard has
	// not been removed yet.
	ErrConflict = errors.New("an earlier life of the partition is still here")
	// ErrChanged is returned for a swap of segments that the partition does not have any more, or not in the state they were rewritten in.
	ErrChanged = errors.New("partition has changed since it was compacted")
	// ErrOutOfOrderSequence is returned when a producer's batch does not follow
	// its last one, or does not begin a new epoch with sequence 0.
	ErrOutOfOrderSequence = errors.New("out of order sequence")
	// ErrInvalidProducerEpoch is returned when a batch carries an older epoch
	// than one its producer has already used in the partition.
	ErrInvalidProducerEpoch = errors.New("invalid producer epoch")
	// ErrDuplicateSequence is returned when a batch is certainly stored already,
	// but so long ago that its offset is no longer remembered.
	ErrDuplicateSequence = errors.New("duplicate sequence")
	// ErrInvalidTxnState is returned when a producer mixes plain batches into its
	// open transaction, or the partition holds too many open transactions.
	ErrInvalidTxnState = errors.New("invalid transaction state")
	// ErrInvalidBatch is returned when an entry holds bytes that are not whole
	// batches that can be appended.
	ErrInvalidBatch = errors.New("invalid batch")
	// ErrInvalidEntry is returned when an entry cannot be decoded. It changes
	// nothing.
	ErrInvalidEntry = errors.New("invalid entry")
	// ErrVersion is returned when an entry, a manifest or a peer's frame was
	// written by a newer release.
	ErrVersion = errors.New("version is newer than this release understands")
	// ErrCorruptManifest is returned when a checkpoint's manifest fails its
	// checksum or ends early.
	ErrCorruptManifest = errors.New("corrupt manifest")
	// ErrRemoved is returned when a partition is read after its deletion.
	ErrRemoved = errors.New("partition removed")
	// ErrStopped is returned for every entry of a set whose storage has failed.
	// The entry is committed; whether it is applied here is unknown to the caller.
	ErrStopped = errors.New("partition set stopped after a storage failure")
	// ErrClosed is returned when a closed set is used.
	ErrClosed = errors.New("partition set closed")
	// ErrProtocol is returned when a peer breaks the segments protocol.
	ErrProtocol = errors.New("segments protocol broken")
	// ErrPeer is returned when a peer cannot serve the segment asked for.
	ErrPeer = errors.New("peer cannot serve the segment")
)
