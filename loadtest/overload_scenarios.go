package loadtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	slowConsumers = 400 // connections that ask and never read
	slowPipeline  = 64  // requests that each sends before it stops

	giantClaims   = 100 // connections that claim the largest frame and trickle
	giantSenders  = 12  // connections that really send large frames
	giantAskers   = 12  // connections that name 100,000 partitions
	giantReaders  = 6   // connections that fetch 2 GB and read it
	giantNames    = 100_000
	giantFrame    = 100 << 20
	giantBatch    = 1_000_000 // just below max.message.bytes
	trickleBytes  = 1 << 10
	tricklePeriod = time.Second

	tinyProducers = 200
	tinyStorms    = 60
	tinyChurners  = 16
	tinyInFlight  = 5

	fastProducers  = 8 // connections for each kind of acks
	fastBatch      = 1_000_000
	activeOneOf    = 10 // of the many connections, one in so many asks something every second
	connectWorkers = 64
)

// connections opens very many connections to one node; a tenth of them ask something every second, all have said hello.
func (a *attack) connections(ctx context.Context) {
	target := a.node(0)
	start := make(chan struct{}, connectWorkers)
	a.clients(ctx, "connection", a.Attack.Connections, func(int) string {
		start <- struct{}{}
		return target
	}, func(ctx context.Context, c *rawConn, i int) error {
		_, err := c.call(apiVersions(), nil)
		<-start
		if err != nil {
			return err
		}
		a.count("connections that were greeted", 1)
		for i%activeOneOf == 0 {
			began := time.Now()
			if _, err := c.call(metadataOf(a.Topic), nil); err != nil {
				return err
			}
			a.count("answers to the active ones", 1)
			if time.Since(began) > time.Second {
				a.count("answers that took over a second", 1)
			}
			if !pauseFor(ctx, time.Second) {
				return nil
			}
		}
		_, err = c.receive(nil) // nothing comes until the server closes
		return err
	})
}

func metadataOf(topics ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 9
	for _, name := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	return req
}

// slowConsumers ask for as much as can be asked for, again and again, and never read; some ask for metadata of everything instead.
func (a *attack) slowConsumers(ctx context.Context) {
	a.clients(ctx, "slow consumer", slowConsumers, a.leaderOf, func(ctx context.Context, c *rawConn, i int) error {
		var req kmsg.Request = fetchOf(a.Topic, math.MaxInt32, time.Second, a.ledBy(a.leaderOf(i))...)
		if i%4 == 0 {
			all := kmsg.NewPtrMetadataRequest()
			all.Version = 9
			req = all
		}
		for range slowPipeline {
			if err := c.send(req); err != nil {
				return err
			}
			a.count("requests of slow consumers", 1)
		}
		<-ctx.Done()
		return nil
	})
}

// giant sends and claims what is as large as it may be, and larger.
func (a *attack) giant(ctx context.Context) {
	a.clients(ctx, "claim of 100 MiB", giantClaims, a.leaderOf, a.claim)
	a.clients(ctx, "100 MiB of batches", giantSenders, a.leaderOf, a.sendGiant)
	a.clients(ctx, "100,000 partitions", giantAskers, a.leaderOf, a.askGiant)
	a.clients(ctx, "fetch of 2 GB", giantReaders, a.leaderOf, func(_ context.Context, c *rawConn, i int) error {
		for {
			n, err := c.call(fetchOf(a.Topic, math.MaxInt32, time.Second, a.ledBy(a.leaderOf(i))...), nil)
			if err != nil {
				return err
			}
			a.count("MB fetched 2 GB at a time", n/1e6)
		}
	})
	a.clients(ctx, "nonsense", giantReaders, a.node, a.nonsense)
}

// claim says that 100 MiB will come and sends a KiB a second of it.
func (a *attack) claim(ctx context.Context, c *rawConn, i int) error {
	partition, _ := a.leader(i)
	frame := frameOf(produceOf(a.Topic, -1, batchOf(1, 100), partition), 1)
	binary.BigEndian.PutUint32(frame, giantFrame)
	if _, err := c.Write(frame); err != nil {
		return err
	}
	a.count("100 MiB frames claimed", 1)
	more := make([]byte, trickleBytes)
	for pauseFor(ctx, tricklePeriod) {
		if _, err := c.Write(more); err != nil {
			return err
		}
	}
	return nil
}

// sendGiant sends frames of nearly 100 MiB: many batches just below max.message.bytes, over all partitions of the node.
func (a *attack) sendGiant(_ context.Context, c *rawConn, i int) error {
	batch := batchOf(1, giantBatch)
	partitions := a.ledBy(a.leaderOf(i))
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 9, -1, 60000
	for size := 0; size+len(batch) < giantFrame-(1<<20); size += len(batch) {
		t := produceOf(a.Topic, -1, batch, partitions[size/len(batch)%len(partitions)]).Topics[0]
		req.Topics = append(req.Topics, t)
	}
	frame := frameOf(req, 1)
	for {
		if _, err := c.Write(frame); err != nil {
			return err
		}
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = req.Version
		if _, err := c.receive(resp); err != nil {
			return err
		}
		a.countProduced("giant", resp)
	}
}

