package gateway

import (
	"github.com/spf13/cobra"

	"sluice/cmd/internal/conf"
)

// Flags defines a gateway's flags on c and returns what reads the configuration: defaults, then the file, then the flags that were given.
func Flags(c *cobra.Command) func() (Config, error) {
	var file string
	flags := Default()
	fields := func(c *Config) map[string]*string {
		return map[string]*string{"data": &c.DataDir, "mqtt": &c.MQTT.Listen, "websocket": &c.MQTT.WebSocket.Listen, "http": &c.HTTP.Listen,
			"pid-file": &c.PIDFile, "log-level": &c.Log.Level}
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file; flags stand above it")
	usage := map[string]string{"data": "data directory", "mqtt": "address for MQTT", "websocket": "address for MQTT over WebSocket; empty for none",
		"http": "address for HTTP", "pid-file": "file that holds the process's id while it runs", "log-level": "debug, info, warn or error"}
	for name, field := range fields(&flags) {
		f.StringVar(field, name, *field, usage[name])
	}
	f.StringSliceVar(&flags.Uplink.Core, "core", flags.Uplink.Core, "Kafka addresses of the core; empty for a gateway that only keeps")
	return func() (Config, error) {
		config := Default()
		if file != "" {
			if err := conf.Load(file, &config); err != nil {
				return config, err
			}
		}
		given := fields(&flags)
		for name, field := range fields(&config) {
			if f.Changed(name) {
				*field = *given[name]
			}
		}
		if f.Changed("core") {
			config.Uplink.Core = flags.Uplink.Core
		}
		return config, config.Validate()
	}
}
