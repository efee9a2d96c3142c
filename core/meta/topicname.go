package meta

import (
	"fmt"
	"strings"
)

// Topics of the cluster itself.
const (
	OffsetsTopic     = "__consumer_offsets"
	TransactionTopic = "__transaction_state"
)

// topicNameMax is Kafka's limit, so that `<name>-<partition>` fits a file name.
const topicNameMax = 249

// NormalizedName returns what two topic names must not share: metrics cannot tell `.` from `_`.
func NormalizedName(topic string) string { return strings.ReplaceAll(topic, ".", "_") }

// IsInternal tells whether the topic belongs to the cluster itself.
func IsInternal(topic string) bool { return topic == OffsetsTopic || topic == TransactionTopic }

// ValidateTopicName checks a name by Kafka's rules and returns an Error with CodeInvalidTopic.
func ValidateTopicName(name string) error {
	if reason := topicNameReason(name); reason != "" {
		return Errorf(CodeInvalidTopic, "Topic name is invalid: %s", reason)
	}
	return nil
}

func topicNameReason(name string) string {
	switch {
	case name == "":
		return "the empty string is not allowed"
	case name == "." || name == "..":
		return "'.' or '..' is not allowed"
	case len(name) > topicNameMax:
		return fmt.Sprintf("the length of '%s' is longer than the max allowed length %d", name, topicNameMax)
	case strings.ContainsFunc(name, illegalInName):
		return fmt.Sprintf("'%s' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'", name)
	}
	return ""
}

func illegalInName(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return r != '.' && r != '_' && r != '-'
}
