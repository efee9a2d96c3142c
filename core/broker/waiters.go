package broker

import (
	"reflect"
	"time"
)

// waitersMax is how many channels one fetch waits for; reflect.Select takes 65,536 cases. A fetch of more partitions sees the rest when its time is over.
const waitersMax = 65_000

// waiters waits for the first of many changes without a goroutine of its own.
type waiters struct {
	changes        []<-chan struct{}
	timeout        <-chan time.Time
	done, stopping <-chan struct{}
}

// wait blocks until something changes and returns true, or false when the time is over or the connection or server ends.
func (w *waiters) wait() bool {
	if len(w.changes) > 2 {
		return w.waitMany()
	}
	var a, b <-chan struct{}
	if len(w.changes) > 0 {
		a = w.changes[0]
	}
	if len(w.changes) > 1 {
		b = w.changes[1]
	}
	select {
	case <-a:
		return true
	case <-b:
		return true
	case <-w.timeout:
	case <-w.done:
	case <-w.stopping:
	}
	return false
}

func (w *waiters) waitMany() bool {
	changes := w.changes[:min(len(w.changes), waitersMax)]
	cases := make([]reflect.SelectCase, 0, len(changes)+3)
	for _, c := range []any{w.timeout, w.done, w.stopping} {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)})
	}
	ends := len(cases)
	for _, c := range changes {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)})
	}
	chosen, _, _ := reflect.Select(cases)
	return chosen >= ends
}
