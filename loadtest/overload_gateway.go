package loadtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

const (
	gatewaySubscribers = 200 // that take everything and read nothing
	gatewayFlooders    = 4
	gatewayPayload     = 1 << 10
	gatewayClaims      = 200 // connections that claim the largest packet
	gatewayLarge       = 16  // connections that really publish large messages
	gatewayLargeBytes  = 900_000
	gatewaySlowHTTP    = 500 // requests that never end
	gatewayBaseline    = "alone"
)

// gatewayScenarios by name, in the order in which they are run.
var gatewayScenarios = []scenario{
	{name: "mqtt-connections", run: (*attack).mqttConnections},
	{name: "mqtt-slow-subscribers", run: (*attack).mqttSlowSubscribers},
	{name: "mqtt-giant", run: (*attack).mqttGiant},
	{name: "http-slow", run: (*attack).httpSlow},
}

// RunGateway does to a gateway of its own what bad clients do, while two well-behaved devices publish with QoS 1 and measure the time to the PUBACK.
func (l Overload) RunGateway(ctx context.Context) (OverloadResult, error) {
	r := OverloadResult{Load: "overload", Failures: []string{}}
	port := func(n int) string { return "127.0.0.1:" + strconv.Itoa(l.Port+n) }
	gateway := &Node{Name: "edge", HTTP: port(2), dir: l.Data}
	gateway.args = []string{l.Binary, "edge", "--data", filepath.Join(l.Data, "edge"), "--mqtt", port(0), "--websocket", port(1), "--http", gateway.HTTP, "--core", ""}
	l.list = []*Node{gateway}
	defer l.Stop()
	if err := gateway.Start(); err != nil {
		return r, err
	}
	if err := gateway.Ready(ctx); err != nil {
		return r, err
	}
	for _, s := range append([]scenario{{name: gatewayBaseline}}, gatewayScenarios...) {
		if s.name != gatewayBaseline && len(l.Scenarios) > 0 && !slices.Contains(l.Scenarios, s.name) {
			continue
		}
		phase, err := l.gatewayPhase(ctx, s, port(0), gateway.HTTP)
		if err != nil {
			return r, err
		}
		r.Phases = append(r.Phases, phase)
	}
	l.judge(&r)
	return r, ctx.Err()
}

// gatewayPhase is one scenario with the well-behaved devices beside it.
func (l Overload) gatewayPhase(ctx context.Context, s scenario, mqtt, http string) (PhaseResult, error) {
	if l.Progress != nil {
		fmt.Fprintf(l.Progress, "%s  %s\n", time.Now().Format(time.TimeOnly), s.name)
	}
	sampling, stop := context.WithCancel(ctx)
	defer stop()
	peaks := make(chan map[string]Peak, 1)
	go func() { peaks <- l.Sample(sampling) }()
	type outcome struct {
		seen map[string]int64
		err  error
	}
	attacked := make(chan outcome, 1)
	go func() {
		if s.run == nil {
			attacked <- outcome{}
			return
		}
		seen, err := l.attackers(ctx, Attack{Scenario: s.name, Brokers: []string{mqtt, http}, Connections: l.Connections, Duration: l.Phase})
		attacked <- outcome{seen, err}
	}()
	devices := MQTT{Broker: mqtt, Topic: "overload/device", Clients: 2, Window: 1000, QoS: 1, Size: l.Size, Duration: l.Phase, Rate: l.Rate}
	result, err := devices.Run(ctx)
	if err != nil {
		return PhaseResult{}, fmt.Errorf("well-behaved devices during %s: %w", s.name, err)
	}
	done := <-attacked
	stop()
	return PhaseResult{Phase: s.name, Seconds: result.Seconds, Sent: result.Operations + result.Errors, Acked: result.Operations, Errors: result.Errors,
		FirstError: result.FirstError, ProduceMs: result.LatencyMs, Peak: <-peaks, Seen: done.seen}, done.err
}

// packet is an MQTT packet.
func packet(first byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)
}

func mqttString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// mqttConnect is a CONNECT of MQTT 3.1.1 with a clean session.
func mqttConnect(id string) []byte {
	body := append(mqttString(nil, "MQTT"), 4, 2, 0, 60)
	return packet(0x10, mqttString(body, id))
}

func mqttPublish(topic string, payload []byte) []byte {
	return packet(0x30, append(mqttString(nil, topic), payload...))
}

func (a *attack) mqtt(int) string { return a.Brokers[0] }

