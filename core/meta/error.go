package meta

import "fmt"

// Codes of the Kafka protocol that metadata commands answer with.
const (
	CodeUnknownServerError       int16 = -1
	CodeNone                     int16 = 0
	CodeUnknownTopicOrPartition  int16 = 3
	CodeRequestTimedOut          int16 = 7
	CodeInvalidTopic             int16 = 17
	CodeUnsupportedVersion       int16 = 35
	CodeTopicAlreadyExists       int16 = 36
	CodeInvalidPartitions        int16 = 37
	CodeInvalidReplicationFactor int16 = 38
	CodeInvalidReplicaAssignment int16 = 39
	CodeInvalidConfig            int16 = 40
	CodeNotController            int16 = 41
	CodeInvalidRequest           int16 = 42
	CodePolicyViolation          int16 = 44
	CodeNoReassignment           int16 = 85
	CodeUnknownTopicID           int16 = 100
	CodeDuplicateRegistration    int16 = 101
	CodeBrokerIDNotRegistered    int16 = 102
	CodeInconsistentClusterID    int16 = 104
)

// Error is an answer to a command that was refused. Code is the Kafka protocol's, Message is for
// the person who sent the request.
type Error struct {
	Code    int16  `cbor:"1,keyasint"`
	Message string `cbor:"2,keyasint,omitempty"`
}

// Error returns the message and the code.
func (e *Error) Error() string { return fmt.Sprintf("%s (code %d)", e.Message, e.Code) }

// Errorf builds an Error.
func Errorf(code int16, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
