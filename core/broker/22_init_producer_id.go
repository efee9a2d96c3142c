package broker

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/kafka"
)

// InitProducerId (22), versions 0 to 5.
//
// Gives a new producer id to an idempotent producer (KIP-98). Ids come from the metadata in blocks; what a node has left of its block when it stops is never given
// out. A producer without a transactional id that names its old id (KIP-360, v3) gets a new one as well, as in Kafka. Transactions are not in this release, and no
// key of theirs is advertised: a transactional id is answered with UNSUPPORTED_VERSION, which clients take as final.
func init() { register(22, 0, 5, (*Broker).handleInitProducerID) }

const (
	// producerIDBlock is how many ids a node takes at once, Kafka's own number.
	producerIDBlock = 1000
	// producerIDTimeout bounds the wait for a block; the client tries again.
	producerIDTimeout = 10 * time.Second
)

func (b *Broker) handleInitProducerID(_ context.Context, r *kafka.Request) kafka.Reply {
	req := r.Body.(*kmsg.InitProducerIDRequest)
	return func(ctx context.Context) kafka.Response {
		resp := kmsg.NewPtrInitProducerIDResponse()
		resp.ProducerID, resp.ProducerEpoch = -1, -1
		switch {
		case req.TransactionalID == nil:
			resp.ErrorCode = b.newProducerID(ctx, resp)
		case *req.TransactionalID == "":
			resp.ErrorCode = codeInvalidRequest
		default:
			resp.ErrorCode = codeUnsupportedVersion
		}
		b.metrics.failed("InitProducerId", resp.ErrorCode)
		return resp
	}
}

func (b *Broker) newProducerID(ctx context.Context, resp *kmsg.InitProducerIDResponse) int16 {
	ctx, cancel := context.WithTimeout(ctx, producerIDTimeout)
	defer cancel()
	id, err := b.producers.next(ctx, b.ctl.AllocateProducerIDs)
	if err != nil {
		b.log.Warn("no producer id", "error", err)
		return codeCoordinatorNotAvailable
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	return codeNone
}

// producerIDs is a node's block of unused producer ids.
type producerIDs struct {
	lock sync.Mutex
	from int64
	left int
	// fetching is held by whoever asks for the next block: those who come meanwhile wait for it instead of taking blocks of their own.
	fetching chan struct{}
}

func newProducerIDs() *producerIDs { return &producerIDs{fetching: make(chan struct{}, 1)} }

// next returns an id that was never given out, asking for a new block when the last one is used up.
func (p *producerIDs) next(ctx context.Context, allocate func(context.Context, int) (int64, error)) (int64, error) {
	if id, ok := p.take(); ok {
		return id, nil
	}
	select {
	case p.fetching <- struct{}{}:
		defer func() { <-p.fetching }()
	case <-ctx.Done():
		return -1, ctx.Err()
	}
	if id, ok := p.take(); ok {
		return id, nil
	}
	first, err := allocate(ctx, producerIDBlock)
	if err != nil {
		return -1, err
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	p.from, p.left = first+1, producerIDBlock-1
	return first, nil
}

func (p *producerIDs) take() (int64, bool) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.left == 0 {
		return -1, false
	}
	p.from++
	p.left--
	return p.from - 1, true
}
