package kafka

import (
	"context"
	"math"
	"sync"
	"time"
)

// A node that does all it can for a few heavy clients is slow for everybody: each step of a small request, on three nodes, waits for a processor or a disk that
// is busy with theirs. Turns and shares do not change that, only leaving some of the time unused does. So heavy clients are held to a rate while there are light
// ones that feel them, and the rate follows what the light ones feel: their Produce requests are timed. Whoever is held is not read from, which TCP
// tells him. Without light clients nobody is held, however busy the node is.
//
// A client is what Kafka's quotas mean by it, and its address: all connections of one principal and client id from one host.
const (
	// requestCost is what a request costs besides its bytes: what it takes of the processors is what so many produced bytes take.
	requestCost = 8 << 10
	// connectionCost is added for the first request of a connection.
	connectionCost = 32 << 10
	// answerShare of an answer's bytes count: they go from the file to the socket, while produced ones are copied, compared and written on every replica.
	answerShare = 8
	// heavyBytes of cost a second make a client heavy. Who takes less is never held.
	heavyBytes = 2 << 20
	// lightLatencyDefault is what a light client's Produce may take in a node before heavy ones are held to less, or paceFactor times what it takes without
	// them if that is longer.
	lightLatencyDefault = 10 * time.Millisecond
	paceFactor          = 3
	// paceBytesMin a second are left to the heavy clients of a node whatever the light ones feel: it may not be their doing. When that is all they have had
	// for paceDoubt, what light ones still feel is what they feel without them: a slow disk, or a busy machine.
	paceBytesMin = 8 << 20
	paceDoubt    = 3 * time.Second
	// pacePeriod is how often the rate changes. It goes down when more than slowPart of the light clients' requests within one took too long.
	pacePeriod = 200 * time.Millisecond
	slowPart   = 0.1
	paceBack   = 0.75 // a step down
	// The rate grows by paceGrow a second, and doubles every second until it has gone down once.
	paceGrow  = 0.25
	paceProbe = 1.0
	// paceBytesFirst is the rate when heavy clients come, so that light ones do not feel their first second, which is all that short loads have.
	paceBytesFirst = 16 << 20
	paceSlack      = 4 // a rate of so many times what is taken holds nobody, and is given up
	// paceMemory is how long a light client is protected after its last Produce.
	paceMemory = 2 * time.Second
	// paceWaitMax bounds what one wait of a held connection may take; very many connections of one client are faster than its rate then.
	paceWaitMax = 5 * time.Second
	// quietWeight is that of one request in the average of what requests take without heavy clients.
	quietWeight = 1.0 / 16
)

// meter is a rate: what was added within the last second, older things counting less and less.
type meter struct {
	sum float64
	at  time.Time
}

func (m *meter) rate(now time.Time) float64 {
	if m.at.IsZero() {
		return 0
	}
	return m.sum * math.Exp(-max(now.Sub(m.at), 0).Seconds())
}

func (m *meter) add(now time.Time, n float64) { m.sum, m.at = m.rate(now)+n, now }

// clientKey says who is one client.
type clientKey struct{ principal, id, host string }

// client is what the connections of one client have in common. The lock of the pacer guards it.
type client struct {
	key   clientKey
	conns int
	use   meter
	free  time.Time // when its next request may be read
	asked time.Time // when its last Produce was answered while it was light
}

// pacer holds the heavy clients of a server to a rate. It knows those that have connections, and those that had some in the last seconds.
type pacer struct {
	target time.Duration // see Options.LightLatency

	mu      sync.Mutex
	clients map[clientKey]*client
	heavy   map[*client]struct{}
	light   map[*client]struct{} // those that produced within the last paceMemory, and some that did before
	taken   meter                // by heavy clients
	rate    float64              // of all heavy clients together, bytes of cost a second; 0: nobody is held
	grow    float64              // by how much a second
	changed time.Time            // when the rate was looked at last
	floor   time.Time            // since when it has been paceBytesMin; zero when it is not
	total   int                  // Produce requests of light clients since changed
	slow    int                  // those of them that took too long
	quiet   time.Duration        // what they take without heavy clients
	looked  time.Time            // when light ones were taken off the heavy ones last
	swept   time.Time            // when clients that are gone were forgotten last
	held    float64              // seconds that connections were made to wait
}

func newPacer(target time.Duration) *pacer {
	return &pacer{target: target, clients: make(map[clientKey]*client), heavy: make(map[*client]struct{}), light: make(map[*client]struct{})}
}

// join counts a connection of a client; leave ends that.
func (p *pacer) join(key clientKey, now time.Time) *client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.swept) > paceMemory {
		p.sweep(now)
	}
	c := p.clients[key]
	if c == nil {
		c = &client{key: key}
		p.clients[key] = c
	}
	c.conns++
	return c
}

// leave keeps the client for a while: who comes anew for each request is one client all the time.
func (p *pacer) leave(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.conns--
}

// sweep forgets clients that are gone and have taken nothing for some seconds.
func (p *pacer) sweep(now time.Time) {
	p.swept = now
	for key, c := range p.clients {
		if c.conns == 0 && c.use.rate(now) < requestCost {
			delete(p.clients, key)
			delete(p.light, c)
		}
	}
}

