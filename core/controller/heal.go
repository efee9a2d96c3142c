package controller

import (
	"context"

	"sluice/core/shard"
)

// yield hands the shard to a voter that has everything, while segments here are damaged: clients need not wait for the
// repair. Where there is none this replica goes on to lead: it serves what is good.
func (r *replica) yield(ctx context.Context) (handed bool) {
	for _, x := range r.group.Replicas() {
		if x.Server.Node == r.c.Self() || !x.Voter || !x.InSync || !r.usable(x.Server) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		err := r.group.Transfer(ctx, x.Server.Node)
		cancel()
		if err == nil {
			r.c.log.Info("handed shard over: segments here are damaged", "shard", r.id, "node", x.Server.Node)
			return true
		}
		r.c.log.Info("could not hand over a shard with damaged segments", "shard", r.id, "to", x.Server.Node, "err", err)
	}
	return false
}

var _ shard.Servable = setMachine{}
