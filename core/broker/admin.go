package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"sluice/core/meta"
)

// Codes that only administration answers with.
var (
	codeInvalidConfig          = kerr.InvalidConfig.Code
	codePolicyViolation        = kerr.PolicyViolation.Code
	codeMismatchedEndpointType = kerr.MismatchedEndpointType.Code
	codeUnsupportedEndpoint    = kerr.UnsupportedEndpointType.Code
	codeResourceNotFound       = kerr.ResourceNotFound.Code
	codeUnsupportedVersion     = kerr.UnsupportedVersion.Code
)

// Bounds of the time that a request may ask the cluster to take.
const (
	// adminTimeoutMin: a client that asks for 0 means "do not wait for the brokers to hear of it", not "do not do it".
	adminTimeoutMin = 15 * time.Second
	adminTimeoutMax = 5 * time.Minute
)

// adminContext bounds an administrator's request by the time its sender gives it.
func adminContext(ctx context.Context, millis int32) (context.Context, context.CancelFunc) {
	wait := time.Duration(millis) * time.Millisecond
	return context.WithTimeout(ctx, min(max(wait, adminTimeoutMin), adminTimeoutMax))
}

// refusal is why one item of a request is not done.
type refusal struct {
	code    int16
	message string
}

func refuse(code int16, format string, args ...any) *refusal {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// refusalOf returns code and message for an error of the controller, nil for nil.
func refusalOf(err error) *refusal {
	if err == nil {
		return nil
	}
	var refused *meta.Error
	if errors.As(err, &refused) {
		return &refusal{refused.Code, refused.Message}
	}
	return &refusal{errorCode(err), err.Error()}
}

// put writes the refusal into an answer's fields; none means success.
func (r *refusal) put(code *int16, message **string) {
	if r == nil {
		return
	}
	*code = r.code
	if message != nil && r.message != "" {
		*message = kmsg.StringPtr(r.message)
	}
}

// duplicates returns the names that occur more than once.
func duplicates[T any](items []T, name func(T) string) map[string]bool {
	seen, twice := make(map[string]bool, len(items)), make(map[string]bool)
	for _, item := range items {
		n := name(item)
		twice[n] = twice[n] || seen[n]
		seen[n] = true
		if !twice[n] {
			delete(twice, n)
		}
	}
	return twice
}

// resourceName is how an error names a resource to a person.
func resourceName(kind kmsg.ConfigResourceType, name string) string {
	return fmt.Sprintf("%s %q", strings.ToLower(kind.String()), name)
}
