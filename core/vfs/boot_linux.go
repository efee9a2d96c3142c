package vfs

import (
	"os"
	"strings"
)

// bootFile holds a random id that the kernel draws when it starts (random(4)).
const bootFile = "/proc/sys/kernel/random/boot_id"

func systemBoot() string {
	id, err := os.ReadFile(bootFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
