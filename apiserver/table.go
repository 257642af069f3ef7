package apiserver

import (
	"fmt"
	"slices"
	"strings"
)

// transition is one arrow of a state diagram: on this event a record may go from one state to another.
type transition[S ~string] struct {
	from S
	on   string
	to   S
}

// transitions is the whole of what may happen to a record. Steps are checked against it when they are taken, the
// diagrams of the package documentation are drawn from it, and the tests walk it.
type transitions[S ~string] []transition[S]

// check refuses a step that has no arrow. To stay in a state needs none, unless the state is an end.
func (t transitions[S]) check(from S, on string, to S) error {
	if from == to || slices.Contains(t, transition[S]{from, on, to}) {
		return nil
	}
	return fmt.Errorf("no transition from %s to %s on %s", from, to, on)
}

// states returns every state, in the order of its first mention.
func (t transitions[S]) states() []S {
	var all []S
	for _, x := range t {
		for _, s := range []S{x.from, x.to} {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// ends returns the states that nothing leaves.
func (t transitions[S]) ends() []S {
	return slices.DeleteFunc(t.states(), func(s S) bool {
		return slices.ContainsFunc(t, func(x transition[S]) bool { return x.from == s })
	})
}

// diagram draws the table as text: for each state, where each event leads.
func (t transitions[S]) diagram() string {
	var b strings.Builder
	ends := t.ends()
	for _, from := range t.states() {
		if slices.Contains(ends, from) {
			continue
		}
		name := string(from)
		for _, to := range t.states() {
			var on []string
			for _, x := range t {
				if x.from == from && x.to == to {
					on = append(on, x.on)
				}
			}
			if len(on) == 0 {
				continue
			}
			end := ""
			if slices.Contains(ends, to) {
				end = " ■"
			}
			fmt.Fprintf(&b, "%-10s → %-11s  %s\n", name, string(to)+end, strings.Join(on, ", "))
			name = ""
		}
	}
	return b.String()
}
