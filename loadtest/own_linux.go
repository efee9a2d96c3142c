package loadtest

import (
	"os/exec"
	"syscall"
)

// own makes a child end with us, and keeps the terminal's Ctrl-C from it: it is stopped in order.
func own(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
