package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"sluice/bridge/dashboard"
	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/proc"
)

// bridgeFile is the configuration of a bridge process.
type bridgeFile struct {
	Core      []string      `yaml:"core"` // Kafka addresses of the cluster
	Dashboard dashboardFile `yaml:"dashboard"`
	PIDFile   string        `yaml:"pidFile"`
	Log       conf.Log      `yaml:"log"`
}

// dashboardFile says what the live page shows.
type dashboardFile struct {
	Listen string   `yaml:"listen"`
	Topics []string `yaml:"topics"`
}

func defaultBridgeFile() bridgeFile {
	return bridgeFile{
		Core: []string{defaultBootstrap}, Dashboard: dashboardFile{Listen: "127.0.0.1:8090", Topics: []string{"mqtt"}}, Log: conf.DefaultLog(),
	}
}

// Validate names the field and the value that are wrong.
func (b *bridgeFile) Validate() error {
	if len(b.Core) == 0 {
		return errors.New("core: must name at least one node")
	}
	for i, addr := range b.Core {
		if err := conf.CheckAddress(fmt.Sprintf("core[%d]", i), addr); err != nil {
			return err
		}
	}
	if len(b.Dashboard.Topics) == 0 {
		return errors.New("dashboard.topics: must name at least one topic")
	}
	return errors.Join(conf.CheckAddress("dashboard.listen", b.Dashboard.Listen), b.Log.Validate())
}

func bridgeCommand() *cobra.Command {
	var file string
	flags := defaultBridgeFile()
	c := &cobra.Command{
		Use: "bridge", Short: "Run the live page of a city, fed from the core", Args: args(cobra.NoArgs),
		Example: "  sluice bridge --core 127.0.0.1:9092 --page 127.0.0.1:8090",
	}
	f := c.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file; flags stand above it")
	f.StringSliceVar(&flags.Core, "core", flags.Core, "Kafka addresses of the cluster")
	f.StringVar(&flags.Dashboard.Listen, "page", flags.Dashboard.Listen, "address of the page")
	f.StringSliceVar(&flags.Dashboard.Topics, "topics", flags.Dashboard.Topics, "topics that the page reads")
	f.StringVar(&flags.PIDFile, "pid-file", flags.PIDFile, "file that holds the process's id while it runs")
	f.StringVar(&flags.Log.Level, "log-level", flags.Log.Level, "debug, info, warn or error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		config := defaultBridgeFile()
		if err := loadUnderFlags(c, file, &config, func() {
			over(c, "core", &config.Core, flags.Core)
			over(c, "page", &config.Dashboard.Listen, flags.Dashboard.Listen)
			over(c, "topics", &config.Dashboard.Topics, flags.Dashboard.Topics)
			over(c, "pid-file", &config.PIDFile, flags.PIDFile)
			over(c, "log-level", &config.Log.Level, flags.Log.Level)
		}); err != nil {
			return err
		}
		return runBridge(c, config)
	}
	return c
}

func runBridge(c *cobra.Command, config bridgeFile) error {
	if config.PIDFile != "" {
		remove, err := proc.WritePIDFile(config.PIDFile)
		if err != nil {
			return err
		}
		defer remove()
	}
	logger := config.Log.Logger(c.ErrOrStderr())
	page, err := dashboard.Open(dashboard.Options{
		Brokers: config.Core, Topics: config.Dashboard.Topics, Listen: config.Dashboard.Listen, Logger: logger.With("component", "dashboard"),
	})
	if err != nil {
		return err
	}
	p := proc.New(logger)
	p.Add(proc.Part{Name: "dashboard", Why: "the only part", Run: page.Run})
	return p.Run(c.Context(), func() { fmt.Fprintf(c.OutOrStdout(), "sluice bridge serves: page http://%s/\n", page.Addr()) })
}
