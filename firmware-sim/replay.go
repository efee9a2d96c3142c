package firmwaresim

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// replayWindow is how many rows may wait for their acknowledgement.
const replayWindow = 64

// Replay describes the playing of a recording.
type Replay struct {
	Broker   string
	Topic    string
	ClientID string  // "" = made from the topic
	QoS      byte    // 0, 1 or 2
	Speed    float64 // 1 = as recorded, 60 = a minute in a second, 0 = as fast as the broker takes it
	Username string
	Password string
	Progress func(rows int) // called after every row; nil = nobody
}

// Rows of a recording are timestamp,value with a header line.
type row struct {
	timestamp, value string
	at               time.Time
}

// Run publishes every row of r, in order, and returns how many were acknowledged (with QoS 0: written). It ends early when ctx does.
func (p Replay) Run(ctx context.Context, r io.Reader) (int, error) {
	if p.QoS > 2 || p.Speed < 0 || p.Topic == "" {
		return 0, fmt.Errorf("replay: topic %q, QoS %d, speed %v: a topic, a QoS up to 2 and a speed of 0 or more are needed", p.Topic, p.QoS, p.Speed)
	}
	if p.ClientID == "" {
		p.ClientID = "replay-" + p.Topic
	}
	client := paho.NewClient(clientOptions(p.Broker, p.ClientID, p.Username, p.Password).SetConnectRetry(false))
	if err := wait(ctx, client.Connect()); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", p.Broker, err)
	}
	defer client.Disconnect(1000)
	return p.publish(ctx, client, csv.NewReader(r))
}

func (p Replay) publish(ctx context.Context, client paho.Client, in *csv.Reader) (done int, err error) {
	in.FieldsPerRecord, in.ReuseRecord = 2, true
	var waiting []paho.Token
	var previous time.Time
	for line := 1; ; line++ {
		next, err := nextRow(in, line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return done, err
		}
		if err := p.pace(ctx, previous, next.at); err != nil {
			return done, err
		}
		previous = next.at
		payload, err := replayed(next.timestamp, next.value)
		if err != nil {
			return done, fmt.Errorf("row %d: %w", line, err)
		}
		waiting = append(waiting, client.Publish(p.Topic, p.QoS, false, payload))
		if len(waiting) >= replayWindow {
			if done, waiting, err = p.settle(ctx, waiting, done); err != nil {
				return done, err
			}
		}
	}
	for len(waiting) > 0 {
		if done, waiting, err = p.settle(ctx, waiting, done); err != nil {
			return done, err
		}
	}
	return done, nil
}

// settle waits for the oldest row.
func (p Replay) settle(ctx context.Context, waiting []paho.Token, done int) (int, []paho.Token, error) {
	if err := wait(ctx, waiting[0]); err != nil {
		return done, waiting, fmt.Errorf("publish row %d: %w", done+1, err)
	}
	if p.Progress != nil {
		p.Progress(done + 1)
	}
	return done + 1, waiting[1:], nil
}

// pace waits as long as the recording did between two rows. A clock that was set back in the recording costs nothing.
func (p Replay) pace(ctx context.Context, previous, next time.Time) error {
	if p.Speed == 0 || previous.IsZero() || !next.After(previous) {
		return ctx.Err()
	}
	t := time.NewTimer(time.Duration(float64(next.Sub(previous)) / p.Speed))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func nextRow(in *csv.Reader, line int) (row, error) {
	for {
		fields, err := in.Read()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return row{}, err
			}
			return row{}, fmt.Errorf("read recording: %w", err)
		}
		at, err := parseTime(fields[0])
		if err == nil {
			return row{fields[0], fields[1], at}, nil
		}
		if line > 1 || fields[0] != "timestamp" { // the header
			return row{}, fmt.Errorf("row %d: %w", line, err)
		}
	}
}

// parseTime reads the layouts that recordings use. Times without a zone are taken as UTC: only their differences matter.
func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02 15:04:05", time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time such as 2014-04-01 00:05:00", s)
}

func wait(ctx context.Context, t paho.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}