// mqttHello connects and reads the CONNACK.
func mqttHello(c *rawConn, id string) error {
	if _, err := c.Write(mqttConnect(id)); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(c.br, ack[:]); err != nil {
		return err
	}
	if ack[0] != 0x20 || ack[3] != 0 {
		return fmt.Errorf("CONNACK %x", ack)
	}
	return nil
}

// mqttConnections opens very many sessions that say nothing more than they must.
func (a *attack) mqttConnections(ctx context.Context) {
	start := make(chan struct{}, connectWorkers)
	a.clients(ctx, "session", a.Connections, func(i int) string {
		start <- struct{}{}
		return a.mqtt(i)
	}, func(ctx context.Context, c *rawConn, i int) error {
		err := mqttHello(c, fmt.Sprintf("idle-%d", i))
		<-start
		if err != nil {
			return err
		}
		a.count("sessions", 1)
		for pauseFor(ctx, 30*time.Second) {
			if _, err := c.Write([]byte{0xc0, 0}); err != nil {
				return err
			}
		}
		return nil
	})
}

// mqttSlowSubscribers take everything and read nothing, while a few publish as fast as they can.
func (a *attack) mqttSlowSubscribers(ctx context.Context) {
	a.clients(ctx, "subscriber", gatewaySubscribers, a.mqtt, func(ctx context.Context, c *rawConn, i int) error {
		if err := mqttHello(c, fmt.Sprintf("slow-%d", i)); err != nil {
			return err
		}
		if _, err := c.Write(packet(0x82, append(mqttString([]byte{0, 1}, "#"), 1))); err != nil {
			return err
		}
		a.count("subscribers", 1)
		for pauseFor(ctx, 30*time.Second) {
			if _, err := c.Write([]byte{0xc0, 0}); err != nil {
				return err
			}
		}
		return nil
	})
	publish := mqttPublish("overload/flood", make([]byte, gatewayPayload))
	a.clients(ctx, "flooder", gatewayFlooders, a.mqtt, func(_ context.Context, c *rawConn, i int) error {
		if err := mqttHello(c, fmt.Sprintf("flood-%d", i)); err != nil {
			return err
		}
		for {
			if _, err := c.Write(publish); err != nil {
				return err
			}
			a.count("messages of the flood", 1)
		}
	})
}

// mqttGiant claims the largest packets, before and after CONNECT, publishes large ones, and sends nonsense.
func (a *attack) mqttGiant(ctx context.Context) {
	claim := []byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, 't'}
	a.clients(ctx, "claim", gatewayClaims, a.mqtt, func(ctx context.Context, c *rawConn, i int) error {
		if i%2 == 0 {
			if err := mqttHello(c, fmt.Sprintf("claim-%d", i)); err != nil {
				return err
			}
		} else {
			claim := slices.Clone(claim)
			claim[0] = 0x10
			_, err := c.Write(claim)
			if err == nil {
				_, err = c.br.ReadByte()
			}
			return err
		}
		if _, err := c.Write(claim); err != nil {
			return err
		}
		for pauseFor(ctx, tricklePeriod) {
			if _, err := c.Write(make([]byte, trickleBytes)); err != nil {
				return err
			}
		}
		return nil
	})
	large := mqttPublish("overload/large", make([]byte, gatewayLargeBytes))
	a.clients(ctx, "large publisher", gatewayLarge, a.mqtt, func(_ context.Context, c *rawConn, i int) error {
		if err := mqttHello(c, fmt.Sprintf("large-%d", i)); err != nil {
			return err
		}
		for {
			if _, err := c.Write(large); err != nil {
				return err
			}
			a.count("large messages", 1)
		}
	})
	a.clients(ctx, "nonsense", giantReaders, a.mqtt, func(_ context.Context, c *rawConn, _ int) error {
		if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			return err
		}
		_, err := c.br.ReadByte()
		return err
	})
}

// httpSlow begins requests and never ends them: heads that trickle, and bodies that were announced.
func (a *attack) httpSlow(ctx context.Context) {
	a.clients(ctx, "request", gatewaySlowHTTP, func(int) string { return a.Brokers[1] }, func(ctx context.Context, c *rawConn, i int) error {
		begin := "POST /v1/ingest/overload HTTP/1.1\r\nHost: x\r\nX-Slow: "
		if i%2 == 0 {
			begin = "POST /v1/ingest/overload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
		}
		if _, err := c.Write([]byte(begin)); err != nil {
			return err
		}
		a.count("requests begun", 1)
		for pauseFor(ctx, tricklePeriod) {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		return nil
	})
}
