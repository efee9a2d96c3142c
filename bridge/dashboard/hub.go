package dashboard

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

// hub hands frames to browsers. A browser's queue is bounded; one that is full is closed.
type hub struct {
	mu      sync.Mutex
	clients map[chan []byte]struct{}
	closed  bool
}

func newHub() *hub { return &hub{clients: map[chan []byte]struct{}{}} }

func (h *hub) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients)
}

// join returns the queue of a new browser, or nil when there are too many. The channel is closed when the browser must go.
func (h *hub) join() chan []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.clients) >= clientsMax {
		return nil
	}
	c := make(chan []byte, frameQueue)
	h.clients[c] = struct{}{}
	return c
}

func (h *hub) leave(c chan []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked(c)
}

func (h *hub) dropLocked(c chan []byte) {
	if _, ok := h.clients[c]; ok {
		delete(h.clients, c)
		close(c)
	}
}

// run sends a frame per tick until ctx ends, then lets every browser go.
func (h *hub) run(ctx context.Context, m *model) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			h.close()
			return nil
		case <-ticker.C:
			h.send(encode("frame", m.step()))
		}
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c := range h.clients {
		h.dropLocked(c)
	}
}

func (h *hub) send(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.clients {
		select {
		case c <- b:
		default:
			h.dropLocked(c)
		}
	}
}

// encode makes one server-sent event.
func encode(event string, f frame) []byte {
	data, err := json.Marshal(f)
	if err != nil {
		panic("BUG: encode frame: " + err.Error())
	}
	b := append([]byte("event: "+event+"\ndata: "), data...)
	return append(b, "\n\n"...)
}
