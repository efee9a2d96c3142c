package dashboard

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
)

func TestBrowserThatStandsStillIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		defer here.Close()
		if _, err := (patientConn{here}).Write([]byte("frame")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}