func (a *attack) countProduced(kind string, resp *kmsg.ProduceResponse) {
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 {
				a.count(kind+" batches acknowledged", 1)
			} else {
				a.count(kind+" batches refused: "+errorName(p.ErrorCode), 1)
			}
		}
	}
}

// askGiant names 100,000 partitions or topics in one request, and reads the answer.
func (a *attack) askGiant(_ context.Context, c *rawConn, i int) error {
	var req kmsg.Request
	if i%2 == 0 {
		partitions := make([]int32, giantNames)
		for p := range partitions {
			partitions[p] = int32(p)
		}
		req = fetchOf(a.Topic, math.MaxInt32, time.Second, partitions...)
	} else {
		names := make([]string, giantNames)
		for n := range names {
			names[n] = fmt.Sprintf("there-is-no-such-topic-%d", n)
		}
		m := metadataOf(names...)
		m.AllowAutoTopicCreation = false
		req = m
	}
	frame := frameOf(req, 1)
	for {
		if _, err := c.Write(frame); err != nil {
			return err
		}
		if _, err := c.receive(nil); err != nil {
			return err
		}
		a.count("answers for 100,000 names", 1)
	}
}

// nonsense sends what is no frame, or one that nobody may send.
func (a *attack) nonsense(_ context.Context, c *rawConn, i int) error {
	frames := [][]byte{
		{0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 9}, {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9}, []byte("GET / HTTP/1.1\r\n\r\n"),
		{0, 0, 0, 10, 0, 3, 0, 99, 0, 0, 0, 1, 0xff, 0xff}, {0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff},
	}
	if _, err := c.Write(frames[i%len(frames)]); err != nil {
		return err
	}
	_, err := c.receive(nil)
	return err
}

// tiny sends the smallest requests as fast as it can.
func (a *attack) tiny(ctx context.Context) {
	batch := batchOf(1, 1)
	a.clients(ctx, "tiny producer", tinyProducers, a.leaderOf, func(_ context.Context, c *rawConn, i int) error {
		partition, _ := a.leader(i)
		return a.pump(c, produceOf(a.Topic, -1, batch, partition), tinyInFlight, "tiny")
	})
	a.clients(ctx, "storm", tinyStorms, a.node, func(_ context.Context, c *rawConn, _ int) error {
		for {
			if _, err := c.call(apiVersions(), nil); err != nil {
				return err
			}
			a.count("ApiVersions answered", 1)
		}
	})
	for i := range tinyChurners {
		a.all.Go(func() {
			for ctx.Err() == nil {
				err := a.client(ctx, a.node(i), i, func(_ context.Context, c *rawConn, _ int) error {
					_, err := c.call(apiVersions(), nil)
					return err
				})
				if err != nil && ctx.Err() == nil {
					a.count("churn "+ending(err), 1)
				} else {
					a.count("connections made for one request", 1)
				}
			}
		})
	}
}

// pump keeps requests in flight, 0 for as many as the connection takes, and counts the answers.
func (a *attack) pump(c *rawConn, req *kmsg.ProduceRequest, inFlight int, kind string) error {
	frame := frameOf(req, 1)
	if req.Acks == 0 {
		for {
			if _, err := c.Write(frame); err != nil {
				return err
			}
			a.count(kind+" requests sent", 1)
		}
	}
	window := make(chan struct{}, max(inFlight, 1))
	failed := make(chan error, 1)
	go func() {
		for {
			resp := kmsg.NewPtrProduceResponse()
			resp.Version = req.Version
			if _, err := c.receive(resp); err != nil {
				failed <- err
				c.Close()
				return
			}
			a.countProduced(kind, resp)
			if inFlight > 0 {
				<-window
			}
		}
	}()
	for {
		if inFlight > 0 {
			select {
			case window <- struct{}{}:
			case err := <-failed:
				return err
			}
		}
		if _, err := c.Write(frame); err != nil {
			c.Close()
			return <-failed
		}
	}
}

// fastProducer sends large batches without waiting for answers, and as many without wanting any.
func (a *attack) fastProducer(ctx context.Context) {
	batch := batchOf(1, fastBatch)
	a.clients(ctx, "acks=all producer", fastProducers, a.leaderOf, func(_ context.Context, c *rawConn, i int) error {
		partition, _ := a.leader(i)
		return a.pump(c, produceOf(a.Topic, -1, batch, partition), 0, "acks=all")
	})
	a.clients(ctx, "acks=0 producer", fastProducers, a.leaderOf, func(_ context.Context, c *rawConn, i int) error {
		partition, _ := a.leader(i)
		return a.pump(c, produceOf(a.Topic, 0, batch, partition), 0, "acks=0")
	})
}
