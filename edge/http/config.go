package http

import (
	"fmt"
	"net"
	"time"
)

// Config of the HTTP listener, as the gateway's file has it.
type Config struct {
	Listen       string        `yaml:"listen"`
	MaxBodyBytes int           `yaml:"maxBodyBytes"`
	MaxBatch     int           `yaml:"maxBatch"` // messages of one batch
	Timeout      time.Duration `yaml:"timeout"`  // to read a request, and to wait for the disk
}

// Default is localhost.
func Default() Config {
	return Config{Listen: "127.0.0.1:8080", MaxBodyBytes: 4 << 20, MaxBatch: 10_000, Timeout: 30 * time.Second}
}

// Validate names the field and the value that are wrong.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen: %q: want host:port: %w", c.Listen, err)
	}
	switch {
	case c.MaxBodyBytes < 1024 || c.MaxBodyBytes > 64<<20:
		return fmt.Errorf("maxBodyBytes: %d: must be from 1024 to %d", c.MaxBodyBytes, 64<<20)
	case c.MaxBatch < 1 || c.MaxBatch > 100_000:
		return fmt.Errorf("maxBatch: %d: must be from 1 to 100000", c.MaxBatch)
	case c.Timeout <= 0:
		return fmt.Errorf("timeout: %v: must be more than 0", c.Timeout)
	}
	return nil
}
