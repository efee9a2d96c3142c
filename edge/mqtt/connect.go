package mqtt

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// refused is returned after a CONNACK that says no: everything has been said.
func refused(code packets.Code) error { return &stop{code, false} }

// connect answers a CONNECT.
func (c *conn) connect(first byte, body []byte) error {
	p, code := parseConnect(first, body)
	c.version = p.ProtocolVersion
	if code != packets.CodeSuccess {
		return c.refuseConnect(code)
	}
	if code = c.admit(p); code != packets.CodeSuccess {
		c.server.metrics.denied.Inc()
		return c.refuseConnect(code)
	}
	ack := c.limits(p)
	sess, present := c.server.attach(c, p)
	if sess == nil {
		c.server.metrics.denied.Inc()
		return c.refuseConnect(packets.ErrServerBusy)
	}
	c.session = sess
	ack.SessionPresent = present
	c.write(func(b []byte) []byte { return append(b, encode(ack)...) })
	sess.resume(c, c.window(p))
	sess.pump()
	return nil
}

// admit decides who may connect, and gives a name to who has none.
func (c *conn) admit(p *connectPacket) packets.Code {
	if p.ProtocolVersion == 5 && p.Properties.AuthenticationMethod != "" {
		return packets.ErrBadAuthenticationMethod
	}
	if p.Connect.ClientIdentifier == "" {
		if p.ProtocolVersion < 5 && !p.Connect.Clean { // MQTT-3.1.3-8
			return packets.ErrClientIdentifierNotValid
		}
		p.Connect.ClientIdentifier = randomID()
		p.Properties.AssignedClientID = p.Connect.ClientIdentifier
	}
	if c.user = c.server.users.login(string(p.Connect.Username), p.Connect.Password, c.certificateName()); c.user == nil {
		return packets.ErrBadUsernameOrPassword
	}
	if w := p.will; w != nil {
		w.From = p.Connect.ClientIdentifier
		if !c.user.MayPublish(w.From, w.Topic) {
			return packets.ErrNotAuthorized
		}
	}
	return packets.CodeSuccess
}

func randomID() string {
	var b [12]byte
	rand.Read(b[:])
	return "auto-" + hex.EncodeToString(b[:])
}

// certificateName is the common name of the client's certificate, "" without one.
func (c *conn) certificateName() string {
	nc := c.nc
	if w, ok := nc.(*webSocket); ok {
		nc = w.under()
	}
	t, ok := nc.(*tls.Conn)
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		return ""
	}
	return t.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// limits takes over what the client asks for and returns the CONNACK with what it gets.
func (c *conn) limits(p *connectPacket) *packets.Packet {
	config := &c.server.config
	ack := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ProtocolVersion: c.version}
	keepAlive := time.Duration(p.Connect.Keepalive) * time.Second
	if c.version == 5 {
		c.maxPacket = p.Properties.MaximumPacketSize
		ack.Properties = packets.Properties{
			AssignedClientID:  p.Properties.AssignedClientID,
			ReceiveMaximum:    uint16(config.ReceiveMaximum),
			TopicAliasMaximum: uint16(config.TopicAliasMaximum),
			MaximumPacketSize: uint32(config.MaxPacketBytes),
		}
		if most := config.KeepAliveMax; most > 0 && (keepAlive == 0 || keepAlive > most) {
			keepAlive = most
			ack.Properties.ServerKeepAlive, ack.Properties.ServerKeepAliveFlag = uint16(most/time.Second), true
		}
		if asked := p.expiry(c.version); asked != c.server.clampExpiry(asked) {
			ack.Properties.SessionExpiryInterval, ack.Properties.SessionExpiryIntervalFlag = c.server.clampExpiry(asked), true
		}
	}
	c.idle = keepAlive * 3 / 2 // MQTT-3.1.2-22
	return ack
}

// expiry is what the client asks for, in seconds. In 3.1.1 a session that is kept is kept as long as we keep any.
func (p *connectPacket) expiry(version byte) uint32 {
	if version == 5 {
		return p.Properties.SessionExpiryInterval
	}
	if p.Connect.Clean {
		return 0
	}
	return expiryNever
}

func (s *Server) clampExpiry(seconds uint32) uint32 {
	if most := s.config.SessionExpiryMax; most > 0 && time.Duration(seconds)*time.Second > most {
		return uint32(most / time.Second)
	}
	return seconds
}

// window is how many messages may be on their way to the client.
func (c *conn) window(p *connectPacket) int {
	if most := int(p.Properties.ReceiveMaximum); c.version == 5 && most > 0 {
		return min(most, c.server.config.Window)
	}
	return c.server.config.Window
}

// codesBefore5 are the CONNACK codes of MQTT 3.1.1 (table 3.1).
var codesBefore5 = map[byte]byte{
	packets.ErrUnsupportedProtocolVersion.Code: 1,
	packets.ErrClientIdentifierNotValid.Code:   2,
	packets.ErrServerBusy.Code:                 3,
	packets.ErrBadUsernameOrPassword.Code:      4,
	packets.ErrNotAuthorized.Code:              5,
}

