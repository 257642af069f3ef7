package apiserver

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the diagrams into doc.go")

// TestDocumentationIsDrawnFromTheTables keeps the diagrams in doc.go equal to the tables that steps are checked against.
func TestDocumentationIsDrawnFromTheTables(t *testing.T) {
	t.Parallel()
	const begin, end = "// diagrams:begin\n", "// diagrams:end\n"
	var drawn strings.Builder
	for _, d := range []struct{ title, diagram string }{
		{"Build", buildTransitions.diagram()}, {"Machine", machineTransitions.diagram()}, {"Volume", volumeTransitions.diagram()},
	} {
		drawn.WriteString("//\n// " + d.title + ":\n//\n")
		for line := range strings.Lines(d.diagram) {
			drawn.WriteString(strings.TrimRight("//\t"+line, " \n") + "\n")
		}
	}
	source, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(source), begin)
	require.True(t, found)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found)
	want := before + begin + drawn.String() + "//\n" + end + after
	if *update {
		require.NoError(t, os.WriteFile("doc.go", []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(source), "run make docs")
}

// TestEveryDeadlineHasADefault finds a deadline that was added without one.
func TestEveryDeadlineHasADefault(t *testing.T) {
	t.Parallel()
	require.Equal(t, defaultTimeouts, Timeouts{}.withDefaults())
	for _, s := range machineColumns {
		require.Equal(t, s == MachineDeleted, machineIn(s, false).patience(defaultTimeouts) < 0, "%s", s)
	}
	require.Greater(t, defaultTimeouts.Delete, repeatAfter)
}
