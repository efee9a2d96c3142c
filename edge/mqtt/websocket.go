package mqtt

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/gorilla/websocket"
)

// webServer upgrades HTTP connections to MQTT over WebSocket (MQTT 5, chapter 6).
type webServer struct {
	server   *Server
	listener net.Listener
	http     *http.Server
	upgrader websocket.Upgrader
}

func newWebServer(s *Server, l net.Listener) *webServer {
	w := &webServer{server: s, listener: l}
	w.upgrader = websocket.Upgrader{
		Subprotocols: []string{"mqtt", "mqttv3.1"}, HandshakeTimeout: s.config.ConnectTimeout,
		ReadBufferSize: readBytesMin, WriteBufferSize: readBytesMin, CheckOrigin: w.mayComeFrom,
	}
	mux := http.NewServeMux()
	mux.HandleFunc(s.config.WebSocket.Path, w.upgrade)
	w.http = &http.Server{Handler: mux, ReadHeaderTimeout: s.config.ConnectTimeout, MaxHeaderBytes: 16 << 10}
	return w
}

// run serves handshakes until the listener is closed. What was upgraded belongs to the connections then.
func (w *webServer) run() {
	if err := w.http.Serve(w.listener); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		w.server.logger.Error("the websocket listener ended", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), closingTime)
	defer cancel()
	if err := w.http.Shutdown(ctx); err != nil {
		w.http.Close()
	}
}

// mayComeFrom keeps other sites' pages from using a browser's access to the gateway.
func (w *webServer) mayComeFrom(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	allowed := w.server.config.WebSocket.Origins
	if origin == "" || slices.Contains(allowed, "*") || slices.Contains(allowed, origin) {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	return u.Hostname() == host // the page came from this host, if from another port
}

func (w *webServer) upgrade(rw http.ResponseWriter, r *http.Request) {
	ws, err := w.upgrader.Upgrade(rw, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	if ws.Subprotocol() == "" && r.Header.Get("Sec-WebSocket-Protocol") != "" {
		ws.Close() // it speaks something else
		return
	}
	if t, ok := ws.UnderlyingConn().(*net.TCPConn); ok {
		tuneTCP(t)
	}
	ws.SetReadLimit(int64(w.server.config.MaxPacketBytes) + readBytesMax)
	w.server.start(&webSocket{Conn: ws})
}

// webSocket is a stream over binary frames. Packets may begin and end anywhere in them (MQTT-6.0.0-2).
type webSocket struct {
	*websocket.Conn
	frame io.Reader
}

func (w *webSocket) under() net.Conn { return w.UnderlyingConn() }

var errTextFrame = errors.New("mqtt over websocket: a text frame")

func (w *webSocket) Read(b []byte) (int, error) {
	for {
		if w.frame == nil {
			kind, frame, err := w.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage { // MQTT-6.0.0-1
				w.Close()
				return 0, errTextFrame
			}
			w.frame = frame
		}
		n, err := w.frame.Read(b)
		if err == io.EOF {
			w.frame = nil
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends one frame. Only the connection's writer calls it.
func (w *webSocket) Write(b []byte) (int, error) {
	if err := w.WriteMessage(websocket.BinaryMessage, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// SetDeadline makes it a net.Conn; the connections set their read and write deadlines apart.
func (w *webSocket) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}
