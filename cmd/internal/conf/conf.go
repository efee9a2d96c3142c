// Package conf reads the YAML files of the house: strictly (a name that does not exist is an
// error that says which ones do), over defaults, then checked by the configuration's own
// Validate. It prints what is in force with the secrets left out.
//
// A file describes one process: a core node (Core), or whatever else has YAML tags and a
// Validate method.
package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// bytesMax bounds a configuration file: routing rules of a large gateway take some hundred KB.
const bytesMax = 4 << 20

// Redacted stands for a secret in printed configuration.
const Redacted = "<redacted>"

// ErrInvalid is wrapped by every error about what a file says, as opposed to errors of reading it.
var ErrInvalid = errors.New("invalid configuration")

// Validator is a configuration that can tell what is wrong with it: an error that names field and value.
type Validator interface{ Validate() error }

// Load reads the file over what into already holds (its defaults) and validates the result.
// Every error begins with the file's name.
func Load(name string, into Validator) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, bytesMax+1))
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > bytesMax {
		return invalid(name, fmt.Sprintf("longer than %d bytes", bytesMax))
	}
	return Parse(name, text, into)
}

// Parse is Load with the file's text already read.
func Parse(name string, text []byte, into Validator) error {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return invalid(name, explain(err, into))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return invalid(name, "holds more than one document")
	}
	if err := into.Validate(); err != nil {
		return invalid(name, err.Error())
	}
	return nil
}

// problem is an error whose text is for the person who wrote the file.
type problem struct{ text string }

func (p problem) Error() string { return p.text }
func (p problem) Unwrap() error { return ErrInvalid }

func invalid(name, text string) error { return problem{name + ": " + text} }

var unknownField = regexp.MustCompile(`line (\d+): field (\S+) not found in type (\S+)`)

// explain turns the decoder's words, which speak of Go types, into the user's.
func explain(err error, into any) string {
	var typed *yaml.TypeError
	if !errors.As(err, &typed) {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	var lines []string
	for _, e := range typed.Errors {
		if m := unknownField.FindStringSubmatch(e); m != nil {
			e = fmt.Sprintf("line %s: unknown field %q", m[1], m[2])
			if known := fieldsOf(reflect.TypeOf(into), m[3]); len(known) > 0 {
				e += " (known: " + strings.Join(known, ", ") + ")"
			}
		}
		lines = append(lines, e)
	}
	return strings.Join(lines, "; ")
}

// fieldsOf finds the struct of that name inside t and lists its YAML names.
func fieldsOf(t reflect.Type, name string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	if t.String() == name {
		names := yamlNames(t)
		slices.Sort(names)
		return names
	}
	for f := range t.Fields() {
		if known := fieldsOf(f.Type, name); known != nil {
			return known
		}
	}
	return nil
}

func yamlNames(t reflect.Type) []string {
	var names []string
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case !f.IsExported() || name == "-":
		case options == "inline":
			names = append(names, yamlNames(f.Type)...)
		case name == "":
			names = append(names, strings.ToLower(f.Name))
		default:
			names = append(names, name)
		}
	}
	return names
}

// Names returns the top-level YAML names of a configuration, to tell one kind of file from another.
func Names(v any) []string {
	t := reflect.TypeOf(v)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return yamlNames(t)
}

// Print writes the configuration as YAML with its secrets redacted.
func Print(w io.Writer, v any) error {
	node, err := Node(v)
	if err != nil {
		return err
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(node); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return e.Close()
}

// Node returns the configuration as a YAML tree with its secrets redacted.
func Node(v any) (*yaml.Node, error) {
	var node yaml.Node
	if err := node.Encode(v); err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	redact(&node)
	return &node, nil
}

// secretName matches the names of values that must not be shown. Names of files that hold secrets are shown.
var secretName = regexp.MustCompile(`(?i)(password|passphrase|secret|token|credentials?|apikey|privatekey)$`)

// userinfo matches the password of a URL.
var userinfo = regexp.MustCompile(`(://[^/:@\s]*):[^/@\s]*@`)

func redact(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		n.Value = userinfo.ReplaceAllString(n.Value, "${1}:"+Redacted+"@")
	}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && secretName.MatchString(n.Content[i-1].Value) && child.Value != "" {
			*child = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: Redacted}
			continue
		}
		redact(child)
	}
}
