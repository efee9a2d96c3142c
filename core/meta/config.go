package meta

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Resource types of the Kafka configuration APIs (KIP-133, KIP-412, KIP-714, KIP-848).
const (
	ResourceTopic         int8 = 2
	ResourceBroker        int8 = 4
	ResourceBrokerLogger  int8 = 8
	ResourceClientMetrics int8 = 16
	ResourceGroup         int8 = 32
)

// ConfigType is the type of a configuration value, numbered as DescribeConfigs v3 reports it.
type ConfigType int8

// The types in the numbering of Kafka's ConfigDef.
const (
	TypeBoolean  ConfigType = 1
	TypeString   ConfigType = 2
	TypeInt      ConfigType = 3
	TypeShort    ConfigType = 4
	TypeLong     ConfigType = 5
	TypeDouble   ConfigType = 6
	TypeList     ConfigType = 7
	TypeClass    ConfigType = 8
	TypePassword ConfigType = 9
)

// String returns the name that Kafka prints in its messages.
func (t ConfigType) String() string {
	names := [...]string{"UNKNOWN", "BOOLEAN", "STRING", "INT", "SHORT", "LONG", "DOUBLE", "LIST", "CLASS", "PASSWORD"}
	if t < 0 || int(t) >= len(names) {
		return names[0]
	}
	return names[t]
}

// ConfigUpdate says how a configuration can be changed while the cluster runs.
type ConfigUpdate int8

const (
	ReadOnly    ConfigUpdate = iota // set when the node starts, or fixed by the design
	PerBroker                       // of one broker, or of all
	ClusterWide                     // of all brokers at once
)

// ConfigSynonym is a broker configuration that gives a key its default. Scale turns
// the broker's unit into the key's (hours into milliseconds).
type ConfigSynonym struct {
	Name  string
	Scale int64
}

// ConfigKey describes one configuration name: what DescribeConfigs tells of it and
// what a new value is checked against.
type ConfigKey struct {
	Name      string
	Type      ConfigType
	Default   string
	Null      bool // the default is null, not ""
	Doc       string
	Update    ConfigUpdate
	Sensitive bool
	Hidden    bool // accepted, but not listed
	Synonyms  []ConfigSynonym

	check func(value string) string // what is wrong with a value of the right type, "" when nothing
	set   func(s *TopicSettings, value string)
}

// Validate reports why value is not one for the key, in the words of Kafka's ConfigException.
func (k *ConfigKey) Validate(value string) error {
	reason := k.Type.reason(value)
	if reason == "" && k.check != nil {
		reason = k.check(value)
	}
	if reason == "" {
		return nil
	}
	return fmt.Errorf("Invalid value %s for configuration %s: %s", value, k.Name, reason) //nolint:staticcheck // Kafka's own words, clients search them
}

// reason says why value is not of the type, "" when it is.
func (t ConfigType) reason(value string) string {
	switch v := strings.TrimSpace(value); t {
	case TypeBoolean:
		if !strings.EqualFold(v, "true") && !strings.EqualFold(v, "false") {
			return "Expected value to be either true or false"
		}
	case TypeShort:
		return t.integerReason(v, 16)
	case TypeInt:
		return t.integerReason(v, 32)
	case TypeLong:
		return t.integerReason(v, 64)
	case TypeDouble:
		if f, err := strconv.ParseFloat(v, 64); err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return "Not a number of type DOUBLE"
		}
	}
	return ""
}

func (t ConfigType) integerReason(v string, bits int) string {
	if _, err := strconv.ParseInt(v, 10, bits); err != nil {
		return "Not a number of type " + t.String()
	}
	return ""
}

// ConfigTable is a set of known configuration names in alphabetical order.
type ConfigTable struct {
	keys   []*ConfigKey
	byName map[string]*ConfigKey
}

func newConfigTable(groups ...[]*ConfigKey) *ConfigTable {
	t := &ConfigTable{byName: make(map[string]*ConfigKey)}
	for _, g := range groups {
		for _, k := range g {
			if t.byName[k.Name] != nil {
				panic("BUG: configuration " + k.Name + " is listed twice")
			}
			t.byName[k.Name] = k
			t.keys = append(t.keys, k)
		}
	}
	slices.SortFunc(t.keys, func(a, b *ConfigKey) int { return strings.Compare(a.Name, b.Name) })
	return t
}

