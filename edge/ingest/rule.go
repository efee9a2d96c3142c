package ingest

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Rule maps messages to the core. The first rule whose filter matches decides. Templates may name ${topic}, ${client}, ${qos},
// and ${1}, ${2}... for the levels of the MQTT topic, counted from 1.
type Rule struct {
	Filter    string            `yaml:"filter"`    // MQTT topic filter
	Topic     string            `yaml:"topic"`     // core topic, a template
	Key       string            `yaml:"key"`       // a template; default ${topic}; "-" for no key
	Headers   map[string]string `yaml:"headers"`   // added to the standard ones; templates
	NoHeaders bool              `yaml:"noHeaders"` // leaves the standard headers out
	Timestamp string            `yaml:"timestamp"` // "gateway" (default), "senml", or "json:<field>": seconds, milliseconds or RFC 3339
	Format    string            `yaml:"format"`    // of the payload: "auto" (default), "json", "cbor", "senml-json", "senml-cbor", "raw"
	Normalise string            `yaml:"normalise"` // "" (as it came), "json", "senml" (resolved, one JSON record per measurement)
}

// Limits of rules, so that a mistake in a file is found when it is read.
const (
	rulesMax = 10_000 // each message walks the list until one matches
	// topicNameMax is Kafka's bound of a topic's name.
	topicNameMax = 249
)

var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// ValidTopic says whether Kafka takes name as a topic's name.
func ValidTopic(name string) error {
	switch {
	case name == "":
		return errors.New("a topic's name must not be empty")
	case name == "." || name == "..":
		return fmt.Errorf("topic %q: neither . nor .. is a name", name)
	case len(name) > topicNameMax:
		return fmt.Errorf("topic %q: longer than %d characters", name, topicNameMax)
	case !topicName.MatchString(name):
		return fmt.Errorf("topic %q: only letters, digits, '.', '_' and '-' are allowed", name)
	}
	return nil
}

// ValidFilter says whether filter is an MQTT topic filter.
func ValidFilter(filter string) error {
	if filter == "" || len(filter) > 65535 || !utf8.ValidString(filter) || strings.ContainsRune(filter, 0) {
		return fmt.Errorf("filter %q: not a topic filter", filter)
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.Contains(level, "#") && (level != "#" || i != len(levels)-1) {
			return fmt.Errorf("filter %q: # must be the whole last level", filter)
		}
		if strings.Contains(level, "+") && level != "+" {
			return fmt.Errorf("filter %q: + must be a whole level", filter)
		}
	}
	return nil
}

// Validate names the field and value that are wrong.
func (r Rule) Validate() error {
	if err := ValidFilter(r.Filter); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	for name, text := range map[string]string{"topic": r.Topic, "key": r.Key} {
		if _, err := parseTemplate(text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if !strings.Contains(r.Topic, "${") {
		if err := ValidTopic(r.Topic); err != nil {
			return fmt.Errorf("topic: %w", err)
		}
	}
	for name, text := range r.Headers {
		if name == "" || strings.HasPrefix(name, "sluice.") {
			return fmt.Errorf("headers: %q: a header needs a name that does not begin with sluice", name)
		}
		if _, err := parseTemplate(text); err != nil {
			return fmt.Errorf("headers: %s: %w", name, err)
		}
	}
	return r.validateWords()
}

func (r Rule) validateWords() error {
	if t := r.Timestamp; t != "" && t != "gateway" && t != "senml" && (!strings.HasPrefix(t, "json:") || len(t) == len("json:")) {
		return fmt.Errorf("timestamp: %q: want gateway, senml or json:<field>", t)
	}
	switch r.Format {
	case "", formatAuto, formatJSON, formatCBOR, formatSenMLJSON, formatSenMLCBOR, formatRaw:
	default:
		return fmt.Errorf("format: %q: want auto, json, cbor, senml-json, senml-cbor or raw", r.Format)
	}
	switch r.Normalise {
	case "", normaliseJSON, normaliseSenML:
	default:
		return fmt.Errorf("normalise: %q: want json or senml", r.Normalise)
	}
	return nil
}

// A template is text with places to fill in.
type template []piece

type piece struct {
	text  string
	what  byte // 0 text, 't' topic, 'c' client, 'q' qos, 'l' level
	level int
}

// levelMax is the highest level that a template may name.
const levelMax = 128

func parseTemplate(text string) (template, error) {
	var t template
	for text != "" {
		at := strings.Index(text, "${")
		if at < 0 {
			return append(t, piece{text: text}), nil
		}
		if at > 0 {
			t = append(t, piece{text: text[:at]})
		}
		end := strings.IndexByte(text[at:], '}')
		if end < 0 {
			return nil, fmt.Errorf("%q: ${ without }", text)
		}
		p, err := parsePlace(text[at+2 : at+end])
		if err != nil {
			return nil, err
		}
		t = append(t, p)
		text = text[at+end+1:]
	}
	return t, nil
}

func parsePlace(name string) (piece, error) {
	switch name {
	case "topic":
		return piece{what: 't'}, nil
	case "client":
		return piece{what: 'c'}, nil
	case "qos":
		return piece{what: 'q'}, nil
	}
	n, err := strconv.Atoi(name)
	if err != nil || n < 1 || n > levelMax {
		return piece{}, fmt.Errorf("${%s}: want topic, client, qos or the number of a level (1 is the first)", name)
	}
	return piece{what: 'l', level: n}, nil
}

// append fills the template in. A level that the topic does not have is empty.
func (t template) append(dst []byte, in *Input) []byte {
	for _, p := range t {
		switch p.what {
		case 0:
			dst = append(dst, p.text...)
		case 't':
			dst = append(dst, in.Topic...)
		case 'c':
			dst = append(dst, in.Client...)
		case 'q':
			dst = append(dst, '0'+in.QoS)
		case 'l':
			dst = append(dst, topicLevel(in.Topic, p.level)...)
		}
	}
	return dst
}

func topicLevel(topic string, n int) string {
	for ; n > 1; n-- {
		at := strings.IndexByte(topic, '/')
		if at < 0 {
			return ""
		}
		topic = topic[at+1:]
	}
	level, _, _ := strings.Cut(topic, "/")
	return level
}

func (t template) constant() bool { return len(t) == 0 || len(t) == 1 && t[0].what == 0 }

// Match says whether an MQTT topic matches a valid filter. Topics that begin with $ are hidden from wildcards at the first level.
func Match(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		if filter == "#" {
			return true
		}
		f, filterRest, filterMore := strings.Cut(filter, "/")
		t, topicRest, topicMore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !filterMore || !topicMore {
			return !filterMore && !topicMore || !topicMore && filterRest == "#"
		}
		filter, topic = filterRest, topicRest
	}
}