// spend notes what a client took and returns how long it shall wait before it takes more.
func (p *pacer) spend(now time.Time, c *client, cost int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.use.add(now, float64(cost))
	if c.use.rate(now) < heavyBytes {
		return 0
	}
	if now.Sub(p.looked) > paceMemory { // nobody light has made us look
		p.forgetLight(now)
	}
	delete(p.light, c) // it has nobody to be protected from but itself
	protects := p.protects(now)
	if len(p.heavy) == 0 && protects {
		p.rate, p.grow, p.changed = paceBytesFirst, paceProbe, now
	}
	p.heavy[c] = struct{}{}
	p.taken.add(now, float64(cost))
	if !protects {
		p.rate = 0
	}
	if p.rate == 0 {
		return 0
	}
	return p.turn(now, c, cost)
}

// protects says whether there is a light client that produces.
func (p *pacer) protects(now time.Time) bool {
	for c := range p.light {
		if now.Sub(c.asked) <= paceMemory {
			return true
		}
		delete(p.light, c)
	}
	return false
}

// turn is how long a heavy client waits. What it took counts against its part of the rate, which the next one pays for.
func (p *pacer) turn(now time.Time, c *client, cost int64) time.Duration {
	if c.free.Before(now) {
		c.free = now
	}
	wait := c.free.Sub(now)
	share := p.rate / float64(len(p.heavy))
	c.free = earlier(c.free.Add(time.Duration(float64(cost)/share*float64(time.Second))), now.Add(paceWaitMax))
	p.held += wait.Seconds()
	return wait
}

// felt notes what a client's Produce took, and sets the rate by it if the client is light.
func (p *pacer) felt(now time.Time, c *client, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.target < 0 || c.use.rate(now) >= heavyBytes {
		return
	}
	p.forgetLight(now)
	p.light[c], c.asked = struct{}{}, now
	if len(p.heavy) == 0 {
		p.rate, p.floor = 0, time.Time{}
		p.learn(took)
		return
	}
	if took < p.quiet || !p.floor.IsZero() && now.Sub(p.floor) > paceDoubt {
		p.learn(took)
	}
	if p.total++; took > max(p.target, paceFactor*p.quiet) {
		p.slow++
	}
	if now.Sub(p.changed) >= pacePeriod {
		p.adapt(now)
	}
}

// learn notes what a light client's Produce took that no heavy client is to blame for.
func (p *pacer) learn(took time.Duration) {
	p.quiet += time.Duration(float64(took-p.quiet) * quietWeight)
}

// forgetLight takes those off the heavy ones who are not any more.
func (p *pacer) forgetLight(now time.Time) {
	p.looked = now
	for c := range p.heavy {
		if c.use.rate(now) < heavyBytes {
			delete(p.heavy, c)
		}
	}
}

// adapt changes the rate by what light clients have felt since it changed last.
func (p *pacer) adapt(now time.Time) {
	taken, since := p.taken.rate(now), min(now.Sub(p.changed), time.Second)
	bad := float64(p.slow) > slowPart*float64(p.total)
	p.changed, p.slow, p.total = now, 0, 0
	switch {
	case bad:
		if p.rate == 0 || p.rate > taken {
			p.rate = taken
		}
		p.rate, p.grow = max(p.rate*paceBack, paceBytesMin), paceGrow
		if p.rate == paceBytesMin && p.floor.IsZero() {
			p.floor = now
		}
	case p.rate > max(paceSlack*taken, paceBytesFirst):
		p.rate = 0
	default:
		p.rate, p.floor = p.rate+p.rate*p.grow*since.Seconds(), time.Time{}
	}
}

// holds says whether a client is held to a rate.
func (p *pacer) holds(c *client) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, heavy := p.heavy[c]
	return heavy && p.rate > 0
}

// state returns the rate, 0 for none, and how long connections have been held since the start.
func (p *pacer) state() (bytesPerSecond, heldSeconds float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rate, p.held
}

// identify finds the client that a request belongs to. Only the connection's reader calls it.
func (c *Conn) identify(id string) {
	if c.client != nil && c.client.key.id == id && c.client.key.principal == c.Principal {
		return
	}
	next := c.server.pacer.join(clientKey{principal: c.Principal, id: id, host: c.Host()}, time.Now())
	c.disown()
	c.client = next
}

// disown ends the connection's belonging to a client.
func (c *Conn) disown() {
	if c.client != nil {
		c.server.pacer.leave(c.client)
	}
}

// charge notes what a request costs. What its records cost is the handler's to say, as it may take them in pieces. The first request of a connection
// is paid for before it is served: there may be no second.
func (c *Conn) charge(ctx context.Context, r *Request, size int) {
	first := c.client == nil
	c.identify(r.ClientID)
	cost := int64(requestCost)
	if r.Key != keyProduce {
		cost += weight(r.Key, size)
	}
	if c.Owe(cost); first {
		c.Owe(connectionCost)
		c.Pay(ctx)
	}
}

// Owe adds bytes to what this connection has taken. It is paid for with the next Pay.
func (c *Conn) Owe(bytes int64) { c.owed.Add(bytes) }

// Held says, within Serve, whether this connection's client is held to a rate, as others feel what it does.
func (c *Conn) Held() bool { return c.client != nil && c.server.pacer.holds(c.client) }

// Pay waits, within Serve, while this connection's client takes more than it may beside others, and returns for how long. The server does so before
// each request; a handler does before it goes on with a large one. It returns at once for a client that is not heavy, and when ctx ends.
func (c *Conn) Pay(ctx context.Context) (waited time.Duration) {
	if c.client == nil {
		return 0
	}
	owed := c.owed.Swap(0)
	if owed == 0 {
		return 0
	}
	wait := c.server.pacer.spend(time.Now(), c.client, owed)
	if wait <= 0 {
		return 0
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.stopped:
	case <-ctx.Done():
	}
	return wait
}
