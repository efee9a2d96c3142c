package ingest

import (
	"fmt"
	"slices"
	"strings"

	"sluice/core/record"
	"sluice/edge/buffer"
)

// Router is immutable: many goroutines use it at once.
type Router struct {
	rules []route
}

type route struct {
	rule          Rule
	topic, key    template
	constantTopic []byte
	noKey         bool
	headers       []headerTemplate
	timestamp     timestampSource
}

type headerTemplate struct {
	name  string
	value template
}

// NewRouter checks the rules and appends the default one: everything into DefaultTopic, key = the whole MQTT topic.
func NewRouter(rules []Rule) (*Router, error) {
	if len(rules) > rulesMax {
		return nil, fmt.Errorf("routing: %d rules, at most %d are allowed", len(rules), rulesMax)
	}
	r := &Router{}
	for i, rule := range rules {
		if err := rule.Validate(); err != nil {
			return nil, fmt.Errorf("routing[%d].%w", i, err)
		}
		r.rules = append(r.rules, compile(rule))
	}
	r.rules = append(r.rules, compile(Rule{Filter: "#", Topic: DefaultTopic}))
	return r, nil
}

func compile(rule Rule) route {
	must := func(text string) template {
		t, err := parseTemplate(text)
		if err != nil {
			panic("BUG: a validated template does not parse: " + err.Error())
		}
		return t
	}
	c := route{rule: rule, topic: must(rule.Topic), noKey: rule.Key == "-", timestamp: parseTimestamp(rule.Timestamp)}
	if c.topic.constant() {
		c.constantTopic = []byte(rule.Topic)
	}
	if rule.Key != "" && !c.noKey {
		c.key = must(rule.Key)
	}
	for name, text := range rule.Headers {
		c.headers = append(c.headers, headerTemplate{name, must(text)})
	}
	// The order of a map would differ from start to start, and with it the bytes of a record.
	slices.SortFunc(c.headers, func(a, b headerTemplate) int { return strings.Compare(a.name, b.name) })
	return c
}

// find returns the first rule that matches. The default rule also takes what # hides from wildcards: topics that begin with $.
func (r *Router) find(topic string) *route {
	last := len(r.rules) - 1
	for i := range r.rules[:last] {
		if Match(r.rules[i].rule.Filter, topic) {
			return &r.rules[i]
		}
	}
	return &r.rules[last]
}

// Route makes the records of a message: one, or one per measurement where the rule resolves SenML. They alias in and s.
func (r *Router) Route(in *Input, s *Scratch) []buffer.Message {
	c := r.find(in.Topic)
	s.headers, s.key, s.topic, s.digits = s.headers[:0], s.key[:0], s.topic[:0], s.digits[:0]
	now := in.Time.UnixMilli()
	m := buffer.Message{Topic: c.coreTopic(in, s), Key: c.recordKey(in, s), Value: in.Payload, TimestampMs: now}
	c.standardHeaders(in, s, now)
	for _, h := range c.headers {
		s.headers = append(s.headers, record.Header{Key: h.name, Value: h.value.append(nil, in)})
	}
	if c.rule.Normalise == "" && c.timestamp.gateway() {
		m.Headers = s.headers
		s.Entry.Messages = append(s.Entry.Messages[:0], m)
		return s.Entry.Messages
	}
	s.Entry.Messages = c.normalise(in, m, s)
	return s.Entry.Messages
}

// coreTopic fills the template in. What Kafka does not allow in a name becomes '_': a device's topic must not stop the uplink.
func (c *route) coreTopic(in *Input, s *Scratch) []byte {
	if c.constantTopic != nil {
		return c.constantTopic
	}
	s.topic = c.topic.append(s.topic, in)
	for i, b := range s.topic {
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-') {
			s.topic[i] = '_'
		}
	}
	s.topic = s.topic[:min(len(s.topic), topicNameMax)]
	if name := string(s.topic); name == "" || name == "." || name == ".." {
		s.topic = append(s.topic[:0], DefaultTopic...)
	}
	return s.topic
}

func (c *route) recordKey(in *Input, s *Scratch) []byte {
	switch {
	case c.noKey:
		return nil
	case c.key == nil:
		s.key = append(s.key, in.Topic...)
	default:
		s.key = c.key.append(s.key, in)
	}
	return s.key
}

var qosDigits = [3][]byte{[]byte("0"), []byte("1"), []byte("2")}

func (c *route) standardHeaders(in *Input, s *Scratch, now int64) {
	if c.rule.NoHeaders {
		return
	}
	// One piece of memory for the three texts: headers alias it until the buffer has copied them.
	s.digits = append(append(s.digits, in.Client...), in.Topic...)
	s.digits = appendDecimal(s.digits, now)
	client, topic := len(in.Client), len(in.Client)+len(in.Topic)
	s.headers = append(s.headers,
		record.Header{Key: HeaderClient, Value: s.digits[:client]},
		record.Header{Key: HeaderTopic, Value: s.digits[client:topic]},
		record.Header{Key: HeaderQoS, Value: qosDigits[in.QoS]},
		record.Header{Key: HeaderTime, Value: s.digits[topic:]},
	)
	if in.ContentType != "" {
		s.headers = append(s.headers, record.Header{Key: HeaderType, Value: []byte(in.ContentType)})
	}
}
