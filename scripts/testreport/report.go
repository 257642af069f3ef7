package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json`, as `go doc test2json` describes it.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output and build-fail
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// id names a test, or a package where test is empty.
type id struct{ pkg, test string }

type skip struct {
	id
	reason string
}

type counts struct{ passed, failed, skipped int }

// tally collects the events of any number of runs of go test.
type tally struct {
	w       io.Writer
	started time.Time
	sum     counts
	output  map[id]*strings.Builder // of what has not ended
	builds  map[string]*strings.Builder
	perPkg  map[string]*counts
	skips   []skip
	faults  []error // of go test itself
}

func newTally(w io.Writer) *tally {
	return &tally{
		w: w, started: time.Now(),
		output: map[id]*strings.Builder{}, builds: map[string]*strings.Builder{}, perPkg: map[string]*counts{},
	}
}

// add takes one event, and reports whether it was the end of a package.
func (r *tally) add(e event) bool {
	key := id{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		write(r.builds, e.ImportPath, e.Output)
	case "start", "run":
		write(r.output, key, "")
	case "output":
		write(r.output, key, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
			return true
		}
		r.endTest(e, key)
	}
	return false
}

func write[K comparable](to map[K]*strings.Builder, key K, s string) {
	b, ok := to[key]
	if !ok {
		b = &strings.Builder{}
		to[key] = b
	}
	b.WriteString(s)
}

func take[K comparable](from map[K]*strings.Builder, key K) string {
	b, ok := from[key]
	if !ok {
		return ""
	}
	delete(from, key)
	return b.String()
}

func (r *tally) pkg(name string) *counts {
	c, ok := r.perPkg[name]
	if !ok {
		c = &counts{}
		r.perPkg[name] = c
	}
	return c
}

func (r *tally) endTest(e event, key id) {
	c, text := r.pkg(e.Package), take(r.output, key)
	switch e.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skipped++
		r.skips = append(r.skips, skip{key, reason(text)})
	case "fail":
		c.failed++
		fmt.Fprintf(r.w, "\n%s: %s\n%s", key.pkg, key.test, text)
	}
}

// endPackage prints the package's line. A package that fails without a failing test did not build, or it panicked, ran
// out of time or failed in TestMain: that counts as one failure, and what was running then is shown.
func (r *tally) endPackage(e event) {
	c, text := r.pkg(e.Package), take(r.output, id{e.Package, ""})
	if e.Action == "fail" && c.failed == 0 {
		c.failed++
		fmt.Fprintf(r.w, "\n%s\n%s%s", e.Package, take(r.builds, e.FailedBuild), text)
	}
	for _, key := range r.running(e.Package) {
		if rest := take(r.output, key); e.Action == "fail" && rest != "" {
			fmt.Fprintf(r.w, "\n%s: %s did not end\n%s", key.pkg, key.test, rest)
		}
	}
	r.sum.passed += c.passed
	r.sum.failed += c.failed
	r.sum.skipped += c.skipped
	delete(r.perPkg, e.Package)
	switch {
	case e.Action == "fail":
		fmt.Fprintf(r.w, "FAIL  %-60s %7.1fs  %d passed, %d failed, %d skipped\n", e.Package, e.Elapsed, c.passed, c.failed, c.skipped)
	case *c != counts{}:
		fmt.Fprintf(r.w, "ok    %-60s %7.1fs  %d passed, %d skipped\n", e.Package, e.Elapsed, c.passed, c.skipped)
	}
}

// running returns the tests of a package that have begun and not ended, or with an empty name those of all packages.
func (r *tally) running(pkg string) []id {
	keys := slices.Collect(maps.Keys(r.output))
	keys = slices.DeleteFunc(keys, func(k id) bool { return k.test == "" || pkg != "" && k.pkg != pkg })
	slices.SortFunc(keys, func(a, b id) int { return strings.Compare(a.pkg+" "+a.test, b.pkg+" "+b.test) })
	return keys
}

func (r *tally) stillRunning() {
	names := []string{}
	for _, k := range r.running("") {
		if !strings.Contains(k.test, "/") {
			names = append(names, k.pkg+"."+k.test)
		}
	}
	if len(names) == 0 {
		names = append(names, "the compiler")
	}
	const shown = 4
	more := ""
	if len(names) > shown {
		more = fmt.Sprintf(" and %d more", len(names)-shown)
		names = names[:shown]
	}
	fmt.Fprintf(r.w, "      %s: running %s%s\n", time.Since(r.started).Round(time.Second), strings.Join(names, ", "), more)
}

// broken notes that go test itself did not work.
func (r *tally) broken(err error) { r.faults = append(r.faults, err) }

func (r *tally) allPassed() bool { return r.sum.failed == 0 && len(r.faults) == 0 }

// close prints the skips and the sum, and reports whether all is well.
func (r *tally) close() bool {
	for path, b := range r.builds { // of packages that no test needed
		fmt.Fprintf(r.w, "\n%s\n%s", path, b)
	}
	if len(r.skips) > 0 {
		fmt.Fprintf(r.w, "\n%d skipped:\n", len(r.skips))
	}
	for _, s := range r.skips {
		fmt.Fprintf(r.w, "  %s.%s: %s\n", s.pkg, s.test, s.reason)
	}
	for _, err := range r.faults {
		fmt.Fprintf(r.w, "\n%v\n", err)
	}
	ran := r.sum.passed+r.sum.failed > 0
	if !ran {
		fmt.Fprintln(r.w, "\nno test ran: that is a failure too")
	}
	fmt.Fprintf(r.w, "\nin %s: %d passed, %d failed, %d skipped\n", time.Since(r.started).Round(time.Second), r.sum.passed, r.sum.failed, r.sum.skipped)
	return ran && r.allPassed()
}

var position = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: `)

// reason is what a skipped test printed, without the lines of the test runner.
func reason(output string) string {
	i := position.FindStringIndex(output)
	if i == nil {
		return "no reason given"
	}
	text, _, _ := strings.Cut(output[i[1]:], "--- SKIP")
	return strings.Join(strings.Fields(text), " ")
}
