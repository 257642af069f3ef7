package depotctl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
)

// output is the flag of every command that prints a list or an object.
type output struct {
	Output string `short:"o" help:"table or json." enum:"table,json" default:"table"`
}

// print writes value as JSON, or lets human fill a table.
func (o output) print(w io.Writer, value any, human func(*table)) error {
	if o.Output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(value)
	}
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
	human(t)
	return t.w.Flush()
}

// table aligns columns.
type table struct{ w *tabwriter.Writer }

func (t *table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		if texts[i] = fmt.Sprint(c); texts[i] == "" {
			texts[i] = "-"
		}
	}
	if last := len(texts) - 1; texts[last] == "-" {
		texts[last] = "" // no column follows that it would have to hold open
	}
	fmt.Fprintln(t.w, strings.Join(texts, "\t"))
}

func join[T ~string](list []T) string {
	texts := make([]string, len(list))
	for i, s := range list {
		texts[i] = string(s)
	}
	return strings.Join(texts, ",")
}

func mark(on bool, text string) string {
	if on {
		return text
	}
	return ""
}

func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(time.Since(t))
}

func when(t time.Time, never string) string {
	if t.IsZero() {
		return never
	}
	return t.Local().Format(time.DateTime)
}

func took(from, to time.Time) string {
	if from.IsZero() || to.IsZero() {
		return ""
	}
	return to.Sub(from).Round(100 * time.Millisecond).String()
}

func size(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return units.BytesSize(float64(bytes))
}