// refuseConnect answers no. MQTT 3.1.1 has no code for what is malformed: the connection just ends.
func (c *conn) refuseConnect(code packets.Code) error {
	reason := code.Code
	if c.version < 5 {
		var known bool
		if reason, known = codesBefore5[reason]; !known {
			return refused(code)
		}
	}
	ack := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}, ProtocolVersion: c.version, ReasonCode: reason}
	c.finish(encode(ack))
	return refused(code)
}

// attach gives the connection its session; an older connection of the same client ends. There is no session when there are too many.
func (s *Server) attach(c *conn, p *connectPacket) (sess *session, present bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess = s.mu.sessions[p.Connect.ClientIdentifier]
	if sess != nil {
		s.takeOverLocked(sess)
	}
	if sess != nil && sess.recovered { // our crash ended its last connection, and it is back: nobody has died
		sess.will, sess.recovered = nil, false
	}
	if sess != nil && (p.Connect.Clean || sess.expiry == 0) { // one without expiry ends with its connection
		s.endLocked(sess)
		sess = nil
	}
	present = sess != nil
	if sess == nil && len(s.mu.sessions) >= s.config.MaxSessions {
		return nil, false
	}
	if sess == nil {
		sess = newSession(s, p.Connect.ClientIdentifier)
		s.mu.sessions[sess.id] = sess
	} else if sess.delay > 0 { // MQTT-3.1.3-9: a new connection cancels a will that waits
		sess.will, sess.willAt = nil, time.Time{}
	} else {
		s.publishWillLocked(sess)
	}
	delete(s.mu.waiting, sess)
	sess.expiry = s.clampExpiry(p.expiry(c.version))
	sess.lasts.Store(sess.expiry > 0)
	sess.will, sess.delay, sess.willAt, sess.until = p.will, 0, time.Time{}, time.Time{}
	if p.will != nil {
		sess.delay = p.Connect.WillProperties.WillDelayInterval
	}
	sess.holder = c
	s.rememberLocked(sess)
	return sess, present
}

// takeOverLocked ends an older connection. What it was about to store it stores before, or not at all.
func (s *Server) takeOverLocked(sess *session) {
	old := sess.holder
	if old == nil {
		return
	}
	sess.in.Lock()
	old.dead.Store(true)
	sess.in.Unlock()
	old.disconnect(packets.ErrSessionTakenOver)
	old.cancel()
	sess.holder = nil
	sess.leave()
}

// rememberLocked has the store write what of the session changed; of one that does not last only the will.
func (s *Server) rememberLocked(sess *session) {
	sess.out.Lock()
	sess.out.dirty = true
	sess.out.Unlock()
	s.store.touch(sess)
}

// detach is the end of a connection.
func (s *Server) detach(c *conn) {
	c.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	sess := c.session
	if sess.holder != c || sess.gone { // taken over
		return
	}
	if s.mu.stopping { // wills and sessions stay as they are: the next start goes on with them
		return
	}
	sess.holder = nil
	sess.leave()
	if c.normal {
		sess.will = nil
	}
	if sess.expiry == 0 {
		s.endLocked(sess)
		return
	}
	now := time.Now()
	if sess.expiry != expiryNever {
		sess.until = now.Add(time.Duration(sess.expiry) * time.Second)
	}
	if sess.will != nil && sess.delay == 0 {
		s.publishWillLocked(sess)
	} else if sess.will != nil {
		sess.willAt = now.Add(time.Duration(min(sess.delay, sess.expiry)) * time.Second)
	}
	if !sess.until.IsZero() || !sess.willAt.IsZero() {
		s.mu.waiting[sess] = struct{}{}
	}
	s.rememberLocked(sess)
}

// endLocked forgets a session; a will that still waits goes out (MQTT-3.1.2-8).
func (s *Server) endLocked(sess *session) {
	s.publishWillLocked(sess)
	sess.gone = true
	delete(s.mu.waiting, sess)
	delete(s.mu.sessions, sess.id)
	sess.unsubscribeAll()
	if sess.lasts.Load() {
		s.noteEnd(sess)
	}
	s.store.touch(sess)
}

// noteEnd tells the journal that the client's ids are free.
func (s *Server) noteEnd(sess *session) {
	sess.in.Lock()
	defer sess.in.Unlock()
	if len(sess.in.taken) == 0 && len(sess.in.last.ring) == 0 {
		return
	}
	sess.in.taken, sess.in.last = nil, recent{}
	s.putNote(appendNote(nil, opEnd, sess.id))
}

// changeExpiry takes the expiry of a DISCONNECT; false when the client had none and now wants one (MQTT 5, 3.14.2.2.2).
func (s *Server) changeExpiry(c *conn, seconds uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.session.expiry == 0 && seconds > 0 {
		return false
	}
	if c.session.holder == c {
		c.session.expiry = s.clampExpiry(seconds)
	}
	return true
}
