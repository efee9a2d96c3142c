package tlsfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// authority signs the certificates of a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), n: 1}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(200, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write(t, "ca.pem", "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	var out bytes.Buffer
	if err := pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, name), out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes name.pem and name.key and returns the serial number.
func (a *authority) issue(t *testing.T, name string) int64 {
	t.Helper()
	a.n++
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(200, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".pem", "CERTIFICATE", der)
	a.write(t, name+".key", "EC PRIVATE KEY", keyDER)
	return a.n
}

func (a *authority) files(name string) Files {
	f := Files{CA: filepath.Join(a.dir, "ca.pem")}
	if name != "" {
		f.Cert, f.Key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	}
	return f
}

func open(t *testing.T, f Files, log *bytes.Buffer) *Source {
	t.Helper()
	var logger *slog.Logger
	if log != nil {
		logger = slog.New(slog.NewTextHandler(log, nil))
	}
	s, err := Open(f, logger)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// handshake returns the serial number of the server's certificate as the client saw it.
func handshake(client, server *tls.Config) (int64, error) {
	left, right := net.Pipe()
	defer left.Close()
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(right, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		right.Close()
		done <- err
	}()
	conn := tls.Client(left, client)
	if err := conn.Handshake(); err != nil {
		left.Close()
		<-done
		return 0, err
	}
	_, err := conn.Read(make([]byte, 1)) // in TLS 1.3 a refused client certificate shows here
	left.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), errors.Join(err, <-done)
}

func TestBothEndsProveThemselves(t *testing.T) {
	a := newAuthority(t)
	serial := a.issue(t, "node")
	s := open(t, a.files("node"), nil)
	got, err := handshake(s.Client("localhost"), s.Server())
	if err != nil || got != serial {
		t.Errorf("the handshake gave %d, %v", got, err)
	}
}

func TestAClientWithoutCertificateIsRefused(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "node")
	if _, err := handshake(open(t, a.files(""), nil).Client("localhost"), open(t, a.files("node"), nil).Server()); err == nil {
		t.Error("a client without a certificate was let in")
	}
}

func TestWithoutCANoClientCertificateIsAsked(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "node")
	f := a.files("node")
	f.CA = ""
	if _, err := handshake(open(t, a.files(""), nil).Client("localhost"), open(t, f, nil).Server()); err != nil {
		t.Error(err)
	}
}

func TestARenewedCertificateIsServed(t *testing.T) {
	a := newAuthority(t)
	first := a.issue(t, "node")
	synctest.Test(t, func(t *testing.T) {
		s := open(t, a.files("node"), nil)
		server, client := s.Server(), open(t, a.files("node"), nil).Client("localhost")
		second := a.issue(t, "node")
		// The files' times are the real clock's; a size or time that differs is what counts.
		touch(t, a.files("node").Cert)
		if got, _ := handshake(client, server); got != first {
			t.Errorf("before the next look %d is served, want %d", got, first)
		}
		<-time.After(CheckEvery)
		if got, err := handshake(client, server); got != second {
			t.Errorf("after the next look %d is served, want %d (%v)", got, second, err)
		}
	})
}

func TestABrokenRenewalLeavesWhatWasThere(t *testing.T) {
	a := newAuthority(t)
	first := a.issue(t, "node")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := open(t, a.files("node"), &log)
		client := open(t, a.files("node"), nil).Client("localhost")
		if err := os.WriteFile(a.files("node").Cert, []byte("half a file"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			<-time.After(CheckEvery)
			if got, err := handshake(client, s.Server()); got != first {
				t.Errorf("%d is served, want %d (%v)", got, first, err)
			}
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors are logged, want 1:\n%s", n, log.String())
		}
	})
}

func TestOpenSaysWhichFileIsWrong(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "node")
	for name, change := range map[string]func(*Files){
		"none.pem": func(f *Files) { f.Cert = filepath.Join(a.dir, "none.pem") },
		"none.ca":  func(f *Files) { f.CA = filepath.Join(a.dir, "none.ca") },
		"node.key": func(f *Files) { f.CA = f.Key },
		"ca.pem":   func(f *Files) { f.Key = f.CA },
	} {
		f := a.files("node")
		change(&f)
		if _, err := Open(f, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("the error is %v, want one about %s", err, name)
		}
	}
}

func touch(t *testing.T, name string) {
	t.Helper()
	past := time.Unix(1_000_000, 0)
	if err := os.Chtimes(name, past, past); err != nil {
		t.Fatal(err)
	}
}
