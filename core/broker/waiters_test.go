package broker

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWaiters(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 100} {
		synctest.Test(t, func(t *testing.T) {
			w := &waiters{timeout: time.After(time.Second), done: make(chan struct{}), stopping: make(chan struct{})}
			var last chan struct{}
			for range n {
				last = make(chan struct{})
				w.changes = append(w.changes, last)
			}
			began := time.Now()
			if w.wait() || time.Since(began) != time.Second {
				t.Errorf("%d channels: ended after %v without a change", n, time.Since(began))
			}
			if n > 0 {
				close(last)
				if w.timeout = time.After(time.Second); !w.wait() {
					t.Errorf("%d channels: missed a change", n)
				}
			}
			stopping := make(chan struct{})
			close(stopping)
			w.changes = nil
			if w.stopping = stopping; w.wait() {
				t.Errorf("%d channels: a stop is not a change", n)
			}
		})
	}
}
