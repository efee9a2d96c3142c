package raftlog

import (
	"errors"
	"fmt"
)

const (
	keyCurrentTerm = "CurrentTerm"
	keyVoteTerm    = "LastVoteTerm"
	keyVoteCand    = "LastVoteCand"

	// maxCandidateBytes bounds the address of a candidate; ours are a node id and an incarnation.
	maxCandidateBytes = 1 << 10
)

var errUnknownKey = errors.New("raft log stores only the term and the vote")

// SetUint64 stores the current term and returns when it is synced; the term it has already is not
// written again. The term of a vote is kept in memory until its candidate comes: half a vote never
// reaches the disk.
func (s *Store) SetUint64(key []byte, val uint64) error {
	s.write.Lock()
	defer s.write.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		if s.snapshot().term == val {
			return s.Err()
		}
		return s.change(func(n *state) { n.term = val })
	case keyVoteTerm:
		s.write.stagedVote = val
		return s.Err()
	}
	return fmt.Errorf("set %q: %w", key, errUnknownKey)
}

// Set stores the candidate of the vote whose term was set before, with that term, synced.
func (s *Store) Set(key, val []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	if string(key) != keyVoteCand || len(val) > maxCandidateBytes {
		return fmt.Errorf("set %q (%d bytes): %w", key, len(val), errUnknownKey)
	}
	st := s.snapshot()
	term := s.write.stagedVote
	if term == 0 {
		term = st.voteTerm
	}
	if st.voteTerm == term && string(st.candidate) == string(val) {
		return s.Err()
	}
	candidate := append([]byte(nil), val...)
	return s.change(func(n *state) { n.voteTerm, n.candidate = term, candidate })
}

// GetUint64 returns the synced value, 0 if there is none.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	st := s.snapshot()
	switch string(key) {
	case keyCurrentTerm:
		return st.term, nil
	case keyVoteTerm:
		return st.voteTerm, nil
	}
	return 0, fmt.Errorf("get %q: %w", key, errUnknownKey)
}

// Get returns the synced candidate of the last vote, nil if there is none.
func (s *Store) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteCand {
		return nil, fmt.Errorf("get %q: %w", key, errUnknownKey)
	}
	return append([]byte(nil), s.snapshot().candidate...), nil
}

func (s *Store) snapshot() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.state
}
