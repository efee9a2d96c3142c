package history

import (
	"fmt"
	"slices"
)

// Write is a numbered record as its writer knows it. Numbers of one writer rise by one, in the order in which it sent them.
type Write struct {
	Writer string
	Number int64
	Acked  bool
	Resent bool // the writer sent it more than once, of its own accord (MQTT QoS 1): it may be there twice
	// Place is where the acknowledgement said it is; nil when acknowledgements carry no offset (MQTT, HTTP).
	Place *Place
}

// Place is an offset of a partition.
type Place struct {
	Partition int32
	Offset    int64
}

// Read is a record as a reader found it, in the order of the partition.
type Read struct {
	Place
	Writer string
	Number int64
}

type id struct {
	writer string
	number int64
}

// Options say what the log promises.
type Options struct {
	// Contiguous: offsets have no gaps (true for a topic without compaction and transactions).
	Contiguous bool
}

// Check compares. Reads of one partition are in the order in which the log gave them; partitions may be interleaved.
func Check(writes []Write, reads []Read, o Options) *Verdict {
	v := &Verdict{Counts: map[Kind]int64{}}
	sent := make(map[id]*Write, len(writes))
	for i := range writes {
		w := &writes[i]
		sent[id{w.Writer, w.Number}] = w
		v.Sent++
		if w.Acked {
			v.Acked++
		}
	}
	found := make(map[id][]Place, len(reads))
	checkOrder(v, sent, reads, found, o)
	for _, w := range writes {
		v.judge(&w, found[id{w.Writer, w.Number}])
	}
	v.sort()
	return v
}

// checkOrder goes over the log once: offsets, order per writer and partition, and records nobody sent.
func checkOrder(v *Verdict, sent map[id]*Write, reads []Read, found map[id][]Place, o Options) {
	type stream struct {
		partition int32
		writer    string
	}
	highest := map[stream]int64{}
	next := map[int32]int64{}
	for _, r := range reads {
		v.Found++
		if n, ok := next[r.Partition]; ok && (r.Offset < n || (o.Contiguous && r.Offset != n)) {
			v.add(Gap, r.Writer, r.Number, "partition %d: offset %d comes where %d was due", r.Partition, r.Offset, n)
		}
		next[r.Partition] = r.Offset + 1
		k := id{r.Writer, r.Number}
		w := sent[k]
		if w == nil {
			v.add(Invented, r.Writer, r.Number, "partition %d offset %d: nobody sent it", r.Partition, r.Offset)
			continue
		}
		s := stream{r.Partition, r.Writer}
		if h, ok := highest[s]; ok && r.Number < h && len(found[k]) == 0 && !w.Resent {
			v.add(Reordered, r.Writer, r.Number, "partition %d offset %d: comes after number %d of the same writer", r.Partition, r.Offset, h)
		}
		highest[s] = max(highest[s], r.Number)
		found[k] = append(found[k], r.Place)
	}
}

// judge looks at one write and the places where it was found.
func (v *Verdict) judge(w *Write, places []Place) {
	switch {
	case len(places) == 0:
		if w.Acked {
			v.add(Lost, w.Writer, w.Number, "acknowledged%s, not in the log", at(w.Place))
		}
		return
	case len(places) > 1 && w.Resent:
		v.Resent++
	case len(places) > 1:
		v.add(Doubled, w.Writer, w.Number, "is at %v", places)
	}
	if !w.Acked {
		v.Unknown++
	}
	if w.Acked && w.Place != nil && !slices.Contains(places, *w.Place) {
		v.add(Moved, w.Writer, w.Number, "acknowledged%s, found at %v", at(w.Place), places)
	}
}

func at(p *Place) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf(" at partition %d offset %d", p.Partition, p.Offset)
}
