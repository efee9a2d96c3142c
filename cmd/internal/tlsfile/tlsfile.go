// Package tlsfile keeps TLS configurations whose certificates lie in PEM files and are read
// again when the files change, so that a renewed certificate needs no restart.
//
// Files are looked at when a handshake begins, at most once in CheckEvery; no goroutine runs.
// A file that cannot be read or does not fit its key leaves what was in force, and is reported
// once per change. Connections that stand are not touched.
package tlsfile

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// CheckEvery is how old a loaded certificate may be before its files are looked at again.
// Renewals come days ahead of an expiry; a stat per handshake would only cost.
const CheckEvery = 10 * time.Second

// ErrNoCertificates is returned when a CA file holds no PEM certificate.
var ErrNoCertificates = errors.New("holds no certificate in PEM form")

// Files names the PEM files of one end.
type Files struct {
	Cert, Key string // own certificate with its chain; may be empty for a client
	CA        string // who signs the other end's; empty for the system's on a client, for no client certificates on a server
}

// Source hands out configurations that follow their files.
type Source struct {
	files  Files
	logger *slog.Logger

	mu struct {
		sync.Mutex
		checked time.Time
		stamps  [3]stamp
		loaded
	}
}

// loaded is what one reading of the files gave.
type loaded struct {
	cert *tls.Certificate
	pool *x509.CertPool
}

// stamp tells one version of a file from another.
type stamp struct {
	mod  time.Time
	size int64
}

// Open reads the files. A nil logger discards.
func Open(f Files, logger *slog.Logger) (*Source, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Source{files: f, logger: logger}
	stamps := f.stamps()
	l, err := f.load()
	if err != nil {
		return nil, err
	}
	s.mu.loaded, s.mu.stamps, s.mu.checked = l, stamps, time.Now()
	return s, nil
}

func (f Files) load() (l loaded, err error) {
	if f.Cert != "" {
		cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return l, fmt.Errorf("load certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		l.cert = &cert
	}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return l, fmt.Errorf("load trusted certificates: %w", err)
		}
		l.pool = x509.NewCertPool()
		if !l.pool.AppendCertsFromPEM(pem) {
			return l, fmt.Errorf("load trusted certificates: %s %w", f.CA, ErrNoCertificates)
		}
	}
	return l, nil
}

func (f Files) stamps() (out [3]stamp) {
	for i, name := range []string{f.Cert, f.Key, f.CA} {
		if info, err := os.Stat(name); err == nil {
			out[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return out
}

// current returns what is in force, after a look at the files when the last one was too long ago.
func (s *Source) current() loaded {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.mu.checked) < CheckEvery {
		return s.mu.loaded
	}
	s.mu.checked = time.Now()
	// The stamps are taken before the files are read: a change in between is seen next time.
	if stamps := s.files.stamps(); stamps != s.mu.stamps {
		s.mu.stamps = stamps
		s.reloadLocked()
	}
	return s.mu.loaded
}

func (s *Source) reloadLocked() {
	l, err := s.files.load()
	if err != nil {
		s.logger.Error("changed certificate cannot be used, the one before stays", "error", err)
		return
	}
	s.mu.loaded = l
	s.logger.Info("certificate was read again", "cert", s.files.Cert, "ca", s.files.CA)
}

// Server returns a configuration for a listener. With a CA file clients must show a certificate.
func (s *Source) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			l := s.current()
			c := &tls.Config{MinVersion: tls.VersionTLS12}
			if l.cert != nil {
				c.Certificates = []tls.Certificate{*l.cert}
			}
			if l.pool != nil {
				c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, l.pool
			}
			return c, nil
		},
	}
}

// Client returns a configuration for one connection to the named server, as the files are
// now: ask for a new one for every connection that shall see renewed authorities.
func (s *Source) Client(serverName string) *tls.Config {
	l := s.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: serverName, RootCAs: l.pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := s.current().cert; cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil
		},
	}
}
