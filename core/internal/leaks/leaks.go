// Package leaks looks for goroutines that a package's tests have left. Tests alone use it.
package leaks

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests and ends the process, with an error when a goroutine is left after them. On a busy machine the last ones take longer to
// end than the half second for which goleak.VerifyTestMain looks: they have that much patience.
func Main(m *testing.M, patience time.Duration) {
	code := m.Run()
	if code == 0 {
		if err := find(patience); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// find returns nil once no goroutine is left that a test may have begun, and otherwise what is left when patience ends.
func find(patience time.Duration, others ...goleak.Option) error {
	for late := time.Now().Add(patience); ; {
		err := goleak.Find(others...)
		if err == nil || time.Now().After(late) {
			return err
		}
	}
}
