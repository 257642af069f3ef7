package bus

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	tableBegin = "// table:begin\n"
	tableEnd   = "// table:end\n"
)

// `make docs` writes the table into the package documentation; a table that differs from the rows fails here.
func TestTheDocumentationHasTheTable(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	head, rest, ok := strings.Cut(string(text), tableBegin)
	require.True(t, ok)
	_, tail, ok := strings.Cut(rest, tableEnd)
	require.True(t, ok)
	want := head + tableBegin + documentedTable() + tableEnd + tail
	if *update {
		require.NoError(t, os.WriteFile("doc.go", []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(text), "run `make docs`")
}

func documentedTable() string {
	var b strings.Builder
	for _, scope := range []struct {
		scope Scope
		title string
	}{
		{ScopeAny, "Everybody"},
		{ScopeOrganization, "The account of an organization"},
		{ScopeConnection, "The account of a connection"},
		{ScopeControl, "Among API servers"},
	} {
		fmt.Fprintf(&b, "//\n// %s:\n//\n", scope.title)
		for row := range Table() {
			if row.Scope == scope.scope {
				document(&b, row)
			}
		}
	}
	b.WriteString("//\n")
	return b.String()
}

func document(b *strings.Builder, row Row) {
	kind := string(row.Kind)
	if row.Stream != "" {
		kind += " " + row.Stream
	}
	fmt.Fprintf(b, "//\t%-34s %-14s %s\n", row.Subject, kind, path(row))
	fmt.Fprintf(b, "//\t    %s\n", strings.ReplaceAll(row.Payload, "bus.", ""))
	fmt.Fprintf(b, "//\t    %s\n", row.Why)
}

// path says who sends to whom.
func path(row Row) string {
	var roles []string
	for _, r := range row.Roles {
		roles = append(roles, string(r))
	}
	tenants := strings.Join(roles, ", ")
	if slices.Equal(row.Roles, Roles) {
		tenants = "everybody"
	}
	switch {
	case row.Scope == ScopeControl:
		return "api → api"
	case row.Kind == KindService, row.Kind == KindSignal:
		return tenants + " → api"
	}
	return "api → " + tenants
}
