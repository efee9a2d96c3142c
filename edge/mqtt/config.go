package mqtt

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Config of the MQTT listeners, as the gateway's file has it.
type Config struct {
	Listen    string          `yaml:"listen"` // plain TCP; "" is off
	TLS       TLSConfig       `yaml:"tls"`
	WebSocket WebSocketConfig `yaml:"webSocket"`

	MaxConnections    int           `yaml:"maxConnections"`
	MaxSessions       int           `yaml:"maxSessions"`    // with and without a connection
	MaxPacketBytes    int           `yaml:"maxPacketBytes"` // of one packet from a device
	ReceiveMaximum    int           `yaml:"receiveMaximum"` // unacknowledged messages of one device; one of MQTT 3.1.1 is not read further
	TopicAliasMaximum int           `yaml:"topicAliasMaximum"`
	KeepAliveMax      time.Duration `yaml:"keepAliveMax"` // MQTT 5: told to devices that ask for longer or none; 0: whatever they ask
	SessionExpiryMax  time.Duration `yaml:"sessionExpiryMax"`
	Window            int           `yaml:"window"`         // unacknowledged messages to one subscriber
	QueueMessages     int           `yaml:"queueMessages"`  // waiting for one subscriber
	QueueBytes        int64         `yaml:"queueBytes"`     // waiting for one subscriber
	RetainedMax       int           `yaml:"retainedMax"`    // messages
	ConnectTimeout    time.Duration `yaml:"connectTimeout"` // from the connection to its CONNECT
	WriteTimeout      time.Duration `yaml:"writeTimeout"`   // a device that does not read for so long is cut off
}

// TLSConfig is a second listener with TLS.
type TLSConfig struct {
	Listen   string `yaml:"listen"` // "" is off
	Cert     string `yaml:"cert"`   // PEM files
	Key      string `yaml:"key"`
	ClientCA string `yaml:"clientCA"` // with it devices must show a certificate; its common name is the user's name

	Config *tls.Config `yaml:"-"` // instead of the files: certificates that reload
}

// WebSocketConfig is a listener for browsers.
type WebSocketConfig struct {
	Listen  string   `yaml:"listen"` // "" is off
	Path    string   `yaml:"path"`
	Origins []string `yaml:"origins"` // allowed in a browser's Origin; none: the page's own host only; "*": any
}

// Default is localhost with the bounds of a small box.
func Default() Config {
	return Config{
		Listen:            "127.0.0.1:1883",
		WebSocket:         WebSocketConfig{Listen: "127.0.0.1:8083", Path: "/mqtt"},
		MaxConnections:    20_000,
		MaxSessions:       100_000,
		MaxPacketBytes:    1 << 20,
		ReceiveMaximum:    1024,
		TopicAliasMaximum: 64,
		SessionExpiryMax:  7 * 24 * time.Hour,
		Window:            1024,
		QueueMessages:     10_000,
		QueueBytes:        64 << 20,
		RetainedMax:       100_000,
		ConnectTimeout:    10 * time.Second,
		WriteTimeout:      20 * time.Second,
	}
}

// packetBytesMax is MQTT's own bound of a packet's remaining length.
const packetBytesMax = 268_435_455

// Validate names the field and the value that are wrong.
func (c *Config) Validate() error {
	for name, addr := range map[string]string{"listen": c.Listen, "tls.listen": c.TLS.Listen, "webSocket.listen": c.WebSocket.Listen} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			return fmt.Errorf("%s: %q: want host:port: %w", name, addr, err)
		}
	}
	if c.TLS.Listen != "" && c.TLS.Config == nil && (c.TLS.Cert == "" || c.TLS.Key == "") {
		return fmt.Errorf("tls: cert %q and key %q: both files are needed", c.TLS.Cert, c.TLS.Key)
	}
	if c.WebSocket.Listen != "" && !strings.HasPrefix(c.WebSocket.Path, "/") {
		return fmt.Errorf("webSocket.path: %q: must begin with /", c.WebSocket.Path)
	}
	for _, o := range c.WebSocket.Origins {
		if u, err := url.Parse(o); o != "*" && (err != nil || u.Host == "") {
			return fmt.Errorf("webSocket.origins: %q: want a scheme and host as https://city.example, or *", o)
		}
	}
	return c.validateBounds()
}

func (c *Config) validateBounds() error {
	for _, b := range []struct {
		name         string
		value        int
		lowest, most int
	}{
		{"maxConnections", c.MaxConnections, 1, 1_000_000},
		{"maxSessions", c.MaxSessions, 1, 10_000_000},
		{"maxPacketBytes", c.MaxPacketBytes, 128, packetBytesMax},
		{"receiveMaximum", c.ReceiveMaximum, 1, 65535},
		{"topicAliasMaximum", c.TopicAliasMaximum, 0, 65535},
		{"window", c.Window, 1, 65535},
		{"queueMessages", c.QueueMessages, 1, 10_000_000},
		{"queueBytes", int(min(c.QueueBytes, 1<<30)), 1, 1 << 30},
		{"retainedMax", c.RetainedMax, 0, 10_000_000},
	} {
		if b.value < b.lowest || b.value > b.most {
			return fmt.Errorf("%s: %d: must be from %d to %d", b.name, b.value, b.lowest, b.most)
		}
	}
	for name, d := range map[string]time.Duration{"connectTimeout": c.ConnectTimeout, "writeTimeout": c.WriteTimeout} {
		if d <= 0 {
			return fmt.Errorf("%s: %v: must be more than 0", name, d)
		}
	}
	if c.KeepAliveMax < 0 || c.KeepAliveMax > 65535*time.Second {
		return fmt.Errorf("keepAliveMax: %v: must be from 0 to 65535s", c.KeepAliveMax)
	}
	if c.SessionExpiryMax < 0 {
		return fmt.Errorf("sessionExpiryMax: %v: must not be negative", c.SessionExpiryMax)
	}
	return nil
}
