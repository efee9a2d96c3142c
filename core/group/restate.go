package group

// Restatement is the work of saying again, at the end of the log, all that the log says: when it is done and its records are committed, the log
// may start where it ended when the work began. Groups are restated one by one between other events: a step changes the state and asks for its records in the same
// order, so whatever happens to a group after its restatement stands behind it in the log, and what happened before is in it.
type Restatement struct {
	ids []string // of groups not restated yet
	// waiting are groups that were joining, by their generation. Of such a group the log has what it was before, which the
	// machine no longer knows: it is waited for until the next generation has begun, which is written anyway.
	waiting map[string]int32
}

// NewRestatement begins with the groups that there are. What comes later is written later.
func (c *Coordinator) NewRestatement() *Restatement {
	return &Restatement{ids: c.ids(), waiting: map[string]int32{}}
}

// Restate returns records of the next groups: at least one group's, and not more than about bytesMax of them. They have to be written in order with
// those that steps ask for. It returns none when all groups have been restated.
func (c *Coordinator) Restate(r *Restatement, bytesMax int) []Record {
	bytes := 0
	for len(r.ids) > 0 && bytes < bytesMax {
		g := c.groups[r.ids[0]]
		r.ids = r.ids[1:]
		if g == nil {
			continue
		}
		from := len(c.out.Records)
		c.restate(r, g)
		for _, record := range c.out.Records[from:] {
			bytes += len(record.Key) + len(record.Value)
		}
	}
	records := c.out.Records
	c.out.Records = nil
	return records
}

func (c *Coordinator) restate(r *Restatement, g *group) {
	switch {
	case !g.recorded: // there are offsets at most
	case g.state == PreparingRebalance:
		r.waiting[g.id] = g.generation
	default:
		c.writeGroup(g)
	}
	for _, p := range g.partitions() {
		c.writeOffset(g.id, p, g.offsets[p.Topic][p.Index])
	}
}

// Restated tells whether the records asked for until now say everything again.
func (c *Coordinator) Restated(r *Restatement) bool {
	if len(r.ids) > 0 {
		return false
	}
	for id, generation := range r.waiting {
		if g := c.groups[id]; g != nil && g.state == PreparingRebalance && g.generation <= generation {
			return false
		}
		delete(r.waiting, id)
	}
	return true
}
