package broker

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/meta"
	"sluice/core/record"
)

// batchRules are what a topic asks of the batches that are produced to it.
type batchRules struct {
	settings     *meta.TopicSettings
	version      int16 // of the Produce request
	now          int64 // ms
	recompressed int   // batches that got another codec, counted by check
}

// rejection is why a partition's records are not taken: Kafka's code, a reason for a person and, when single records are at fault, which (KIP-467).
type rejection struct {
	code    int16
	message string
	records []kmsg.ProduceResponseTopicPartitionErrorRecord
}

func reject(code int16, format string, args ...any) rejection {
	return rejection{code: code, message: fmt.Sprintf(format, args...)}
}

// attributeLogAppendTime is the bit of a batch's attributes that says whose clock its times are; attributesAt is where the lower byte lies.
const (
	attributeLogAppendTime = 1 << 3
	attributesAt           = 22
)

// check returns the records of one partition as they are to be proposed. They are checked where they lie; the times may be changed there, and another codec
// makes a copy. Kafka takes exactly one batch from version 3 on; several are taken here, as they are appended together or not at all.
func (r *batchRules) check(records []byte) ([]byte, rejection) {
	if len(records) == 0 {
		return nil, reject(codeInvalidRecord, "Produce requests with version %d must have at least one record batch per partition", r.version)
	}
	if r.version < 3 {
		return r.convert(records)
	}
	var out []byte // nil while nothing had to be copied
	for rest := records; len(rest) > 0; {
		if why := checkMagic(rest); why.code != codeNone {
			return nil, why
		}
		b, after, err := record.Next(rest)
		if err != nil {
			return nil, reject(codeCorruptMessage, "%v", err)
		}
		done, why := r.batch(b)
		if why.code != codeNone {
			return nil, why
		}
		if out == nil && &done[0] != &b[0] {
			out = append(make([]byte, 0, len(records)), records[:len(records)-len(rest)]...)
		}
		if out != nil {
			out = append(out, done...)
		}
		rest = after
	}
	if out != nil {
		return out, rejection{}
	}
	return records, rejection{}
}

// checkMagic refuses the old formats where they are not taken any more.
func checkMagic(b []byte) rejection {
	const magicAt = 16
	if len(b) > magicAt && b[magicAt] < 2 {
		return reject(codeInvalidRecord, "Produce requests with version 3 and above take only record batches of magic 2, not %d", b[magicAt])
	}
	return rejection{}
}

// convert turns a message set of the old formats into a batch.
func (r *batchRules) convert(set []byte) ([]byte, rejection) {
	b, err := record.FromMessageSet(set)
	if err != nil {
		return nil, rejection{code: recordCode(err), message: err.Error()}
	}
	return r.batch(b)
}

// batch checks one batch and makes it what the topic stores.
func (r *batchRules) batch(b record.Batch) (record.Batch, rejection) {
	if err := b.Validate(); err != nil {
		return nil, rejection{code: recordCode(err), message: err.Error()}
	}
	if why := r.checkHead(b); why.code != codeNone {
		return nil, why
	}
	if r.settings.Compact {
		if why := checkKeys(b); why.code != codeNone {
			return nil, why
		}
	}
	b, why := r.codec(b)
	if why.code != codeNone {
		return nil, why
	}
	if why := r.checkSize(b); why.code != codeNone {
		return nil, why
	}
	r.setTime(b)
	return b, rejection{}
}

// recordCode maps what core/record found to Kafka's code.
func recordCode(err error) int16 {
	if code := errorCode(err); code != codeUnknownServerError {
		return code
	}
	return codeCorruptMessage
}

