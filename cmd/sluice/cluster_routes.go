package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"sluice/core/controller"
	"sluice/core/meta"
	"sluice/core/rest"
)

// Bodies of the POSTs to a node's HTTP port.
type (
	drainBody struct {
		Node int32 `json:"node"`
		Off  bool  `json:"off,omitempty"` // let it have replicas again
	}
	removeBody struct {
		Node     int32 `json:"node"`
		Force    bool  `json:"force,omitempty"`
		LoseData bool  `json:"loseData,omitempty"`
	}
	recoverBody struct {
		Shard    uint32 `json:"shard"`
		LoseCopy bool   `json:"loseCopy,omitempty"`
	}
	moveBody struct {
		Shard uint32  `json:"shard"`
		To    []int32 `json:"to"`
	}
)

// clusterRoutes are the paths of a node's HTTP port behind `sluice cluster`.
func clusterRoutes(c *controller.Controller) map[string]rest.Route {
	return map[string]rest.Route{
		"/cluster": {Get: func(ctx context.Context) (any, error) { return c.Overview(ctx), nil }},
		"/cluster/drain": post(func(ctx context.Context, b *drainBody) error {
			return c.Drain(ctx, meta.NodeID(b.Node), b.Off)
		}),
		"/cluster/remove": post(func(ctx context.Context, b *removeBody) error {
			return c.RemoveNode(ctx, meta.NodeID(b.Node), b.Force, b.LoseData)
		}),
		"/cluster/move": post(func(ctx context.Context, b *moveBody) error {
			return c.MoveShard(ctx, meta.ShardID(b.Shard), nodeIDs(b.To))
		}),
		"/cluster/recover": post(func(ctx context.Context, b *recoverBody) error {
			return c.RecoverShard(ctx, meta.ShardID(b.Shard), b.LoseCopy)
		}),
		"/cluster/balance": post(func(ctx context.Context, _ *struct{}) error { return c.Balance(ctx) }),
	}
}

func nodeIDs(list []int32) []meta.NodeID {
	out := make([]meta.NodeID, len(list))
	for i, id := range list {
		out[i] = meta.NodeID(id)
	}
	return out
}

// statusError chooses the HTTP status of an answer.
type statusError struct {
	error
	code int
}

func (e statusError) Status() int   { return e.code }
func (e statusError) Unwrap() error { return e.error }

// post reads a body strictly and answers what the cluster refuses with 409.
func post[B any](do func(context.Context, *B) error) rest.Route {
	return rest.Route{Post: func(ctx context.Context, raw []byte) (any, error) {
		var body B
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&body); err != nil {
			return nil, statusError{fmt.Errorf("read body: %w", err), http.StatusBadRequest}
		}
		err := do(ctx, &body)
		var refused *meta.Error
		switch {
		case err == nil:
			return nil, nil
		case errors.As(err, &refused) && refused.Code == meta.CodeRequestTimedOut:
			return nil, statusError{errors.New(refused.Message), http.StatusGatewayTimeout}
		case errors.As(err, &refused):
			return nil, statusError{errors.New(refused.Message), http.StatusConflict}
		}
		return nil, err
	}}
}
