package firmwaresim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

const (
	keepAlive      = 60 * time.Second
	connectTimeout = 10 * time.Second
	writeTimeout   = 10 * time.Second
	// windowMax is how many messages a device has unacknowledged at most: small boxes have little memory, and the broker's Receive Maximum is not far.
	windowMax = 16
	// reconnectMax bounds paho's own doubling wait between two tries.
	reconnectMax = 10 * time.Second
)

// device is one sensor with a link of its own. Its goroutine (run) owns it.
type device struct {
	id       string
	topic    string
	qos      byte
	senml    bool
	sensor   *sensor
	random   *rand.Rand
	interval time.Duration
	jitter   float64
	offset   time.Duration // of its clock at the start
	drift    float64       // of its clock, as a factor near 1
	lose     Reconnect
	link     link
	client   paho.Client
	queue    [][]byte // readings that wait for the link, oldest first
	queueMax int
	window   chan struct{}
	m        *counters
}

// newDevice draws a device's nature from the scenario's seed and its number.
func newDevice(s *Scenario, zone, kind, n int, m *counters) *device {
	number := uint64((zone*len(Kinds)+kind)*s.DevicesPerSet + n)
	r := rand.New(rand.NewPCG(s.Seed, number))
	k := &Kinds[kind]
	d := &device{
		id: fmt.Sprintf("%s-%s-%d", s.Zones[zone], k.Name, n+1), random: r, interval: s.Interval, jitter: s.Jitter, lose: s.Reconnect,
		sensor: newSensor(k, densityOf(zone, len(s.Zones)), r), senml: r.Float64() < s.SenMLShare, queueMax: s.OfflineQueue,
		offset: time.Duration((2*r.Float64() - 1) * float64(s.Clock.OffsetMax)), drift: 1 + (2*r.Float64()-1)*s.Clock.DriftPPMMax/1e6,
		window: make(chan struct{}, windowMax), m: m,
	}
	switch x := r.Float64(); {
	case x < s.QoS.AtMostOnce:
		d.qos = 0
	case x < s.QoS.AtMostOnce+s.QoS.AtLeastOnce:
		d.qos = 1
	default:
		d.qos = 2
	}
	d.topic = fmt.Sprintf("city/%s/%s/%d", s.Zones[zone], k.Name, n+1)
	if d.senml {
		d.topic += SenMLSuffix
	}
	o := clientOptions(s.Broker, "sim-"+d.id, s.Username, s.Password).
		SetConnectionLostHandler(func(paho.Client, error) { m.lost.Inc() }).
		SetOnConnectHandler(func(paho.Client) { m.connects.Inc() })
	if plain(s.Broker) {
		o.SetCustomOpenConnectionFn(d.link.open)
	} else {
		d.lose.Every = 0
	}
	d.client = paho.NewClient(o)
	return d
}

// clientOptions are those of a careful firmware: a persistent session, resends in order, bounded waits.
func clientOptions(broker, id, username, password string) *paho.ClientOptions {
	return paho.NewClientOptions().AddBroker(broker).SetClientID(id).SetUsername(username).SetPassword(password).
		SetCleanSession(false).SetProtocolVersion(4).SetStore(paho.NewOrderedMemoryStore()).SetOrderMatters(false).
		SetAutoReconnect(true).SetMaxReconnectInterval(reconnectMax).SetConnectRetry(true).SetConnectRetryInterval(time.Second).
		SetKeepAlive(keepAlive).SetConnectTimeout(connectTimeout).SetWriteTimeout(writeTimeout).SetResumeSubs(false)
}

// clock is what the device believes the time to be.
func (d *device) clock(start, now time.Time) time.Time {
	return start.Add(d.offset + time.Duration(float64(now.Sub(start))*d.drift))
}

// run measures and publishes until ctx ends.
func (d *device) run(ctx context.Context, log *slog.Logger) {
	start := time.Now()
	d.client.Connect()
	defer d.client.Disconnect(250)
	next := time.NewTimer(time.Duration(d.random.Float64() * float64(d.interval)))
	defer next.Stop()
	var drop <-chan time.Time
	if d.lose.Every > 0 {
		drop = time.After(d.exponential(d.lose.Every))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-next.C:
			d.measure(start, now)
			d.flush()
			next.Reset(d.wait())
		case <-drop:
			log.Debug("device loses its link", "device", d.id)
			d.m.drops.Inc()
			d.link.cut(d.exponential(d.lose.Down))
			drop = time.After(d.exponential(d.lose.Every))
		}
	}
}

func (d *device) wait() time.Duration {
	return time.Duration(float64(d.interval) * (1 + d.jitter*(2*d.random.Float64()-1)))
}

func (d *device) exponential(mean time.Duration) time.Duration {
	return time.Duration(d.random.ExpFloat64() * float64(mean))
}

// measure takes a reading and queues it; a full queue forgets its oldest.
func (d *device) measure(start, now time.Time) {
	at, v := d.clock(start, now), d.sensor.read(now)
	payload := encodeJSON(at, v, d.sensor.kind.Unit)
	if d.senml {
		payload = encodeSenML(d.id, at, v, d.sensor.kind.Unit)
	}
	if len(d.queue) >= d.queueMax {
		d.queue = d.queue[1:]
		d.m.forgotten.Inc()
	}
	d.queue = append(d.queue, payload)
	d.m.measured.Inc()
}

// flush publishes what is queued, as far as the link and the window allow.
func (d *device) flush() {
	for len(d.queue) > 0 && d.client.IsConnectionOpen() {
		select {
		case d.window <- struct{}{}:
		default:
			return
		}
		token := d.client.Publish(d.topic, d.qos, false, d.queue[0])
		d.queue = d.queue[1:]
		d.m.published.Inc()
		go d.await(token, time.Now())
	}
}

// await frees the window when the broker has acknowledged. A token ends at the latest when the client is disconnected.
func (d *device) await(token paho.Token, since time.Time) {
	<-token.Done()
	<-d.window
	if token.Error() != nil {
		d.m.failed.Inc()
		return
	}
	d.m.acknowledged.Inc()
	d.m.latency.UpdateDuration(since)
}
