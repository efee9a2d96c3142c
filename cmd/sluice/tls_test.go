package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificates writes ca.pem, node.pem and node.key for 127.0.0.1 and returns their directory.
func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	caKey, ca := certificate(t, nil, nil, "authority")
	nodeKey, node := certificate(t, ca, caKey, "node")
	keyDER, err := x509.MarshalECPrivateKey(nodeKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: ca.Raw}, "node.pem": {Type: "CERTIFICATE", Bytes: node.Raw}, "node.key": {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// certificate makes an authority when there is no parent.
func certificate(t *testing.T, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, name string) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
	}
	if parent == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// Two nodes that prove themselves to each other, and clients that prove themselves to them.
func TestTLSEverywhere(t *testing.T) {
	dir := certificates(t)
	file := filepath.Join(t.TempDir(), "core.yaml")
	text := fmt.Sprintf("tls:\n  kafka: {cert: %[1]s/node.pem, key: %[1]s/node.key, ca: %[1]s/ca.pem}\n  node: {cert: %[1]s/node.pem, key: %[1]s/node.key, ca: %[1]s/ca.pem}\n", dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	first := startCore(t, t.TempDir(), "-c", file)
	startCore(t, t.TempDir(), "-c", file, "--id", "2", "--join", first.address("node"))
	flags := []string{"--tls-ca", dir + "/ca.pem", "--tls-cert", dir + "/node.pem", "--tls-key", dir + "/node.key"}
	eventually(t, has("topic t"), append([]string{"topic", "create", "t", "-r", "2", "-p", "1", "--if-not-exists"}, flags...)...)
	ok(t, "secret\n", append([]string{"produce", "t"}, flags...)...)
	if got := ok(t, "", append([]string{"consume", "t", "--from", "earliest", "-e"}, flags...)...); got != "secret\n" {
		t.Errorf("the topic holds %q", got)
	}
	if r := sluice(t, "", "topic", "list", "--timeout", "3s"); r.code != 1 {
		t.Errorf("a client without TLS: %d %q", r.code, r.err)
	}
	if r := sluice(t, "", "topic", "list", "--timeout", "3s", "--tls-ca", dir+"/ca.pem"); r.code != 1 {
		t.Errorf("a client without a certificate: %d %q", r.code, r.err)
	}
	if r := sluice(t, "", "topic", "list", "--tls-cert", dir+"/node.pem"); r.code != 2 || !strings.Contains(r.err, "belong together") {
		t.Errorf("a certificate without its key: %d %q", r.code, r.err)
	}
}
