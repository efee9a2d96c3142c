//go:build e2e

package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/loadtest"
)

// startPowered is startCluster with processes that keep in memory what they have not synced: kill -9 of one is a power cut.
// volatile is 1, or seed:N for a disk that some of it reaches all the same.
func startPowered(t *testing.T, volatile string) *cluster {
	t.Helper()
	chaos := filepath.Join(root(t), "bin", "sluice-chaos")
	if _, err := os.Stat(chaos); err != nil {
		t.Fatalf("%v: run `make bin/sluice-chaos` first", err)
	}
	bin := t.TempDir()
	if err := os.Symlink(chaos, filepath.Join(bin, "sluice")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SLUICE_BIN", bin)
	t.Setenv("SLUICE_CHAOS_VOLATILE", volatile)
	return startCluster(t, t.TempDir())
}

// outages cuts the power of some of the processes, or all, again and again, until ctx ends and enough says so; sometimes of some that are just starting.
// All run when it returns.
func (c *cluster) outages(ctx context.Context, r *rand.Rand, names []string, enough func(cuts int) bool) (cuts int) {
	late := time.Now().Add(faultTime + patience)
	over := func() bool { return ctx.Err() != nil && (enough(cuts) || time.Now().After(late)) }
	pause := func(max time.Duration) {
		done := ctx.Done()
		if !over() {
			done = nil
		}
		select {
		case <-done:
		case <-time.After(time.Duration(r.Int64N(int64(max)))):
		}
	}
	for pause(2 * time.Second); !over(); {
		hit := append([]string{}, names...)
		r.Shuffle(len(hit), func(i, j int) { hit[i], hit[j] = hit[j], hit[i] })
		if r.IntN(3) > 0 {
			hit = hit[:1+r.IntN(len(hit))]
		}
		for again := true; again; again = r.IntN(3) == 0 {
			c.cut(hit)
			cuts += len(hit)
			pause(time.Second)
			for _, name := range hit {
				c.restart(name)
			}
			pause(500 * time.Millisecond)
		}
		for _, name := range hit {
			c.ready(name)
		}
		pause(3 * time.Second)
	}
	return cuts
}

// cut kills processes at the same moment.
func (c *cluster) cut(names []string) {
	c.t.Helper()
	pids := map[string]int{}
	for _, name := range names {
		pids[name] = c.shoot(name)
	}
	for name, pid := range pids {
		c.gone(name, pid)
	}
}

func (c *cluster) powerCuts(v loadtest.Verify, names ...string) loadtest.VerifyResult {
	c.t.Helper()
	seed := uint64(time.Now().UnixNano())
	c.t.Logf("seed %d", seed)
	load := c.startLoad(v)
	ctx, cancel := context.WithTimeout(context.Background(), faultTime)
	defer cancel()
	cuts := c.outages(ctx, rand.New(rand.NewPCG(seed, 0)), names, func(cuts int) bool { return cuts >= cutsMin && load.acked.Load() >= ackedMin })
	r := load.finish()
	if !r.Verdict.OK() {
		c.t.Errorf("after %d power cuts: %v", cuts, r.Verdict.Violations)
	}
	if cuts < cutsMin || r.Verdict.Acked < ackedMin {
		c.t.Errorf("%d power cuts, %d records acknowledged: the test has not tested much", cuts, r.Verdict.Acked)
	}
	c.t.Logf("%d power cuts, %d acknowledged, %d found, %d resent by devices", cuts, r.Verdict.Acked, r.Verdict.Found, r.Verdict.Resent)
	return r
}

// What a majority has synced is there when the power of any nodes goes, or of all, at any moment.
func TestPowerCutsOfCoreNodes(t *testing.T) {
	for _, volatile := range []string{"1", "seed:7"} {
		t.Run(strings.ReplaceAll(volatile, ":", ""), func(t *testing.T) {
			c := startPowered(t, volatile)
			r := c.powerCuts(loadtest.Verify{
				Kafka: loadtest.Kafka{Brokers: brokers, Partitions: 6, ReplicationFactor: 3}, Writers: 3, Rate: 500, Size: 200,
			}, "core-1", "core-2", "core-3")
			c.stop(syscall.SIGTERM)
			sameSegments(t, c.data, r.Topic, 6)
		})
	}
}

// A PUBACK is worth what it says when the power goes everywhere, gateway included.
func TestPowerCutsOfGatewayAndCore(t *testing.T) {
	c := startPowered(t, "seed:11")
	c.powerCuts(loadtest.Verify{
		Kafka: loadtest.Kafka{Brokers: brokers, Topic: "mqtt"}, Writers: 20, Rate: 400, Size: 100,
		Gateway: mqtt, MQTT: "verify", Window: 10,
	}, "edge", "core-1", "core-2", "core-3")
}
