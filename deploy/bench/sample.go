package main

import (
	"fmt"
	"slices"
	"time"
)

// sample is the times of one thing that was done often.
type sample []time.Duration

// quantile returns the time that the share q of the sample does not exceed.
func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (s sample) median() time.Duration { return s.quantile(0.5) }

// ms prints a time in milliseconds with the digits that matter.
func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	if v < 10 {
		return fmt.Sprintf("%.2f ms", v)
	}
	return fmt.Sprintf("%.0f ms", v)
}

// row prints a line of a table of medians: a name, p50, p99, and the ratio of medians to the base.
func row(name string, s, base sample) {
	ratio := ""
	if base != nil {
		ratio = fmt.Sprintf("%.2f", float64(s.median())/float64(base.median()))
	}
	fmt.Printf("  %-44s %10s %10s %8s\n", name, ms(s.median()), ms(s.quantile(0.99)), ratio)
}

func heading(title, ratio string) {
	fmt.Printf("\n%s\n  %-44s %10s %10s %8s\n", title, "", "p50", "p99", ratio)
}
