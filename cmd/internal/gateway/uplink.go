package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"sluice/bridge/uplink"
	"sluice/cmd/internal/conf"
	"sluice/cmd/internal/tlsfile"
	"sluice/core/record"
	"sluice/core/vfs"
	"sluice/edge/buffer"
)

// Uplink says where the gateway forwards to, and how.
type Uplink struct {
	Core           []string         `yaml:"core"`           // Kafka addresses of the cluster; none keeps everything in the buffer
	Compression    string           `yaml:"compression"`    // none, gzip, snappy, lz4, zstd
	DeadLetter     string           `yaml:"deadLetter"`     // topic of records that the cluster refuses; "" for the uplink's own
	BytesPerSecond int64            `yaml:"bytesPerSecond"` // 0 for no bound
	Windows        []string         `yaml:"windows"`        // times of day in which it sends, 22:00-06:00; none for always
	Linger         time.Duration    `yaml:"linger"`
	TLS            conf.Certificate `yaml:"tls"`
}

// lingerMax: devices do not wait for the uplink, but people who look at their readings do.
const lingerMax = time.Minute

func defaultUplink() Uplink {
	return Uplink{Core: []string{"127.0.0.1:9092"}, Compression: "zstd", Linger: 50 * time.Millisecond}
}

var codecs = map[string]record.Codec{"none": record.None, "gzip": record.Gzip, "snappy": record.Snappy, "lz4": record.LZ4, "zstd": record.Zstd}

func (u *Uplink) validate() error {
	for i, addr := range u.Core {
		if err := conf.CheckAddress(fmt.Sprintf("uplink.core[%d]", i), addr); err != nil {
			return err
		}
	}
	if _, ok := codecs[u.Compression]; !ok {
		return fmt.Errorf("uplink.compression: %q: must be none, gzip, snappy, lz4 or zstd", u.Compression)
	}
	if u.BytesPerSecond < 0 {
		return fmt.Errorf("uplink.bytesPerSecond: %d: must not be negative", u.BytesPerSecond)
	}
	if u.Linger < 0 || u.Linger > lingerMax {
		return fmt.Errorf("uplink.linger: %v: must be from 0 to %v", u.Linger, lingerMax)
	}
	if _, err := u.windows(); err != nil {
		return err
	}
	if u.TLS.Cert != "" && u.TLS.Key == "" {
		return errors.New("uplink.tls.key: must be set when cert is")
	}
	return nil
}

func (u *Uplink) windows() ([]uplink.Window, error) {
	var out []uplink.Window
	for i, text := range u.Windows {
		w, err := uplink.ParseWindow(text)
		if err != nil {
			return nil, fmt.Errorf("uplink.windows[%d]: %w", i, err)
		}
		out = append(out, w)
	}
	return out, nil
}

// forwarding is an uplink as a part of the process.
type forwarding struct {
	up     *uplink.Uplink
	logger *slog.Logger
}

// openUplink returns nil when there is no core to forward to.
func openUplink(fs vfs.FS, c Config, from *buffer.Buffer, logger *slog.Logger) (*forwarding, error) {
	u := c.Uplink
	if len(u.Core) == 0 {
		return nil, nil
	}
	windows, err := u.windows()
	if err != nil {
		return nil, err
	}
	options, err := u.kgo(logger)
	if err != nil {
		return nil, err
	}
	logger = logger.With("component", "uplink")
	up, err := uplink.Open(from, uplink.Options{
		FS: fs, Dir: filepath.Join(c.DataDir, "uplink"), Brokers: u.Core, MachineID: machineID(), Codec: codecs[u.Compression], DeadLetter: u.DeadLetter,
		BytesPerS: u.BytesPerSecond, Windows: windows, Linger: u.Linger, KgoOptions: options, Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open uplink: %w", err)
	}
	return &forwarding{up, logger}, nil
}

func (u *Uplink) kgo(logger *slog.Logger) ([]kgo.Opt, error) {
	if u.TLS == (conf.Certificate{}) {
		return nil, nil
	}
	source, err := tlsfile.Open(tlsfile.Files{Cert: u.TLS.Cert, Key: u.TLS.Key, CA: u.TLS.CA}, logger)
	if err != nil {
		return nil, err
	}
	return []kgo.Opt{kgo.DialTLSConfig(source.Client(""))}, nil
}

// machineID tells this box from one that runs a copy of its disk's data; "" where the system does not say.
func machineID() string {
	text, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Run forwards until ctx ends. An uplink that stops for a reason of its own needs a person; meanwhile the gateway
// goes on taking what devices send, so the process does not end with it.
func (f *forwarding) Run(ctx context.Context) error {
	err := f.up.Run(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	f.logger.Error("uplink has stopped, the gateway goes on buffering", "error", err)
	<-ctx.Done()
	return nil
}

// WritePrometheus writes the uplink's metrics.
func (f *forwarding) WritePrometheus(w io.Writer) { f.up.WritePrometheus(w) }

// Status is what /status shows of the uplink.
func (f *forwarding) Status() any { return f.up.Status() }
