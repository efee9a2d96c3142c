package firmwaresim

import (
	"math"
	"math/rand/v2"
	"time"
)

// Kind is something that the city measures.
type Kind struct {
	Name string
	Unit string // as in the SenML registry (RFC 8428 section 12.1, RFC 8798) where it has one
	// typical is the value to be expected at an hour of the day (0 to 24) in a zone of the given density (0 quiet to 1 busy).
	typical func(hour, density float64) float64
	spread  float64 // of single devices and readings around it
	low     float64
	high    float64
}

// Kinds are measured in every zone.
var Kinds = []Kind{
	{"temperature", "Cel", func(h, d float64) float64 { return 14 + 6*daily(h, 15) + 2*d }, 1.2, -30, 50},
	{"air_quality", "ug/m3", func(h, d float64) float64 { return 6 + 22*d*rush(h) + 6*d }, 2, 0, 500},
	{"traffic", "1/min", func(h, d float64) float64 { return (4 + 40*d) * (0.1 + rush(h)) }, 3, 0, 200},
	{"noise", "dB", func(h, d float64) float64 { return 38 + 10*d + 16*d*rush(h) + 4*daily(h, 14) }, 2.5, 25, 120},
	{"parking", "%", func(h, d float64) float64 { return 30 + 25*d + 35*d*daily(h, 13) }, 6, 0, 100},
	{"lighting", "%", func(h, _ float64) float64 { return 100 * night(h) }, 1, 0, 100},
}

// daily is a wave from -1 to 1 that is highest at the hour peak.
func daily(hour, peak float64) float64 { return math.Cos((hour - peak) / 24 * 2 * math.Pi) }

// rush is high at the hours when people travel: about eight and about six.
func rush(hour float64) float64 {
	bump := func(at, width float64) float64 { return math.Exp(-(hour - at) * (hour - at) / (2 * width * width)) }
	return 0.15 + bump(8.2, 1.3) + 0.4*bump(12.8, 2) + bump(17.8, 1.7)
}

// night goes from 0 to 1 at dusk and back at dawn.
func night(hour float64) float64 {
	dusk, dawn := 1/(1+math.Exp(-(hour-19.5)*4)), 1/(1+math.Exp((hour-6.5)*4))
	return dusk + dawn
}

// sensor produces the values of one device: what is typical, an error of its own, and noise that remembers.
type sensor struct {
	kind    *Kind
	density float64
	bias    float64
	noise   float64
	random  *rand.Rand
}

func newSensor(kind *Kind, density float64, r *rand.Rand) *sensor {
	return &sensor{kind: kind, density: density, bias: r.NormFloat64() * kind.spread / 2, random: r}
}

// read returns the value at a time of day, rounded to two digits.
func (s *sensor) read(now time.Time) float64 {
	const memory = 0.9 // of the noise from one reading to the next
	s.noise = memory*s.noise + math.Sqrt(1-memory*memory)*s.random.NormFloat64()*s.kind.spread
	hour := float64(now.Hour()) + float64(now.Minute())/60 + float64(now.Second())/3600
	v := s.kind.typical(hour, s.density) + s.bias + s.noise
	return math.Round(100*min(s.kind.high, max(s.kind.low, v))) / 100
}

// densityOf spreads the zones from busy (the first) to quiet (the last).
func densityOf(zone, zones int) float64 { return 1 - float64(zone)/float64(zones) }
