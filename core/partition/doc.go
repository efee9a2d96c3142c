// Package partition is the state machine of a shard: the partitions that one
// Raft group replicates, applied into their segment files.
//
// A Set takes the committed entries of its group in order and decides all that
// must be decided alike on every replica: producer sequences, offsets, leader
// epochs, the last stable offset, the start of the log. Two sets that were given
// the same entries hold the same bytes in the same files, however the entries
// were grouped into calls and wherever a replica was stopped and started again.
//
// It guarantees that what a checkpoint names is synced before the checkpoint
// counts and stays on disk until a later one no longer names it, that readers
// see only applied entries, and that a set which could not write stops
// (see Set.Err). It does not know Raft, leadership, topics' configurations or
// the clock: whoever proposes has put into the entry what apply may not decide.
//
// DESIGN.md says why it is built this way, FORMAT.md how its bytes look.
package partition
