package conf

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Each file of testdata/bad begins with a comment: the message it must give.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d bad files, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(text), "\n")
			c := DefaultCore()
			err = Load(name, &c)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("the error is %v", err)
			}
			if diff := cmp.Diff(name+": "+strings.TrimPrefix(first, "# "), err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAGoodFileStandsOverTheDefaults(t *testing.T) {
	c := DefaultCore()
	if err := Load("testdata/good.yaml", &c); err != nil {
		t.Fatal(err)
	}
	want := DefaultCore()
	want.ID, want.Rack, want.Kafka, want.Advertise = 2, "rack2", "0.0.0.0:9092", "core-2.example:9092"
	want.Join = []string{"core-1:9093", "core-3:9093"}
	want.Topics.Partitions, want.ReserveBytes, want.Scrub.Interval = 12, 2<<30, 12*time.Hour
	want.Limits.ConnectionsPerHost = 100
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
}

func TestAnEmptyFileIsTheDefaults(t *testing.T) {
	c := DefaultCore()
	if err := Parse("empty", nil, &c); err != nil || !cmp.Equal(c, DefaultCore()) {
		t.Errorf("%v, %+v", err, c)
	}
}

func TestAMissingOrEndlessFile(t *testing.T) {
	c := DefaultCore()
	if err := Load("testdata/none.yaml", &c); !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrInvalid) {
		t.Errorf("the error is %v", err)
	}
	if err := Load("/dev/zero", &c); !errors.Is(err, ErrInvalid) {
		t.Errorf("the error is %v", err)
	}
}

type secrets struct {
	User     string
	Password string
	SASL     struct{ ClientSecret, TokenFile, Token string }
	URL      string
	List     []map[string]string
}

func TestPrintLeavesSecretsOut(t *testing.T) {
	v := secrets{User: "ada", Password: "p1", URL: "amqp://bob:p2@host/x", List: []map[string]string{{"password": "p3", "passwordFile": "/f"}}}
	v.SASL.ClientSecret, v.SASL.TokenFile = "p4", "/run/token"
	var out bytes.Buffer
	if err := Print(&out, v); err != nil {
		t.Fatal(err)
	}
	want := `user: ada
password: <redacted>
sasl:
  clientsecret: <redacted>
  tokenfile: /run/token
  token: ""
url: amqp://bob:<redacted>@host/x
list:
  - password: <redacted>
    passwordFile: /f
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPrintedConfigurationCanBeRead(t *testing.T) {
	var out bytes.Buffer
	want := DefaultCore()
	if err := Print(&out, want); err != nil {
		t.Fatal(err)
	}
	got := Core{}
	if err := Parse("printed", out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Join = nil; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

func TestNames(t *testing.T) {
	if names := Names(&Core{}); !slices.Contains(names, "pidFile") || len(names) != 16 {
		t.Errorf("the names are %v", names)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	logger := Log{Level: "warn", Format: "json"}.Logger(&out)
	logger.Info("no")
	logger.Warn("yes", slog.Int("n", 1))
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"msg":"yes","n":1`) {
		t.Errorf("the log is %q", got)
	}
	out.Reset()
	DefaultLog().Logger(&out).Info("text")
	if !strings.Contains(out.String(), "msg=text") {
		t.Errorf("the log is %q", out.String())
	}
}