// Keys returns all keys by name. The slice and what it points to are shared: read only.
func (t *ConfigTable) Keys() []*ConfigKey { return t.keys }

// Default returns the value of a name where nobody has set it, "" for a name that is not known.
func (t *ConfigTable) Default(name string) string {
	if k := t.Key(name); k != nil {
		return k.Default
	}
	return ""
}

// Key returns the key of that name, or nil.
func (t *ConfigTable) Key(name string) *ConfigKey { return t.byName[name] }

// ConfigTableOf returns the names known for a resource type, nil for a type without a table.
func ConfigTableOf(resourceType int8) *ConfigTable {
	switch resourceType {
	case ResourceTopic:
		return TopicConfigs
	case ResourceBroker:
		return BrokerConfigs
	case ResourceGroup:
		return GroupConfigs
	case ResourceClientMetrics:
		return ClientMetricsConfigs
	}
	return nil
}

// ValidateTopicConfig checks one setting of a topic as CreateTopics and AlterConfigs do.
func ValidateTopicConfig(name, value string) error {
	k := TopicConfigs.Key(name)
	if k == nil {
		return fmt.Errorf("Unknown topic config name: %s", name) //nolint:staticcheck // Kafka's own words
	}
	return k.Validate(value)
}

// ValidateConfig checks one dynamic setting of any resource. A broker setting that is
// fixed when the node starts is refused.
func ValidateConfig(resourceType int8, name, value string) error {
	switch resourceType {
	case ResourceTopic:
		return ValidateTopicConfig(name, value)
	case ResourceBroker:
		return validateBrokerConfig(name, value)
	case ResourceGroup:
		return validateKnown("group", GroupConfigs, name, value)
	case ResourceClientMetrics:
		return validateKnown("client metrics", ClientMetricsConfigs, name, value)
	}
	return fmt.Errorf("Unknown configuration resource type %d", resourceType) //nolint:staticcheck // as Kafka words it
}

func validateKnown(what string, t *ConfigTable, name, value string) error {
	k := t.Key(name)
	if k == nil {
		return fmt.Errorf("Unknown %s config name: %s", what, name) //nolint:staticcheck // as Kafka words it
	}
	return k.Validate(value)
}

// validateBrokerConfig lets names pass that are not in the table, as Kafka does: plugins
// and newer tools may set their own.
func validateBrokerConfig(name, value string) error {
	k := BrokerConfigs.Key(name)
	if k == nil {
		return nil
	}
	if k.Update == ReadOnly {
		return fmt.Errorf("Cannot update these configs dynamically: Set(%s)", name) //nolint:staticcheck // Kafka's own words
	}
	return k.Validate(value)
}

// Checks used by the tables.

func atLeast(minimum int64) func(string) string {
	return func(v string) string {
		if n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil && n < minimum {
			return fmt.Sprintf("Value must be at least %d", minimum)
		}
		return ""
	}
}

func between(minimum, maximum int64) func(string) string {
	return func(v string) string {
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		switch {
		case err == nil && n < minimum:
			return fmt.Sprintf("Value must be at least %d", minimum)
		case err == nil && n > maximum:
			return fmt.Sprintf("Value must be no more than %d", maximum)
		}
		return ""
	}
}

func ratio(v string) string {
	f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
	switch {
	case err == nil && f < 0:
		return "Value must be at least 0"
	case err == nil && f > 1:
		return "Value must be no more than 1"
	}
	return ""
}

func oneOf(values ...string) func(string) string {
	return func(v string) string {
		if slices.Contains(values, strings.TrimSpace(v)) {
			return ""
		}
		return "String must be one of: " + strings.Join(values, ", ")
	}
}

func listOf(values ...string) func(string) string {
	return func(v string) string {
		for _, e := range SplitList(v) {
			if !slices.Contains(values, e) {
				return "String must be one of: " + strings.Join(values, ", ")
			}
		}
		return ""
	}
}

// SplitList cuts a LIST value into its elements: comma-separated, blanks around them dropped.
func SplitList(v string) []string {
	var out []string
	for e := range strings.SplitSeq(v, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}
