package edge

import (
	"errors"
	"fmt"
	"net"
	"time"

	"sluice/edge/buffer"
	"sluice/edge/http"
	"sluice/edge/ingest"
	"sluice/edge/mqtt"
)

// Config of a gateway, as its YAML file has it. Default fills it in, Validate says what is wrong.
type Config struct {
	DataDir        string        `yaml:"dataDir"`
	MQTT           mqtt.Config   `yaml:"mqtt"`
	HTTP           http.Config   `yaml:"http"`
	Buffer         BufferConfig  `yaml:"buffer"`
	Routing        []ingest.Rule `yaml:"routing"`
	Users          string        `yaml:"users"`          // file of users; without one everybody is anonymous
	AllowAnonymous *bool         `yaml:"allowAnonymous"` // default: only where all listeners are on localhost and there is no file of users
}

// BufferConfig bounds what the gateway keeps for the core.
type BufferConfig struct {
	BudgetBytes  int64         `yaml:"budgetBytes"`  // 0: only the disk bounds it
	BudgetAge    time.Duration `yaml:"budgetAge"`    // 0: messages do not age
	ReserveBytes int64         `yaml:"reserveBytes"` // of the disk that stay free
	SegmentBytes int64         `yaml:"segmentBytes"`
	Linger       time.Duration `yaml:"linger"`   // waits for more before a sync: kinder to SD cards
	WhenFull     buffer.Policy `yaml:"whenFull"` // refuse or drop-oldest
}

// Limits of the buffer's settings.
const (
	lingerMax     = 10 * time.Second // devices wait for their acknowledgement meanwhile
	budgetMin     = 1 << 20          // smaller than a few segments is no budget
	segmentMin    = 64 << 10
	segmentMax    = 1 << 30
	reserveBytes  = 64 << 20
	segmentBytes  = 64 << 20
	dataDirectory = "data"
)

// Default is a gateway on localhost.
func Default() Config {
	return Config{
		DataDir: dataDirectory,
		MQTT:    mqtt.Default(),
		HTTP:    http.Default(),
		Buffer:  BufferConfig{ReserveBytes: reserveBytes, SegmentBytes: segmentBytes, WhenFull: buffer.Refuse},
	}
}

// Validate names the field and the value that are wrong.
func (c *Config) Validate() error {
	if c.DataDir == "" {
		return errors.New("dataDir: must not be empty")
	}
	if err := c.MQTT.Validate(); err != nil {
		return fmt.Errorf("mqtt.%w", err)
	}
	if err := c.HTTP.Validate(); err != nil {
		return fmt.Errorf("http.%w", err)
	}
	if err := c.Buffer.validate(); err != nil {
		return fmt.Errorf("buffer.%w", err)
	}
	if _, err := ingest.NewRouter(c.Routing); err != nil {
		return err
	}
	if c.AllowAnonymous == nil && c.Users == "" && !c.local() {
		return errors.New("users: a listener is not on localhost and there is no file of users; name one, or set allowAnonymous: true")
	}
	return nil
}

func (b *BufferConfig) validate() error {
	switch {
	case b.BudgetBytes < 0 || b.BudgetBytes > 0 && b.BudgetBytes < budgetMin:
		return fmt.Errorf("budgetBytes: %d: must be 0 (no bound) or at least %d", b.BudgetBytes, budgetMin)
	case b.BudgetAge < 0:
		return fmt.Errorf("budgetAge: %v: must not be negative", b.BudgetAge)
	case b.ReserveBytes < 0:
		return fmt.Errorf("reserveBytes: %d: must not be negative", b.ReserveBytes)
	case b.SegmentBytes < segmentMin || b.SegmentBytes > segmentMax:
		return fmt.Errorf("segmentBytes: %d: must be from %d to %d", b.SegmentBytes, segmentMin, segmentMax)
	case b.Linger < 0 || b.Linger > lingerMax:
		return fmt.Errorf("linger: %v: must be from 0 to %v", b.Linger, lingerMax)
	case b.WhenFull != buffer.Refuse && b.WhenFull != buffer.DropOldest:
		return fmt.Errorf("whenFull: %q: want %s or %s", b.WhenFull, buffer.Refuse, buffer.DropOldest)
	}
	return nil
}

// local says whether nobody from outside can reach the gateway.
func (c *Config) local() bool {
	for _, addr := range []string{c.MQTT.Listen, c.MQTT.TLS.Listen, c.MQTT.WebSocket.Listen, c.HTTP.Listen} {
		if addr != "" && !loopback(addr) {
			return false
		}
	}
	return true
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// anonymous says whether devices without a name may connect.
func (c *Config) anonymous() bool {
	if c.AllowAnonymous != nil {
		return *c.AllowAnonymous
	}
	return c.Users == "" && c.local()
}