// checkHead checks what the head of a batch says: that a client may write it, that it is not too large, and its times.
func (r *batchRules) checkHead(b record.Batch) rejection {
	switch {
	case b.IsControl():
		return reject(codeInvalidRecord, "clients may not write control batches")
	case b.IsTransactional():
		return reject(codeInvalidTxnState, "transactions are not available in this release")
	case b.Count() <= 0:
		return reject(codeInvalidRecord, "a record batch must hold at least one record")
	case b.ProducerID() >= 0 && (b.ProducerEpoch() < 0 || b.BaseSequence() < 0):
		return reject(codeInvalidRecord, "a batch of producer %d has epoch %d and sequence %d", b.ProducerID(), b.ProducerEpoch(), b.BaseSequence())
	}
	if why := r.checkSize(b); why.code != codeNone {
		return why
	}
	return r.checkTime(b)
}

func (r *batchRules) checkSize(b record.Batch) rejection {
	if int64(len(b)) > r.settings.MaxMessageBytes {
		return reject(codeMessageTooLarge, "the record batch has %d bytes, more than the topic's max.message.bytes of %d", len(b), r.settings.MaxMessageBytes)
	}
	return rejection{}
}

// checkTime keeps create times within message.timestamp.before.max.ms and message.timestamp.after.max.ms of now (KIP-937).
func (r *batchRules) checkTime(b record.Batch) rejection {
	if r.settings.LogAppendTime {
		return rejection{}
	}
	if ts := b.MaxTimestamp(); r.settings.TimestampAfterMaxMs >= 0 && ts-r.now > r.settings.TimestampAfterMaxMs {
		return reject(codeInvalidTimestamp, "timestamp %d is more than %d ms after the broker's time", ts, r.settings.TimestampAfterMaxMs)
	}
	if ts := b.FirstTimestamp(); ts >= 0 && r.now-ts > r.settings.TimestampBeforeMaxMs && r.settings.TimestampBeforeMaxMs >= 0 {
		return reject(codeInvalidTimestamp, "timestamp %d is more than %d ms before the broker's time", ts, r.settings.TimestampBeforeMaxMs)
	}
	return rejection{}
}

// errorRecordsMax bounds how many refused records an answer names.
const errorRecordsMax = 1000

// checkKeys finds records without a key, which a compacted topic cannot keep.
func checkKeys(b record.Batch) rejection {
	var bad []kmsg.ProduceResponseTopicPartitionErrorRecord
	index := int32(0)
	err := b.Each(func(rec record.Record) error {
		if rec.Key == nil && len(bad) < errorRecordsMax {
			e := kmsg.NewProduceResponseTopicPartitionErrorRecord()
			e.RelativeOffset = index
			e.ErrorMessage = kmsg.StringPtr("Compacted topic cannot accept message without key in topic partition.")
			bad = append(bad, e)
		}
		index++
		return nil
	})
	switch {
	case err != nil:
		return rejection{code: recordCode(err), message: err.Error()}
	case len(bad) > 0:
		return rejection{code: codeInvalidRecord, message: "One or more records have been rejected", records: bad}
	}
	return rejection{}
}

// codecs are the values of compression.type that name a codec; "producer" is not among them.
var codecs = map[string]record.Codec{
	"uncompressed": record.None, "gzip": record.Gzip, "snappy": record.Snappy, "lz4": record.LZ4, "zstd": record.Zstd,
}

// codec gives a batch the codec that the topic asks for.
func (r *batchRules) codec(b record.Batch) (record.Batch, rejection) {
	want, fixed := codecs[r.settings.CompressionType]
	if !fixed || b.Codec() == want {
		return b, rejection{}
	}
	out, err := record.Recompress(b, want, r.settings.CompressionLevel())
	if err != nil {
		return nil, rejection{code: recordCode(errors.Join(err, record.ErrInvalid)), message: err.Error()}
	}
	r.recompressed++
	return out, rejection{}
}

// setTime sets the topic's kind of time: the log append time lies within the batch's CRC, so it is set before proposing. A create-time topic takes the bit away
// from a producer that set it.
func (r *batchRules) setTime(b record.Batch) {
	switch {
	case r.settings.LogAppendTime:
		b.SetLogAppendTime(r.now)
	case b.TimestampType() != 0:
		b[attributesAt] &^= attributeLogAppendTime
		b.Seal()
	}
}
