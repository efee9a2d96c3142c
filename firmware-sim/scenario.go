package firmwaresim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// devicesMax bounds one process: each device is a connection and about five goroutines.
	devicesMax = 20000
	// intervalMin keeps a scenario from being a load test; there is a load tester for that.
	intervalMin = 10 * time.Millisecond
)

// Scenario describes a city. Shares are between 0 and 1.
type Scenario struct {
	Broker        string        `yaml:"broker"` // tcp://, ssl:// or ws:// URL
	Seed          uint64        `yaml:"seed"`
	Zones         []string      `yaml:"zones"`
	DevicesPerSet int           `yaml:"devices_per_zone_and_kind"`
	Interval      time.Duration `yaml:"interval"`      // between two readings of a device
	Jitter        float64       `yaml:"jitter"`        // share of the interval by which each wait varies
	SenMLShare    float64       `yaml:"senml_share"`   // of the devices
	QoS           QoSShares     `yaml:"qos"`           // of the devices
	Clock         Clock         `yaml:"clock"`         // how wrong device clocks are
	Reconnect     Reconnect     `yaml:"reconnect"`     // how often devices lose their link
	OfflineQueue  int           `yaml:"offline_queue"` // readings a device keeps while it is offline
	ConnectRate   int           `yaml:"connect_rate"`  // connections opened per second at the start
	Username      string        `yaml:"username"`
	Password      string        `yaml:"password"`
}

// QoSShares are the shares of devices that publish with each QoS; they add up to 1.
type QoSShares struct {
	AtMostOnce  float64 `yaml:"0"`
	AtLeastOnce float64 `yaml:"1"`
	ExactlyOnce float64 `yaml:"2"`
}

// Clock bounds what a device's clock is off by: an offset at the start, and a drift in millionths.
type Clock struct {
	OffsetMax   time.Duration `yaml:"offset_max"`
	DriftPPMMax float64       `yaml:"drift_ppm_max"`
}

// Reconnect is the mean time between two losses of a device's link, and the mean time until it is back. Every 0 means never. Only brokers
// reached over plain TCP are lost this way.
type Reconnect struct {
	Every time.Duration `yaml:"every"`
	Down  time.Duration `yaml:"down"`
}

// Default is a city of 1,008 devices: six zones, six kinds, 28 devices each, a hundred readings a second.
func Default() Scenario {
	return Scenario{
		Broker: "tcp://127.0.0.1:1883", Seed: 1, Zones: []string{"centre", "north", "south", "east", "west", "harbour"},
		DevicesPerSet: 28, Interval: 10 * time.Second, Jitter: 0.2, SenMLShare: 0.25,
		QoS: QoSShares{AtMostOnce: 0.1, AtLeastOnce: 0.8, ExactlyOnce: 0.1}, Clock: Clock{OffsetMax: 2 * time.Second, DriftPPMMax: 50},
		Reconnect: Reconnect{Every: 10 * time.Minute, Down: 5 * time.Second}, OfflineQueue: 100, ConnectRate: 500,
	}
}

// Load reads a scenario file; what it does not name keeps its default. Unknown fields are errors.
func Load(path string) (Scenario, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Scenario{}, fmt.Errorf("read scenario: %w", err)
	}
	s := Default()
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return Scenario{}, fmt.Errorf("read scenario %s: %w", path, err)
	}
	if err := s.Validate(); err != nil {
		return Scenario{}, fmt.Errorf("scenario %s: %w", path, err)
	}
	return s, nil
}

var level = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// Validate names the first field that cannot be meant.
func (s *Scenario) Validate() error {
	if s.Broker == "" {
		return errors.New("broker: is empty; say for example tcp://127.0.0.1:1883")
	}
	if len(s.Zones) == 0 {
		return errors.New("zones: at least one is needed")
	}
	for i, z := range s.Zones {
		if !level.MatchString(z) || slices.Contains(s.Zones[:i], z) {
			return fmt.Errorf("zones: %q is not a name (letters, digits, _ . -), or comes twice", z)
		}
	}
	if n := s.Devices(); s.DevicesPerSet < 1 || n > devicesMax {
		return fmt.Errorf("devices_per_zone_and_kind: %d makes %d devices; between 1 and %d are possible in one process", s.DevicesPerSet, n, devicesMax)
	}
	if s.Interval < intervalMin {
		return fmt.Errorf("interval: %s is less than %s; use the load tester for loads", s.Interval, intervalMin)
	}
	for name, v := range map[string]float64{"jitter": s.Jitter, "senml_share": s.SenMLShare, "qos.0": s.QoS.AtMostOnce, "qos.1": s.QoS.AtLeastOnce, "qos.2": s.QoS.ExactlyOnce} {
		if v < 0 || v > 1 {
			return fmt.Errorf("%s: %v is not between 0 and 1", name, v)
		}
	}
	if sum := s.QoS.AtMostOnce + s.QoS.AtLeastOnce + s.QoS.ExactlyOnce; sum < 0.999 || sum > 1.001 {
		return fmt.Errorf("qos: the shares add up to %v, not 1", sum)
	}
	return s.validateTimes()
}

func (s *Scenario) validateTimes() error {
	switch {
	case s.Clock.OffsetMax < 0 || s.Clock.DriftPPMMax < 0:
		return errors.New("clock: offset_max and drift_ppm_max cannot be negative")
	case s.Reconnect.Every < 0 || s.Reconnect.Down < 0:
		return errors.New("reconnect: every and down cannot be negative")
	case s.OfflineQueue < 1 || s.OfflineQueue > 100000:
		return fmt.Errorf("offline_queue: %d is not between 1 and 100000", s.OfflineQueue)
	case s.ConnectRate < 1:
		return fmt.Errorf("connect_rate: %d is not positive", s.ConnectRate)
	}
	return nil
}

// Devices is how many devices the scenario has.
func (s *Scenario) Devices() int { return len(s.Zones) * len(Kinds) * s.DevicesPerSet }

// Write prints s as a scenario file.
func Write(w io.Writer, s Scenario) error {
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(s); err != nil {
		return fmt.Errorf("write scenario: %w", err)
	}
	return e.Close()
}

// SetDevices spreads at least n devices evenly over zones and kinds.
func (s *Scenario) SetDevices(n int) {
	sets := max(1, len(s.Zones)*len(Kinds))
	s.DevicesPerSet = (n + sets - 1) / sets
}
