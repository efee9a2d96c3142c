package leaks

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestFind(t *testing.T) {
	others := goleak.IgnoreCurrent()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		<-stop
	}()
	if err := find(0, others); err == nil {
		t.Error("a goroutine that is left is not found")
	}
	close(stop)
	<-ended
	if err := find(time.Minute, others); err != nil {
		t.Error(err)
	}
}
