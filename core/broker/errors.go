package broker

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"

	"sluice/core/commitlog"
	"sluice/core/meta"
	"sluice/core/partition"
	"sluice/core/record"
	"sluice/core/shard"
)

// Kafka's error codes that this package answers with.
var (
	codeNone                     = int16(0)
	codeUnknownServerError       = kerr.UnknownServerError.Code
	codeOffsetOutOfRange         = kerr.OffsetOutOfRange.Code
	codeCorruptMessage           = kerr.CorruptMessage.Code
	codeUnknownTopicOrPartition  = kerr.UnknownTopicOrPartition.Code
	codeLeaderNotAvailable       = kerr.LeaderNotAvailable.Code
	codeNotLeaderOrFollower      = kerr.NotLeaderForPartition.Code
	codeRequestTimedOut          = kerr.RequestTimedOut.Code
	codeMessageTooLarge          = kerr.MessageTooLarge.Code
	codeInvalidTopic             = kerr.InvalidTopicException.Code
	codeNotEnoughReplicas        = kerr.NotEnoughReplicas.Code
	codeInvalidRequiredAcks      = kerr.InvalidRequiredAcks.Code
	codeInvalidTimestamp         = kerr.InvalidTimestamp.Code
	codeInvalidRequest           = kerr.InvalidRequest.Code
	codeUnsupportedForFormat     = kerr.UnsupportedForMessageFormat.Code
	codeOutOfOrderSequence       = kerr.OutOfOrderSequenceNumber.Code
	codeDuplicateSequence        = kerr.DuplicateSequenceNumber.Code
	codeInvalidProducerEpoch     = kerr.InvalidProducerEpoch.Code
	codeInvalidTxnState          = kerr.InvalidTxnState.Code
	codeStorageError             = kerr.KafkaStorageError.Code
	codeUnknownProducerID        = kerr.UnknownProducerID.Code
	codeFetchSessionNotFound     = kerr.FetchSessionIDNotFound.Code
	codeInvalidFetchSessionEpoch = kerr.InvalidFetchSessionEpoch.Code
	codeFencedLeaderEpoch        = kerr.FencedLeaderEpoch.Code
	codeUnknownLeaderEpoch       = kerr.UnknownLeaderEpoch.Code
	codeOffsetNotAvailable       = kerr.OffsetNotAvailable.Code
	codeInvalidRecord            = kerr.InvalidRecord.Code
	codeUnknownTopicID           = kerr.UnknownTopicID.Code
	codeFetchSessionTopicID      = kerr.FetchSessionTopicIDError.Code
	codeCoordinatorNotAvailable  = kerr.CoordinatorNotAvailable.Code
	codeTransactionalIDNotFound  = kerr.TransactionalIDNotFound.Code
)

// errorTable maps the errors of the core to Kafka's codes, first match first. What may still commit (shard.ErrUnknown) is answered like a lost
// leadership: the producer's retry is recognised by its sequence.
var errorTable = []struct {
	err  error
	code int16
}{
	{shard.ErrNotLeader, codeNotLeaderOrFollower},
	{shard.ErrUnknown, codeNotLeaderOrFollower},
	{shard.ErrClosed, codeNotLeaderOrFollower},
	{shard.ErrTooLarge, codeMessageTooLarge},
	{partition.ErrUnknownPartition, codeNotLeaderOrFollower}, // it was here when the request came: moved since, or deleted, as the metadata say
	{partition.ErrOutOfOrderSequence, codeOutOfOrderSequence},
	{partition.ErrInvalidProducerEpoch, codeInvalidProducerEpoch},
	{partition.ErrDuplicateSequence, codeDuplicateSequence},
	{partition.ErrInvalidTxnState, codeInvalidTxnState},
	{partition.ErrInvalidBatch, codeCorruptMessage},
	{partition.ErrFrozen, codeNotLeaderOrFollower}, // on its way to another shard: the client looks for the leader again
	{partition.ErrRemoved, codeNotLeaderOrFollower},
	{partition.ErrClosed, codeNotLeaderOrFollower},
	{partition.ErrStopped, codeStorageError},
	{commitlog.ErrOutOfRange, codeOffsetOutOfRange},
	{commitlog.ErrMissing, codeOffsetNotAvailable}, // this replica is still fetching it from a peer
	{commitlog.ErrCorrupt, codeStorageError},
	{commitlog.ErrClosed, codeNotLeaderOrFollower},
	{record.ErrCorrupt, codeCorruptMessage},
	{record.ErrInvalid, codeInvalidRecord},
	{context.DeadlineExceeded, codeRequestTimedOut},
	{context.Canceled, codeNotLeaderOrFollower},
}

// errorCode returns Kafka's code for an error of the core; 0 for nil.
func (b *Broker) errorCode(err error) int16 { return errorCode(err) }

func errorCode(err error) int16 {
	if err == nil {
		return codeNone
	}
	var refused *meta.Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	for _, e := range errorTable {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return codeUnknownServerError
}
