package kafka

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestWindow checks how the window follows its reader.
func TestWindow(t *testing.T) {
	const mib = 1 << 20
	var w window
	for i, step := range []struct {
		mib  int64
		took time.Duration
		want int64 // MiB, afterwards
	}{
		{1, 0, 2}, {2, time.Millisecond, 4}, {4, time.Second, 8},
		{1, 0, 8},                    // did not fill it: says nothing
		{8, time.Second + 1, 8},      // as fast as it should be
		{8, 5 * time.Second, 4},      // too slow
		{1, time.Hour, 2}, {1, 0, 2}, // not even that much
		{1, time.Hour, 1}, {1, time.Hour, 1}, // the least
		{1, 0, 2}, {2, 0, 4}, {4, 0, 8}, {8, 0, 16}, {16, 0, 32}, {32, 0, 64}, {55, 0, 64}, // the most
	} {
		if w.answered(step.mib*mib, step.took); w.size() != step.want*mib {
			t.Fatalf("step %d: window of %d bytes, want %d MiB", i, w.size(), step.want)
		}
	}
}

// windowful answers each request with as many bytes as the connection takes.
func windowful(_ context.Context, r *Request) Reply {
	return func(context.Context) Response {
		f := &FetchResponse{FetchResponse: *kmsg.NewPtrFetchResponse()}
		topic := kmsg.NewFetchResponseTopic()
		topic.Partitions = []kmsg.FetchResponseTopicPartition{kmsg.NewFetchResponseTopicPartition()}
		f.Topics, f.Records = append(f.Topics, topic), [][]Payload{{bytesPayload(bytes.Repeat([]byte{1}, int(r.Conn.AnswerBytes())))}}
		return f
	}
}

// TestWindowOfReader checks the same on a connection: it grows with what is read, and shrinks for one that reads slowly.
func TestWindowOfReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startServer(t, Options{Handler: HandlerFunc(windowful)})
		c := s.l.dial()
		defer c.Close()
		req := kmsg.NewPtrFetchRequest()
		req.Version = 13
		got := func(pause time.Duration) int {
			if err := <-send(c, frameOf(req, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause) // of the bubble's clock
			resp := kmsg.NewPtrFetchResponse()
			resp.Version = 13
			receive(t, c, resp)
			synctest.Wait()
			return len(resp.Topics[0].Partitions[0].RecordBatches) >> 20
		}
		var seen []int
		for _, pause := range []time.Duration{0, 0, 0, 10 * time.Second, 10 * time.Second, 0, 0} {
			seen = append(seen, got(pause))
		}
		if want := "[1 2 4 8 4 2 4]"; fmt.Sprint(seen) != want {
			t.Errorf("answers of %v MiB, want %s", seen, want)
		}
	})
}

// TestWindowOfSilent checks that a client which asks and asks and never reads has one small answer made for it.
func TestWindowOfSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, made := 0, int64(0)
		s := startServer(t, Options{Handler: HandlerFunc(func(ctx context.Context, r *Request) Reply {
			asked++
			reply := windowful(ctx, r)
			return func(ctx context.Context) Response { made += r.Conn.AnswerBytes(); return reply(ctx) }
		})})
		c := s.l.dial()
		req := kmsg.NewPtrFetchRequest()
		req.Version = 13
		for i := range int32(20) {
			if err := <-send(c, frameOf(req, i)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if asked != 20 || made != windowMin {
			t.Errorf("%d requests were served, %d bytes of answers made", asked, made)
		}
		c.Close()
		_, _ = io.Copy(io.Discard, c) // closed: nothing comes
		synctest.Wait()
	})
}
