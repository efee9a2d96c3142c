package ingest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// Measurement is a resolved SenML record (RFC 8428, section 4.6): full name, absolute time in seconds, no base fields.
type Measurement struct {
	Name        string   `json:"n"`
	Unit        string   `json:"u,omitempty"`
	Time        float64  `json:"t"`
	Value       *float64 `json:"v,omitempty"`
	StringValue *string  `json:"vs,omitempty"`
	BoolValue   *bool    `json:"vb,omitempty"`
	DataValue   *string  `json:"vd,omitempty"` // base64url, as in SenML-JSON
	Sum         *float64 `json:"s,omitempty"`
	UpdateTime  *float64 `json:"ut,omitempty"`
}

// rawSenML is a record as it comes: the same fields by JSON's names and by CBOR's numbers (RFC 8428, table 4).
type rawSenML struct {
	BaseName    *string  `json:"bn" cbor:"-2,keyasint,omitempty"`
	BaseTime    *float64 `json:"bt" cbor:"-3,keyasint,omitempty"`
	BaseUnit    *string  `json:"bu" cbor:"-4,keyasint,omitempty"`
	BaseValue   *float64 `json:"bv" cbor:"-5,keyasint,omitempty"`
	BaseSum     *float64 `json:"bs" cbor:"-6,keyasint,omitempty"`
	BaseVersion *int     `json:"bver" cbor:"-1,keyasint,omitempty"`
	Name        *string  `json:"n" cbor:"0,keyasint,omitempty"`
	Unit        *string  `json:"u" cbor:"1,keyasint,omitempty"`
	Value       *float64 `json:"v" cbor:"2,keyasint,omitempty"`
	StringValue *string  `json:"vs" cbor:"3,keyasint,omitempty"`
	BoolValue   *bool    `json:"vb" cbor:"4,keyasint,omitempty"`
	Sum         *float64 `json:"s" cbor:"5,keyasint,omitempty"`
	Time        *float64 `json:"t" cbor:"6,keyasint,omitempty"`
	UpdateTime  *float64 `json:"ut" cbor:"7,keyasint,omitempty"`
	DataText    *string  `json:"vd" cbor:"-"`
	DataBytes   []byte   `json:"-" cbor:"8,keyasint,omitempty"`
}

// senmlVersionMax is the version of RFC 8428; a higher one must be refused (section 4.4).
const senmlVersionMax = 10

// relativeTimeMax: times below 2^28 are relative to now (RFC 8428, section 4.5.3).
const relativeTimeMax = 1 << 28

// ParseSenML resolves a pack: base fields are applied, times made absolute.
func ParseSenML(isCBOR bool, payload []byte, now time.Time) ([]Measurement, error) {
	var raw []rawSenML
	var err error
	if isCBOR {
		err = cborMode.Unmarshal(payload, &raw)
	} else {
		err = json.Unmarshal(payload, &raw)
	}
	if err != nil {
		return nil, fmt.Errorf("the payload is not SenML: %w", err)
	}
	return resolve(raw, float64(now.UnixMilli())/1000)
}

// base is what base fields say, from the record that has them on.
type base struct {
	name, unit       string
	time, value, sum float64
}

func (b *base) take(r *rawSenML) {
	set(&b.name, r.BaseName)
	set(&b.unit, r.BaseUnit)
	set(&b.time, r.BaseTime)
	set(&b.value, r.BaseValue)
	set(&b.sum, r.BaseSum)
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func resolve(raw []rawSenML, now float64) ([]Measurement, error) {
	var b base
	var out []Measurement
	for i := range raw {
		r := &raw[i]
		if r.BaseVersion != nil && *r.BaseVersion > senmlVersionMax {
			return nil, fmt.Errorf("senml record %d: version %d is newer than %d", i, *r.BaseVersion, senmlVersionMax)
		}
		b.take(r)
		m := b.apply(r, now)
		if !m.hasValue() {
			continue // a record may carry base fields only
		}
		if err := m.check(); err != nil {
			return nil, fmt.Errorf("senml record %d: %w", i, err)
		}
		out = append(out, m)
	}
	if len(out) == 0 {
		return nil, errors.New("the senml pack has no measurement")
	}
	return out, nil
}

func (b *base) apply(r *rawSenML, now float64) Measurement {
	m := Measurement{Name: b.name, Unit: b.unit, Time: b.time, StringValue: r.StringValue, BoolValue: r.BoolValue, DataValue: r.DataText, UpdateTime: r.UpdateTime}
	if r.Name != nil {
		m.Name += *r.Name
	}
	set(&m.Unit, r.Unit)
	if r.Time != nil {
		m.Time += *r.Time
	}
	if m.Time < relativeTimeMax {
		m.Time += now
	}
	if r.Value != nil || r.BaseValue != nil && r.StringValue == nil && r.BoolValue == nil && r.DataText == nil && r.DataBytes == nil && r.Name != nil {
		v := b.value
		if r.Value != nil {
			v += *r.Value
		}
		m.Value = &v
	}
	if r.Sum != nil {
		s := b.sum + *r.Sum
		m.Sum = &s
	}
	if r.DataBytes != nil {
		text := base64url(r.DataBytes)
		m.DataValue = &text
	}
	return m
}

func (m *Measurement) hasValue() bool {
	return m.Value != nil || m.StringValue != nil || m.BoolValue != nil || m.DataValue != nil || m.Sum != nil
}

func (m *Measurement) check() error {
	if m.Name == "" {
		return errors.New("no name")
	}
	for _, v := range []*float64{m.Value, m.Sum, &m.Time} {
		if v != nil && (math.IsNaN(*v) || math.IsInf(*v, 0)) {
			return errors.New("a number is not finite")
		}
	}
	return nil
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
