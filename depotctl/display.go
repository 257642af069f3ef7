package depotctl

import (
	"fmt"
	"time"

	"github.com/docker/buildx/util/progress"
	"github.com/moby/buildkit/client"

	"github.com/depotctl/depot/bus"
)

// refreshInterval is how often a plain log says that a stage still goes on. A terminal counts by itself.
const refreshInterval = 10 * time.Second

// display shows the acquisition of one builder inside one step of buildx's progress display: each stage is a line with
// its own elapsed time, each reason a line of the step's log.
type display struct {
	step    progress.SubLogger
	prefix  string // tells two builders apart: a plain log compares lines by their text
	begun   int    // spans announced so far
	ended   int    // spans completed so far
	details map[string]bool
}

func newDisplay(step progress.SubLogger, arch bus.Arch) *display {
	d := &display{step: step, details: map[string]bool{}}
	if arch != "" {
		d.prefix = string(arch) + ": "
	}
	return d
}

// update shows what is new in n.
func (d *display) update(n snapshot, now time.Time) {
	for i, s := range n.spans {
		if s.stage == bus.StageServing { // over as soon as it begins: what follows is this client's own stage
			d.begun, d.ended = max(d.begun, i+1), max(d.ended, i+1)
			continue
		}
		if i >= d.begun {
			d.line(s, now)
			d.begun = i + 1
		}
		d.say(s.detail)
		if i >= d.ended && !s.to.IsZero() {
			d.line(s, now)
			d.ended = i + 1
		}
	}
	d.say(n.message)
}

// refresh repeats the present stage with the time that it has taken so far.
func (d *display) refresh(n snapshot, now time.Time) {
	if last := n.spans[len(n.spans)-1]; last.to.IsZero() && last.stage != bus.StageServing {
		d.line(last, now)
	}
}

func (d *display) line(s span, now time.Time) {
	status := &client.VertexStatus{ID: d.prefix + string(s.stage), Timestamp: now, Started: &s.from}
	if !s.to.IsZero() {
		status.Completed = &s.to
	}
	d.step.SetStatus(status)
}

// say logs a message the first time that it is seen.
func (d *display) say(message string) {
	if message == "" || d.details[message] {
		return
	}
	d.details[message] = true
	d.step.Log(1, fmt.Appendf(nil, "%s\n", oneLine(message)))
}

// close completes a stage that the end of the acquisition has overtaken.
func (d *display) close(n snapshot, now time.Time) {
	last := n.spans[len(n.spans)-1]
	if last.to.IsZero() && len(n.spans) > d.ended && last.stage != bus.StageServing {
		last.to = now
		d.line(last, now)
	}
}
