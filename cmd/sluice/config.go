package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"sluice/cmd/internal/conf"
)

func configCommand() *cobra.Command {
	return parent("config", "Check and print configuration files", configCheckCommand(), configPrintCommand())
}

// fileKinds are the files that a process can be started with, with their defaults.
var fileKinds = map[string]func() conf.Validator{
	"core":   func() conf.Validator { c := conf.DefaultCore(); return &c },
	"edge":   func() conf.Validator { c := defaultEdgeFile(); return &c },
	"bridge": func() conf.Validator { c := defaultBridgeFile(); return &c },
}

// loadAny reads a file of the kind, which is guessed from its names when it is "".
func loadAny(c *cobra.Command, kind, name string) (string, conf.Validator, error) {
	if kind == "" {
		var err error
		if kind, err = guessKind(name); err != nil {
			return "", nil, err
		}
	}
	make := fileKinds[kind]
	if make == nil {
		return "", nil, usage(c, fmt.Errorf("--kind %q: must be core, edge or bridge", kind))
	}
	into := make()
	return kind, into, conf.Load(name, into)
}

// guessKind takes the kind that knows most of the file's top-level names.
func guessKind(name string) (string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	var top map[string]yaml.Node
	if err := yaml.Unmarshal(text, &top); err != nil {
		top = nil // the strict reading will say what is wrong
	}
	best, most := "core", -1
	for _, kind := range sortedKeys(fileKinds) {
		known, n := conf.Names(fileKinds[kind]()), 0
		for field := range top {
			if slices.Contains(known, field) {
				n++
			}
		}
		if n > most {
			best, most = kind, n
		}
	}
	return best, nil
}

// hintConfig points to the command that shows what is known.
func hintConfig(err error) error {
	if errors.Is(err, conf.ErrInvalid) {
		return hint(err, "`sluice config print --kind core` (or edge, bridge) shows every field with its default")
	}
	return err
}
