package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/valyala/fasthttp"

	"sluice/cmd/internal/conf"
	"sluice/core/controller"
	"sluice/core/meta"
)

const (
	defaultHTTP = "127.0.0.1:9644"
	// clusterPoll is how often a command that waits looks again.
	clusterPoll = time.Second
)

func clusterCommand() *cobra.Command {
	return parent("cluster", "Show the nodes and shards of a cluster, drain and remove nodes, move and balance replicas",
		clusterStatusCommand(), clusterDrainCommand(), clusterUndrainCommand(), clusterRemoveCommand(), clusterMoveCommand(), clusterBalanceCommand(),
		clusterRecoverCommand())
}

// door has the flags of commands that ask a node's HTTP port.
type door struct {
	addrs   []string
	timeout time.Duration
}

func (d *door) flags(c *cobra.Command) {
	from := defaultHTTP
	if env := os.Getenv("SLUICE_HTTP"); env != "" {
		from = env
	}
	c.Flags().StringSliceVar(&d.addrs, "http", strings.Split(from, ","), "HTTP ports of nodes, asked in turn until one answers, host:port,... (SLUICE_HTTP)")
	c.Flags().DurationVar(&d.timeout, "timeout", requestTimeout, "how long to wait for an answer")
}

// refusedError is an answer of a node that says no.
type refusedError struct{ message string }

func (e refusedError) Error() string { return e.message }

// call asks the first node that answers. A node that cannot be reached is passed over.
func (d *door) call(c *cobra.Command, method, path string, in, out any) error {
	for _, addr := range d.addrs {
		if err := conf.CheckAddress("--http", addr); err != nil {
			return usage(c, err)
		}
	}
	var unreachable []error
	for _, addr := range d.addrs {
		err := d.ask(addr, method, path, in, out)
		var refused refusedError
		if err == nil || errors.As(err, &refused) {
			return err
		}
		unreachable = append(unreachable, fmt.Errorf("reach %s: %w", addr, shortNetworkError(err)))
	}
	return hint(errors.Join(unreachable...), "is a node running there? --http names the HTTP port of another")
}

func (d *door) ask(addr, method, path string, in, out any) error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI("http://" + addr + path)
	req.Header.SetMethod(method)
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			panic("BUG: encode request: " + err.Error())
		}
		req.Header.SetContentType("application/json")
		req.SetBody(body)
	}
	if err := fasthttp.DoTimeout(req, resp, d.timeout); err != nil {
		return err
	}
	if resp.StatusCode() != http.StatusOK {
		var body struct{ Error string }
		_ = json.Unmarshal(resp.Body(), &body)
		if body.Error == "" {
			body.Error = fmt.Sprintf("HTTP status %d", resp.StatusCode())
		}
		return refusedError{body.Error}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(resp.Body(), out); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

func (d *door) overview(c *cobra.Command) (*controller.Overview, error) {
	var o controller.Overview
	if err := d.call(c, http.MethodGet, "/cluster", nil, &o); err != nil {
		return nil, fmt.Errorf("show the cluster: %w", err)
	}
	return &o, nil
}

// nodeArg reads a node's id.
func nodeArg(c *cobra.Command, text string) (int32, error) {
	id, err := strconv.ParseInt(text, 10, 32)
	if err != nil || id < 0 {
		return 0, usage(c, fmt.Errorf("%q: must be the id of a node", text))
	}
	return int32(id), nil
}

func findNode(o *controller.Overview, id int32) *controller.NodeOverview {
	at := slices.IndexFunc(o.Nodes, func(n controller.NodeOverview) bool { return n.ID == meta.NodeID(id) })
	if at < 0 {
		return nil
	}
	return &o.Nodes[at]
}

// follow looks at the cluster until done says so, and shows what has changed meanwhile. Interrupting it changes nothing in the
// cluster. Moments in which no node answers are waited through: a leader may just be changing.
func (d *door) follow(c *cobra.Command, line func(*controller.Overview) (text string, done bool)) error {
	last := ""
	for failures := 0; ; {
		o, err := d.overview(c)
		if err != nil {
			if failures++; failures > 10 {
				return err
			}
		} else {
			failures = 0
			text, done := line(o)
			if text != last && text != "" {
				fmt.Fprintln(c.ErrOrStderr(), text)
				last = text
			}
			if done {
				return nil
			}
		}
		if err := pauseFor(c.Context(), clusterPoll); err != nil {
			return hint(errors.New("interrupted: the cluster goes on with it"), "`sluice cluster status` shows how far it is")
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// moving counts the shards whose members change, and what their replicas have still to fetch.
func moving(o *controller.Overview) (shards int, bytes, perSecond int64) {
	for _, s := range o.Shards {
		if len(s.Adding) > 0 || len(s.Removing) > 0 {
			shards++
		}
		for _, x := range s.Copies {
			bytes += x.BytesLeft
			perSecond += x.BytesPerSecond
		}
	}
	return shards, bytes, perSecond
}

func movingText(o *controller.Overview) string {
	shards, bytes, rate := moving(o)
	text := fmt.Sprintf("%d shards moving", shards)
	if bytes > 0 {
		text += fmt.Sprintf(", %s left at %s/s", byteText(bytes), byteText(rate))
	}
	return text
}

// byteText writes a number of bytes for people.
func byteText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n), "KMGTPE"
	i := -1
	for value >= unit && i < len(units)-1 {
		value /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[i])
}
