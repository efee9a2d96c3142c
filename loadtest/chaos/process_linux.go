package chaos

import "syscall"

// processAttributes: no signals from the terminal, and an end with the run's.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
