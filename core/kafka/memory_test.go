package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// answerProduce answers every Produce request at once.
func answerProduce(_ context.Context, _ *Request) Reply {
	return func(context.Context) Response { return kmsg.NewPtrProduceResponse() }
}

// produceFrame is a whole Produce request of about that many bytes.
func produceFrame(size int) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks = 9, -1
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = make([]byte, size)
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.Partitions = "t", []kmsg.ProduceRequestTopicPartition{part}
	req.Topics = append(req.Topics, topic)
	return frameOf(req, 1)
}

func produceResponse() *kmsg.ProduceResponse {
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = 9
	return resp
}

// claim is the beginning of a Produce request that says it is larger than what follows.
func claim(size, sent int) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(size))
	b = append(b, 0, 0, 0, 9, 0, 0, 0, 1)
	return append(b, make([]byte, sent)...)
}

func (l *lane) free() bool {
	if !l.room.TryAcquire(l.bytes) {
		return false
	}
	l.room.Release(l.bytes)
	return true
}

func (l lanes) free() bool {
	return l.small.free() && l.medium.free() && l.large.free() && l.control.free()
}

// TestClaimsTakeNoMemory checks that announcing the largest frame takes nothing from others until its bytes come.
func TestClaimsTakeNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(answerProduce)})
		for range 50 {
			c := s.l.dial()
			defer c.Close()
			<-send(c, claim(frameBytesMax, unmeteredFrameBytes))
		}
		synctest.Wait()
		if !s.lanes.medium.free() || !s.lanes.large.free() {
			t.Fatal("a claim took memory")
		}
		began := time.Now()
		for _, size := range []int{100, smallFrameBytes * 2, mediumFrameBytes * 3} {
			c := s.l.dial()
			sent := send(c, produceFrame(size))
			receive(t, c, produceResponse())
			<-sent
			c.Close()
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("honest frames waited %v", took)
		}
	})
}

// TestSlowFramesGiveWay checks that who holds memory and sends nothing loses it once others wait for it, and only then.
func TestSlowFramesGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(answerProduce)})
		var slow []net.Conn
		for held := int64(0); held+frameBytesMax <= s.lanes.large.bytes; held += frameBytesMax {
			c := s.l.dial()
			defer c.Close()
			if err := <-send(c, claim(frameBytesMax, smallFrameBytes)); err != nil {
				t.Fatal(err)
			}
			slow = append(slow, c)
		}
		time.Sleep(10 * time.Second) // of the bubble: nobody is in need, nobody is closed
		synctest.Wait()
		if n := s.Connections(); n != len(slow) {
			t.Fatalf("%d connections are left though nobody waits for memory", n)
		}
		honest := s.l.dial()
		defer honest.Close()
		began := time.Now()
		sent := send(honest, produceFrame(frameBytesMax/2))
		receive(t, honest, produceResponse())
		<-sent
		if took := time.Since(began); took > 2*contendedGrace {
			t.Errorf("an honest frame waited %v for a slow one", took)
		}
		for _, c := range slow {
			c.Close()
		}
		synctest.Wait()
		if !s.lanes.free() {
			t.Error("memory did not come back")
		}
	})
}

// TestMemoryIsHeldUntilAnswered checks that requests without records count until they are answered, and all of it comes back.
func TestMemoryIsHeldUntilAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			wait := echo(ctx, r)
			return func(ctx context.Context) Response {
				<-release
				return wait(ctx)
			}
		})})
		c := s.l.dial()
		defer c.Close()
		<-send(c, frameOf(metadataRequest(strings.Repeat("t", 2*smallFrameBytes)), 1))
		synctest.Wait()
		if s.lanes.control.free() {
			t.Error("a request that waits is not counted")
		}
		if !s.lanes.small.free() || !s.lanes.medium.free() {
			t.Error("a request that was read is still counted as a frame")
		}
		close(release)
		receiveMetadata(t, c)
		synctest.Wait()
		if !s.lanes.free() {
			t.Error("memory did not come back")
		}
	})
}

// TestRefusedVersionGivesMemoryBack checks the one way on which a frame is read and never decoded.
func TestRefusedVersionGivesMemoryBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(answerProduce), Versions: NewTable([]Versions{{22, 0, 1}})})
		c := s.l.dial()
		defer c.Close()
		req := kmsg.NewPtrInitProducerIDRequest()
		req.Version, req.TransactionalID = 4, kmsg.StringPtr(strings.Repeat("t", 20_000))
		sent := send(c, frameOf(req, 1))
		receive(t, c, kmsg.NewPtrInitProducerIDResponse())
		<-sent
		synctest.Wait()
		if !s.lanes.free() {
			t.Error("memory did not come back")
		}
	})
}

// TestSlowReadersOfLargeResponses checks that clients which do not read what they asked for are closed when their responses take too much memory.
func TestSlowReadersOfLargeResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := strings.Repeat("i", responseBytesMax/4)
		s := startServer(t, Options{Handler: HandlerFunc(func(context.Context, *Request) Reply {
			resp := kmsg.NewPtrMetadataResponse()
			resp.ClusterID = &id
			return func(context.Context) Response { return resp }
		})})
		var conns []net.Conn
		for range 6 {
			c := s.l.dial()
			defer c.Close()
			<-send(c, frameOf(metadataRequest("t"), 1))
			conns = append(conns, c)
			time.Sleep(responseGrace)
			synctest.Wait()
		}
		if n := s.Connections(); n != 3 {
			t.Errorf("%d connections are left, want 3", n)
		}
		expectClosed(t, conns[0])
		if _, got := receiveMetadata(t, conns[5]); !bytes.Equal([]byte(got), []byte(id)) {
			t.Error("the newest response is damaged")
		}
	})
}

func TestConnectionsPerHostAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo), ConnectionsPerHostMax: 1})
		a := s.l.dial()
		second := s.l.dial()
		expectClosed(t, second)
		second.Close()
		a.Close()
		synctest.Wait()
		b := s.l.dial()
		defer b.Close()
		send(b, frameOf(metadataRequest("t"), 1))
		receiveMetadata(t, b)
	})
}

func TestSilentConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(echo)})
		c := s.l.dial()
		defer c.Close()
		began := time.Now()
		expectClosed(t, c)
		if took := time.Since(began); took > firstRequestTimeout {
			t.Errorf("closed after %v", took)
		}
	})
}
