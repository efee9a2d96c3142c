package shard

import (
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// acceptRetryDelay is the pause after a failed accept: until some file is closed the next one fails too.
	acceptRetryDelay = 50 * time.Millisecond
	// acceptWarnInterval keeps these failures from filling the log.
	acceptWarnInterval = 10 * time.Second
)

// strangers are the connections that have not said yet who they are. When there are too many the oldest goes: another node says it
// at once, so that whoever opens connections and is silent keeps no node out.
type strangers struct {
	mu    sync.Mutex
	conns []net.Conn // oldest first
}

// admit adds a connection and closes the oldest when there are more than maxPrefaceConns.
func (s *strangers) admit(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	if len(s.conns) > maxPrefaceConns {
		s.conns[0].Close()
		s.conns = slices.Delete(s.conns, 0, 1)
	}
}

// leave forgets a connection that has said who it is, or is gone.
func (s *strangers) leave(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.conns, c); i >= 0 {
		s.conns = slices.Delete(s.conns, i, i+1)
	}
}

// passes tells whether a failed accept may succeed later: the process or the system has no file left, or the connection was gone.
func passes(err error) bool {
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
