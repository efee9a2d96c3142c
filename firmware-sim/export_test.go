package firmwaresim

import "github.com/VictoriaMetrics/metrics"

func newTestCounters() *counters { return newCounters(metrics.NewSet()) }
