package kafka

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestTCP checks the way over a real socket: large payloads and an orderly end.
func TestTCP(t *testing.T) {
	testSocket(t, nil, net.Dial)
}

// TestTLS checks the same with TLS, and that what is no handshake costs only its connection.
func TestTLS(t *testing.T) {
	cert, pool := certificate(t)
	testSocket(t, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, func(network, addr string) (net.Conn, error) {
		plain, err := net.Dial(network, addr)
		if err != nil {
			return nil, err
		}
		defer plain.Close()
		if _, err := plain.Write(frameOf(metadataRequest("plain"), 1)); err != nil {
			return nil, err
		}
		if b, err := io.ReadAll(plain); len(b) > 64 { // an alert, at most
			t.Errorf("a plain request was answered with %d bytes, %v", len(b), err)
		}
		return tls.Dial(network, addr, &tls.Config{RootCAs: pool, ServerName: "broker"})
	})
}

// certificate makes a certificate of its own authority for the name "broker".
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"broker"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func testSocket(t *testing.T, config *tls.Config, dial func(network, addr string) (net.Conn, error)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	payload := bytesPayload(bytes.Repeat([]byte("0123456789abcdef"), 1<<16))
	released := make(chan struct{}, 1)
	s := NewServer(Options{Versions: testTable(), Handler: HandlerFunc(func(context.Context, *Request) Reply {
		return func(context.Context) Response {
			f := &FetchResponse{FetchResponse: *kmsg.NewPtrFetchResponse(), OnRelease: func() { released <- struct{}{} }}
			topic := kmsg.NewFetchResponseTopic()
			topic.Partitions = []kmsg.FetchResponseTopicPartition{kmsg.NewFetchResponseTopicPartition()}
			f.Topics, f.Records = append(f.Topics, topic), [][]Payload{{payload}}
			return f
		}
	})})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, Listener{Name: "CLIENTS", Listener: l, TLS: config}) }()
	c, err := dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := kmsg.NewPtrFetchRequest()
	req.Version = 13
	for i := range int32(3) {
		if _, err := c.Write(frameOf(req, i)); err != nil {
			t.Fatal(err)
		}
		resp := kmsg.NewPtrFetchResponse()
		resp.Version = 13
		if id := receive(t, c, resp); id != i || !bytes.Equal(resp.Topics[0].Partitions[0].RecordBatches, payload) {
			t.Fatalf("response %d differs", id)
		}
		<-released
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	var metrics strings.Builder
	s.WritePrometheus(&metrics)
	for _, want := range []string{`sluice_kafka_requests_total{api="Fetch"} 3`, `sluice_kafka_connections 0`} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}
