package workload

import "sync/atomic"

// Stats count what the workloads did, so that a run that did nothing is not taken for a good one.
type Stats struct {
	Sent, Acked        atomic.Int64 // numbered records
	Read               atomic.Int64 // records that plain readers were given
	Asked              atomic.Int64 // questions for ends and fetches with known intervals
	Delivered          atomic.Int64 // records that members of the group were given
	Commits            atomic.Int64
	Rebalances         atomic.Int64
	DeviceSent         atomic.Int64
	DeviceAcked        atomic.Int64
	MetadataOperations atomic.Int64
	MetadataUnknown    atomic.Int64 // of these, those whose outcome nobody knows
	Errors             atomic.Int64 // answers that were no success, of all kinds
}

// Stats of the run, live.
func (s *Set) Stats() *Stats { return &s.stats }
