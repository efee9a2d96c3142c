package kafka

import (
	"fmt"
	"reflect"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Versions says which versions of a key are served.
type Versions struct {
	Key, Min, Max int16
}

// A Table is the versions that a node serves. What is not in it is not advertised and not served.
type Table struct {
	byKey []Versions // indexed by key; Max -1 where not served
	list  []Versions // ascending
}

// NewTable returns a table of the given versions, at most one entry per key. It panics when kmsg does not know a key or version: such an entry
// is a mistake in the program.
func NewTable(versions []Versions) *Table {
	t := &Table{}
	for _, v := range versions {
		t.add(v)
	}
	for _, v := range t.byKey {
		if v.Max >= 0 {
			t.list = append(t.list, v)
		}
	}
	return t
}

func (t *Table) add(v Versions) {
	req := kmsg.RequestForKey(v.Key)
	if req == nil || v.Min < 0 || v.Min > v.Max || v.Max > req.MaxVersion() {
		panic(fmt.Sprintf("BUG: no such versions of the protocol: %+v", v))
	}
	for int(v.Key) >= len(t.byKey) {
		t.byKey = append(t.byKey, Versions{Key: int16(len(t.byKey)), Min: 0, Max: -1})
	}
	if t.byKey[v.Key].Max >= 0 {
		panic(fmt.Sprintf("BUG: key %d is registered twice", v.Key))
	}
	t.byKey[v.Key] = v
}

// Get returns the versions of a key that are served.
func (t *Table) Get(key int16) (Versions, bool) {
	if key < 0 || int(key) >= len(t.byKey) || t.byKey[key].Max < 0 {
		return Versions{}, false
	}
	return t.byKey[key], true
}

// All returns the table in ascending order of keys. The caller does not modify it.
func (t *Table) All() []Versions { return t.list }

// ApiKeys returns the table as ApiVersions answers it.
func (t *Table) ApiKeys() []kmsg.ApiVersionsResponseApiKey {
	keys := make([]kmsg.ApiVersionsResponseApiKey, 0, len(t.list))
	for _, v := range t.list {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = v.Key, v.Min, v.Max
		keys = append(keys, k)
	}
	return keys
}

// errUnsupportedVersion is Kafka's UNSUPPORTED_VERSION.
const errUnsupportedVersion = 35

// refusal returns the answer to a version that is not served: for ApiVersions always version 0 with the table, so that a newer client finds out (KIP-511);
// for other keys an empty response of the request's own shape with the error, when that shape is known and has a place for one error. Nil where
// only closing the connection is left, as Kafka does.
func (t *Table) refusal(key, version int16) kmsg.Response {
	if key == keyApiVersions {
		resp := kmsg.NewPtrApiVersionsResponse()
		resp.ErrorCode, resp.ApiKeys = errUnsupportedVersion, t.ApiKeys()
		return resp
	}
	req := kmsg.RequestForKey(key)
	if req == nil || version < 0 || version > req.MaxVersion() {
		return nil
	}
	resp := kmsg.ResponseForKey(key)
	resp.SetVersion(version)
	if !setErrorCode(resp, version) {
		return nil
	}
	return resp
}

// setErrorCode sets the response's own error, and says whether one is in the encoded form of that version.
func setErrorCode(resp kmsg.Response, version int16) bool {
	f := reflect.ValueOf(resp).Elem().FieldByName("ErrorCode")
	if !f.IsValid() || f.Kind() != reflect.Int16 {
		return false
	}
	f.SetInt(0)
	without := string(resp.AppendTo(nil))
	f.SetInt(errUnsupportedVersion)
	return without != string(resp.AppendTo(nil))
}
