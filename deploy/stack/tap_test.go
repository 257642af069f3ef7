package stack_test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

// tap is an ordered record of everything that CONTROL has seen.
type tap struct {
	mu      sync.Mutex
	heard   []bus.Heard
	changed chan struct{}
}

// tap listens on the wire of a running installation, with the installation's own trust.
func (in *installation) tap(t testing.TB) *tap {
	t.Helper()
	trust, err := bus.LoadTrust(filepath.Join(in.state, "trust"))
	require.NoError(t, err)
	control, err := bus.OpenControl(t.Context(), bus.ControlConfig{URL: "nats://" + in.listen, Trust: trust, Name: "tap"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	w := &tap{changed: make(chan struct{})}
	require.NoError(t, control.Tap(t.Context(), w.hear))
	return w
}

func (w *tap) hear(m bus.Heard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = append(w.heard, m)
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *tap) all() []bus.Heard {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clip(w.heard)
}

// line is a message as a test names it: its row, and the subject without account and ids.
type line struct {
	row, subject string
	data         []byte
	at           int // position on the wire
}

// rows returns the messages of the table's rows, in their order.
func (w *tap) rows() []line {
	var lines []line
	for i, m := range w.all() {
		if row, ok := strings.CutSuffix(m.Type, ".v1"); ok && !strings.HasSuffix(row, ".reply") && row != "fault" {
			lines = append(lines, line{row, m.Subject, m.Data, i})
		}
	}
	return lines
}

// firstOf returns the first message of a row, after the position, that the condition accepts.
func firstOf[M bus.Message](t testing.TB, lines []line, row bus.Row, after int, accept func(M) bool) (M, line) {
	t.Helper()
	for _, l := range lines {
		if l.row != row.Name || l.at <= after {
			continue
		}
		var m M
		require.NoError(t, json.Unmarshal(l.data, &m))
		if accept == nil || accept(m) {
			return m, l
		}
	}
	var m M
	require.Fail(t, "not on the bus", "%s was not seen after message %d", row.Name, after)
	return m, line{}
}
