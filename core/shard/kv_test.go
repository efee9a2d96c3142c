package shard

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// kv is the state machine of the tests: entries read `key=value`, and it keeps the order in which
// they came, so that a test can compare histories.
type kv struct {
	mu         sync.Mutex
	history    []string
	incomplete atomic.Bool
	restores   atomic.Int64
	applies    atomic.Int64
	most       int // bytes of one call
	failure    atomic.Pointer[error]
	hold       chan struct{} // when set, applies wait until it is closed
	refuse     func(entry string) error
}

func (s *kv) ApplyBatch(logs []*raft.Log) []any {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make([]any, len(logs))
	bytes := 0
	for _, l := range logs {
		bytes += len(l.Data)
	}
	s.most = max(s.most, bytes)
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		s.applies.Add(1)
		if s.refuse != nil {
			if err := s.refuse(string(l.Data)); err != nil {
				results[i] = err
				continue
			}
		}
		s.history = append(s.history, string(l.Data))
		results[i] = len(s.history)
	}
	return results
}

type kvCheckpoint struct {
	data    []byte
	durable atomic.Int64
}

func (c *kvCheckpoint) Persist(w io.Writer) error {
	_, err := w.Write(c.data)
	return err
}
func (c *kvCheckpoint) Release() {}
func (c *kvCheckpoint) Durable() { c.durable.Add(1) }

func (s *kv) Capture() (Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := json.Marshal(s.history)
	return &kvCheckpoint{data: data}, err
}

func (s *kv) Restore(_ uint64, r io.Reader) error {
	var history []string
	if err := json.NewDecoder(r).Decode(&history); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	s.restores.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = history
	return nil
}

func (s *kv) Complete() bool { return !s.incomplete.Load() }

func (s *kv) Err() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *kv) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.history...)
}

func (s *kv) get(key string) (value string, ok bool) {
	for _, e := range s.all() {
		if k, v, _ := strings.Cut(e, "="); k == key {
			value, ok = v, true
		}
	}
	return value, ok
}

// block lets applies wait until the returned function is called.
func (s *kv) block() (release func()) {
	hold := make(chan struct{})
	s.mu.Lock()
	s.hold = hold
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.hold = nil
		s.mu.Unlock()
		close(hold)
	})
}

// largest is the most that one call brought.
func (s *kv) largest() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}
