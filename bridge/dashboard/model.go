package dashboard

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	// historyLength is what the charts show; bucketLength is the width of a point.
	historyLength = 5 * time.Minute
	bucketLength  = 2 * time.Second
	bucketCount   = int(historyLength / bucketLength)
	// zonesMax, kindsMax and devicesMax bound what strangers' topics can make the page remember. Later names are counted, not kept.
	zonesMax   = 64
	kindsMax   = 32
	devicesMax = 20000
)

// model is the state behind the page. Its mutex is held for single readings and for the making of a frame, never while writing to anybody.
type model struct {
	mu      sync.Mutex
	zones   map[string]int // kinds seen in it
	series  map[seriesKey]*series
	devices map[source]*device
	changed map[source]*device // since the last frame
	total   int64
	refused int64
}

type seriesKey struct{ Zone, Kind string }

// series is the history of one kind in one zone: a ring of buckets by time.
type series struct {
	unit    string
	buckets [bucketCount]bucket
	newest  int64 // bucket number = time / bucketLength
}

type bucket struct {
	number   int64
	sum      float64
	count    int64
	min, max float64
}

type device struct {
	source
	value float64
	unit  string
	time  int64
	fresh bool // first seen since the last frame
}

func newModel() *model {
	return &model{zones: map[string]int{}, series: map[seriesKey]*series{}, devices: map[source]*device{}, changed: map[source]*device{}}
}

func (m *model) add(r reading) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total++
	s := m.seriesLocked(seriesKey{r.Zone, r.Kind})
	d := m.devices[r.source]
	if d == nil && len(m.devices) < devicesMax {
		d = &device{source: r.source, fresh: true}
		m.devices[r.source] = d
	}
	if s == nil || d == nil {
		m.refused++
		return
	}
	if r.Unit != "" {
		s.unit = r.Unit
	}
	s.add(r.Time, r.Value)
	if r.Time >= d.time {
		d.value, d.unit, d.time = r.Value, r.Unit, r.Time
	}
	m.changed[r.source] = d
}

func (m *model) seriesLocked(k seriesKey) *series {
	if s := m.series[k]; s != nil {
		return s
	}
	if kinds, known := m.zones[k.Zone]; kinds >= kindsMax || (!known && len(m.zones) >= zonesMax) {
		return nil
	}
	m.zones[k.Zone]++
	s := &series{}
	m.series[k] = s
	return s
}

// add puts a value into its bucket. What is older than the ring, or more than the ring ahead of all before, does not count:
// a device with a clock of its own must not clear the chart.
func (s *series) add(timeMs int64, v float64) {
	n := timeMs / bucketLength.Milliseconds()
	if s.newest != 0 && (n <= s.newest-int64(bucketCount) || n > s.newest+int64(bucketCount)) {
		return
	}
	b := &s.buckets[n%int64(bucketCount)]
	if b.number != n {
		*b = bucket{number: n, min: v, max: v}
	}
	b.sum, b.count = b.sum+v, b.count+1
	b.min, b.max = min(b.min, v), max(b.max, v)
	s.newest = max(s.newest, n)
}

// The messages to the browser. Field names are short: they are sent twice a second to everybody.
type (
	frame struct {
		Now     int64       `json:"now"`
		Total   int64       `json:"total"`
		Devices int         `json:"devices"`
		Series  []seriesOut `json:"series"`
		Latest  []deviceOut `json:"latest"`
	}
	seriesOut struct {
		Zone   string     `json:"z"`
		Kind   string     `json:"k"`
		Unit   string     `json:"u"`
		Points []pointOut `json:"p"`
	}
	pointOut struct {
		Time    int64   `json:"t"` // ms, the start of the bucket
		Average float64 `json:"a"`
		Min     float64 `json:"l"`
		Max     float64 `json:"h"`
		Count   int64   `json:"n"`
	}
	deviceOut struct {
		Zone   string  `json:"z"`
		Kind   string  `json:"k"`
		Device string  `json:"d"`
		Value  float64 `json:"v"`
		Unit   string  `json:"u,omitempty"`
		Time   int64   `json:"t"`
		Fresh  bool    `json:"f,omitempty"`
	}
)

// snapshot is everything, for a browser that has just come.
func (m *model) snapshot() frame {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.frameLocked(bucketCount)
	for _, d := range m.devices {
		f.Latest = append(f.Latest, d.out(false))
	}
	slices.SortFunc(f.Latest, func(a, b deviceOut) int { return cmp.Compare(a.Time, b.Time) })
	return f
}

// step is what is new since the last step: the devices heard, and the newest points of each series.
func (m *model) step() frame {
	m.mu.Lock()
	defer m.mu.Unlock()
	const newestPoints = 2 // the bucket that fills and the one before, which late readings may still change
	f := m.frameLocked(newestPoints)
	for _, d := range m.changed {
		f.Latest = append(f.Latest, d.out(d.fresh))
		d.fresh = false
	}
	clear(m.changed)
	slices.SortFunc(f.Latest, func(a, b deviceOut) int { return cmp.Compare(a.Time, b.Time) })
	return f
}

func (d *device) out(fresh bool) deviceOut {
	return deviceOut{d.Zone, d.Kind, d.Device, d.value, d.unit, d.time, fresh}
}

func (m *model) frameLocked(points int) frame {
	f := frame{Now: time.Now().UnixMilli(), Total: m.total, Devices: len(m.devices), Series: []seriesOut{}, Latest: []deviceOut{}}
	for k, s := range m.series {
		f.Series = append(f.Series, seriesOut{k.Zone, k.Kind, s.unit, s.points(points)})
	}
	slices.SortFunc(f.Series, func(a, b seriesOut) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Kind, b.Kind))
	})
	return f
}

// points are the newest n buckets that hold anything, oldest first.
func (s *series) points(n int) []pointOut {
	out := []pointOut{}
	for i := s.newest - int64(n) + 1; i <= s.newest; i++ {
		if b := s.buckets[((i%int64(bucketCount))+int64(bucketCount))%int64(bucketCount)]; b.number == i && b.count > 0 {
			out = append(out, pointOut{i * bucketLength.Milliseconds(), b.sum / float64(b.count), b.min, b.max, b.count})
		}
	}
	return out
}
