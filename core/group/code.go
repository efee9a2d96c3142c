package group

import "github.com/twmb/franz-go/pkg/kerr"

// Code is an error code of the Kafka protocol.
type Code int16

// The codes that a coordinator answers.
const (
	UnknownServerError        Code = -1 // as Kafka says that a record would be too large
	None                      Code = 0
	OffsetMetadataTooLarge    Code = 12
	CoordinatorLoadInProgress Code = 14
	CoordinatorNotAvailable   Code = 15
	NotCoordinator            Code = 16
	IllegalGeneration         Code = 22
	InconsistentProtocol      Code = 23
	InvalidGroupID            Code = 24
	UnknownMemberID           Code = 25
	InvalidSessionTimeout     Code = 26
	RebalanceInProgress       Code = 27
	NonEmptyGroup             Code = 68
	GroupIDNotFound           Code = 69
	MemberIDRequired          Code = 79
	GroupMaxSizeReached       Code = 81
	FencedInstanceID          Code = 82
	GroupSubscribedToTopic    Code = 86
)

// String returns the code's name in the Kafka protocol.
func (c Code) String() string {
	if c == None {
		return "NONE"
	}
	if e := kerr.TypedErrorForCode(int16(c)); e != nil {
		return e.Message
	}
	return "UNKNOWN_SERVER_ERROR"
}
